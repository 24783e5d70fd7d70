"""The section [server] of a spec: a server to attach to, or one to start. Starts nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Annotated

import httpx

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.bench.spec_errors import SpecError, bad_choice
from sglang_layered_lab.bench.spec_keys import Checked, as_seed, count_of, in_seconds, plain
from sglang_layered_lab.models.catalogue import Recipe, find_recipe

OWN_FLAGS = ("--model-path", "--model", "--host", "--port")
ROUTERS = ("uniform", "paper")  # as random weights are, or calibrated to the coverage of the paper's Table 1


@dataclass(frozen=True, slots=True)
class MakeModelSpec(Checked):
    """A model with random weights, made on the spot as `sglang-layered make-model` does."""

    arch: Annotated[str, plain("as of make-model")]
    preset: Annotated[str, plain("as of make-model")] = "tiny"
    seed: Annotated[int, as_seed("of the weights")] = 0
    dtype: Annotated[str | None, plain("of the weights; absent: the preset's")] = None
    num_layers: Annotated[int | None, count_of("layers", "absent: the preset's", most=1000)] = None
    routers: Annotated[
        str, plain("uniform: as random weights are; paper: calibrated to the coverage of the paper's Table 1")
    ] = "uniform"

    def problems(self) -> Iterator[SpecError]:
        """Give choices that no model can be made of."""
        yield from bad_choice("routers", self.routers, ROUTERS)
        if self.num_layers is not None and self.num_layers < 1:
            return  # is told as a number out of range
        try:
            self.recipe()
        except ModelRecipeError as error:
            option = str(error).split()[0].removeprefix("--")
            yield SpecError(("num_layers" if option == "layers" else option,), str(error))

    def recipe(self) -> Recipe:
        """What `make_from_recipe` takes."""
        return find_recipe(**{key: value for key, value in asdict(self).items() if key != "routers"})


@dataclass(frozen=True, slots=True)
class ServerSpec(Checked):
    """Either `url`, or `model` with `flags` and `env`.

    `settings` are put in force on the running server before every repetition, by SGLang's
    `/set_internal_state`; specs that differ in nothing else share a server.
    """

    url: Annotated[str | None, plain("root of a running server's HTTP API")] = None
    model: Annotated[str | MakeModelSpec | None, plain("a model's folder, or a table: one to make here")] = (
        None
    )
    flags: Annotated[tuple[str, ...], plain("further words of the server's command line")] = ()
    env: Annotated[dict[str, str], plain("environment variables of the server")] = field(default_factory=dict)
    settings: Annotated[
        dict[str, float], plain("put in force by /set_internal_state before every repetition")
    ] = field(default_factory=dict)
    ready_timeout_s: Annotated[float, in_seconds("a server that does not answer by then is given up")] = 300.0

    def problems(self) -> Iterator[SpecError]:
        """Give fields that do not go together."""
        if self.url is None and self.model is None:
            yield SpecError(("model",), "is missing; give the model to serve, or the url of a running server")
        if self.url is not None:
            yield from self._attached(self.url)
        for index, word in enumerate(self.flags):
            if word.partition("=")[0] in OWN_FLAGS:
                yield SpecError(
                    ("flags", index),
                    f"{word!r} is set by the benchmark; remove it (the model goes into model)",
                )

    def _attached(self, url: str) -> Iterator[SpecError]:
        if not _is_address(url):
            yield SpecError(("url",), f"{url!r} is no address; give http://HOST:PORT")
        for name in ("model", "flags", "env"):
            if getattr(self, name):
                yield SpecError((name,), "a server at a url has its own; remove it or url")


def _is_address(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host)
