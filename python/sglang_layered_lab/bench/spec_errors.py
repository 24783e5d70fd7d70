"""What is wrong with a spec, and at which key. Knows no file: `spec_lines` finds the line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

from sglang_layered.errors import BenchError


def dotted(keys: Sequence[str | int]) -> str:
    """Write a path as people do: `load.trace.file`, `server.flags[2]`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


class SpecError(BenchError):
    """A field of a spec is bad.

    `keys` is its path: names of tables, then the key, with indices of lists and arrays of tables. `problem`
    says what is wrong and what to write instead.
    """

    def __init__(self, keys: Sequence[str | int], problem: str) -> None:
        self.keys, self.problem = tuple(keys), problem
        super().__init__(f"{dotted(self.keys)}: {problem}" if self.keys else problem)

    @property
    def errors(self) -> tuple[SpecError, ...]:
        """Every single error; of one field this one."""
        return (self,)

    def below(self, *parents: str | int) -> SpecError:
        """Return the same problem, seen from the tables around it."""
        return SpecError((*parents, *self.keys), self.problem)


class SpecErrors(SpecError):
    """Several fields are bad: the first of the errors, with the others behind it, a line each."""

    def __init__(self, errors: Sequence[SpecError]) -> None:
        super().__init__(errors[0].keys, errors[0].problem)
        self._errors = tuple(errors)

    @property
    def errors(self) -> tuple[SpecError, ...]:
        """Every single error."""
        return self._errors

    def __str__(self) -> str:
        return "\n".join(map(str, self._errors))

    def below(self, *parents: str | int) -> SpecError:
        """Return the same problems, seen from the tables around them."""
        return SpecErrors([error.below(*parents) for error in self._errors])


def raise_all(errors: Iterable[SpecError]) -> None:
    """Raise what was found, each problem of a key once; nothing where nothing was found."""
    found = list({(each.keys, each.problem): each for error in errors for each in error.errors}.values())
    if found:
        raise found[0] if len(found) == 1 else SpecErrors(found)


@contextmanager
def gathered(errors: list[SpecError]) -> Iterator[None]:
    """Put what a block raises to the errors instead, so that the next block can find more."""
    try:
        yield
    except SpecError as error:
        errors += error.errors


def meant(given: str, known: Iterable[str]) -> list[str]:
    """Names that were probably meant: those with all its words (`rate`: `rate_per_s`), or the closest.

    Likeness by letters alone is a bad guide to a short name: it takes `trace` for `rate`.
    """
    names = list(known)
    words = set(given.split("_"))
    longer = [name for name in names if words <= set(name.split("_"))]
    shorter = [name for name in names if set(name.split("_")) < words]
    return longer or shorter or get_close_matches(given, names, n=1)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return the remedy for an unknown name: the known ones that were probably meant, or all of them."""
    names = list(known)
    close = meant(given, names)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"choose one of {', '.join(names)}"


def bad_choice(key: str, given: str, known: Iterable[str]) -> Iterator[SpecError]:
    """Give an error unless `given` is known."""
    names = list(known)
    if given not in names:
        yield SpecError((key,), f"{given!r} is unknown; {did_you_mean(given, names)}")


def bad_file_name(key: str, given: str) -> Iterator[SpecError]:
    """Give an error unless a file can be called this."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", given):
        yield SpecError(
            (key,),
            f"{given!r} makes no file name; use letters, digits and . _ - after the first, 200 at most",
        )
