"""The spec of a benchmark run: one TOML file, checked as a whole before anything starts.

`spec_load` holds what is sent; `arrivals` and `workload` draw from it. Starts nothing.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, field, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, Strict
from pydantic.dataclasses import dataclass

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.bench import spec_keys as of
from sglang_layered_lab.bench.spec_errors import Keys, SpecError, located, read_toml
from sglang_layered_lab.bench.spec_load import LoadSpec, WorkloadSpec
from sglang_layered_lab.models.catalogue import Recipe, find_recipe

ADDRESS = re.compile(r"https?://(\[[^\]/]+\]|[^\s/:?#\[]+)(:\d+)?(/|$)")
OWN_FLAGS = ("--model-path", "--model", "--host", "--port")


@dataclass(frozen=True)
class MakeModelSpec(of.Section):
    """A model with random weights, made on the spot as `sglang-layered make-model` does."""

    arch: Annotated[str, "as of make-model"]
    preset: Annotated[str, "as of make-model"] = "tiny"
    seed: Annotated[of.Seed, "of the weights"] = 0
    dtype: Annotated[str | None, "of the weights; absent: the preset's"] = None
    num_layers: Annotated[of.Few | None, "absent: the preset's"] = None
    draftable: Annotated[bool, "as of make-model: drafts can guess its tokens"] = False
    routers: Annotated[
        Literal["uniform", "paper"], "uniform, or paper: calibrated to the paper's Table 1"
    ] = "uniform"

    def problems(self) -> Iterator[tuple[Keys, str]]:
        """Give choices that no model can be made of."""
        try:
            self.recipe()
        except ModelRecipeError as error:
            option = str(error).split()[0].removeprefix("--")
            yield "num_layers" if option == "layers" else option, str(error)

    def recipe(self) -> Recipe:
        """What `make_from_recipe` takes."""
        return find_recipe(**{key: value for key, value in asdict(self).items() if key != "routers"})


def _folder_or_table(value: Any) -> Any:
    if isinstance(value, Mapping):
        return of.checked(MakeModelSpec, value)
    if value is None or isinstance(value, str | MakeModelSpec):
        return value
    raise SpecError((), f"{value!r} is no model; give text in quotes or a table")


@dataclass(frozen=True)
class ServerSpec(of.Section):
    """Either `url`, or `model` with `flags` and `env`.

    `settings` are put in force on the running server before every repetition, by SGLang's
    `/set_internal_state`; specs that differ in nothing else share a server.
    """

    url: Annotated[str | None, "root of a running server's HTTP API"] = None
    model: Annotated[
        str | MakeModelSpec | None,
        PlainValidator(_folder_or_table),
        "a model's folder, or a table: one to make here",
    ] = None
    flags: Annotated[tuple[str, ...], "further words of the server's command line"] = ()
    env: Annotated[dict[str, str], "its environment variables"] = field(default_factory=dict)
    python: Annotated[str | None, "the interpreter that serves, of another environment; absent: this one"] = (
        None
    )
    settings: Annotated[dict[str, of.Number], "put in force before every repetition"] = field(
        default_factory=dict
    )
    ready_timeout_s: Annotated[of.Seconds, "a server that does not answer by then is given up"] = 300.0

    def problems(self) -> Iterator[tuple[Keys, str]]:
        """Give fields that do not go together."""
        if self.url is None and self.model is None:
            yield "model", "is missing; give the model to serve, or the url of a running server"
        if self.url is not None and not ADDRESS.match(self.url):
            yield "url", f"{self.url!r} is no address; give http://HOST:PORT"
        for name in ("model", "flags", "env", "python"):
            if self.url is not None and getattr(self, name):
                yield name, "a server at a url has its own; remove it or url"
        for index, word in enumerate(self.flags):
            if word.partition("=")[0] in OWN_FLAGS:
                problem = f"{word!r} is set by the benchmark; remove it (the model goes into model)"
                yield ("flags", index), problem


@dataclass(frozen=True)
class SloSpec(of.Section):
    """Limits that requests are counted against; docs/metrics.md says when a request meets them."""

    ttft_ms: Annotated[of.Milliseconds | None, "of the time to first token"] = None
    tbt_ms: Annotated[of.Milliseconds | None, "of every gap between tokens"] = None


@dataclass(frozen=True)
class RunSpec(of.Section):
    """The run as a whole."""

    name: Annotated[of.FileName, "names the record"]
    repetitions: Annotated[of.Few, "passes over the load, with other prompts in each"] = 1
    seed: Annotated[of.Seed, "of arrivals, and of the workload where it has none"] = 0
    timeout_s: Annotated[of.Seconds, "a repetition is cut off this long after its zero"] = 600.0


@dataclass(frozen=True)
class BenchSpec(of.Section):
    """One benchmark run. `folder` is where relative files of the spec start; it is no part of the record."""

    run: RunSpec
    server: ServerSpec
    load: LoadSpec
    workload: WorkloadSpec
    slo: SloSpec = SloSpec()
    folder: Annotated[Path, Strict(), Field(exclude=True)] = field(default=Path("."), compare=False)

    def problems(self) -> Iterator[tuple[Keys, str]]:
        """Give fields of different sections that do not go together."""
        for name in ("duration_s", "warmup_s"):
            limit_s = getattr(self.load, name)
            if limit_s is not None and limit_s >= self.run.timeout_s:
                end = f"{self.run.timeout_s:g} s end the run before load.{name} = {limit_s:g}"
                yield "run.timeout_s", f"{end}; give more"
        model, asked = self.server.model, self.workload
        if isinstance(model, MakeModelSpec) and asked.topics and model.routers != "paper":
            yield "workload.topics", "the model has none; set server.model.routers = 'paper', or remove it"
        if self.server.url is None:
            return
        if asked.topics:
            yield "workload.topics", "a url does not tell them; remove it and give vocab"
        elif asked.vocab is None:
            yield (
                "workload.vocab",
                "is missing; a server at a url does not say how many token ids its model has: give"
                " [first id, id after the last]",
            )
        if asked.inputs == "text":
            problem = "'text' needs the model's tokenizer, which a url does not give; use 'ids'"
            yield "workload.inputs", problem

    @property
    def workload_seed(self) -> int:
        """Seed of lengths and contents."""
        return self.run.seed if self.workload.seed is None else self.workload.seed

    def to_json(self) -> dict[str, Any]:
        """JSON values of all fields but unset ones; absolute paths lose their folders."""
        values: dict[str, Any] = _public(asdict(self))
        del values["folder"]
        return values


def spec_from(values: Mapping[str, Any], folder: Path = Path(".")) -> BenchSpec:
    """Make a spec of plain values, such as `to_json` gives; `folder` is where its relative files start.

    Raises:
        SpecError: it names the key and the remedy.
    """
    spec: BenchSpec = of.checked(BenchSpec, values)
    return replace(spec, folder=folder)


def read_spec(path: Path) -> BenchSpec:
    """Read a spec file.

    Raises:
        BenchError: `FILE:LINE: KEY: what is wrong; remedy`, a line for each thing that is wrong.
    """
    with located(path):
        return spec_from(read_toml(path), path.parent)


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _public(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_public(each) for each in value]
    if isinstance(value, str):
        return "=".join(_without_folder(part) for part in value.split("="))
    return value


def _without_folder(text: str) -> str:
    path = PurePosixPath(text)
    return path.name if path.is_absolute() else text
