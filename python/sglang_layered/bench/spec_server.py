"""The section [server] of a spec: a server to attach to, or one to start. Starts nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from sglang_layered.bench.spec_errors import SpecError, check_above, check_choice
from sglang_layered.errors import ModelRecipeError
from sglang_layered.models.catalogue import Recipe, find_recipe

OWN_FLAGS = ("--model-path", "--model", "--host", "--port")
ROUTERS = ("uniform", "paper")  # as random weights are, or calibrated to the coverage of the paper's Table 1


@dataclass(frozen=True, slots=True)
class MakeModelSpec:
    """A model with random weights, made on the spot as `sglang-layered make-model` does."""

    arch: str
    preset: str = "tiny"
    seed: int = 0
    dtype: str | None = None
    num_layers: int | None = None
    routers: str = "uniform"  # a key of ROUTERS

    def __post_init__(self) -> None:
        check_choice("routers", self.routers, ROUTERS)
        try:
            self.recipe()
        except ModelRecipeError as error:
            option = str(error).split()[0].removeprefix("--")
            raise SpecError(("num_layers" if option == "layers" else option,), str(error)) from error

    def recipe(self) -> Recipe:
        """What `make_from_recipe` takes."""
        return find_recipe(**{key: value for key, value in asdict(self).items() if key != "routers"})


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """Either `url`, or `model` with `flags` and `env`.

    `settings` are put in force on the running server before every repetition, by SGLang's
    `/set_internal_state`; specs that differ in nothing else share a server.
    """

    url: str | None = None  # root of a running server's HTTP API
    model: str | MakeModelSpec | None = None  # text: what --model-path takes
    flags: tuple[str, ...] = ()  # further words of the server's command line
    env: dict[str, str] = field(default_factory=dict)
    settings: dict[str, float] = field(default_factory=dict)
    ready_timeout_s: float = 300.0  # a server that does not answer by then is given up

    def __post_init__(self) -> None:
        check_above("ready_timeout_s", self.ready_timeout_s, "seconds")
        if self.url is None and self.model is None:
            raise SpecError(("model",), "is missing; give the model to serve, or the url of a running server")
        if self.url is not None:
            self._check_attached(self.url)
        for index, word in enumerate(self.flags):
            if word.partition("=")[0] in OWN_FLAGS:
                raise SpecError(
                    ("flags", index),
                    f"{word!r} is set by the benchmark; remove it (the model goes into model)",
                )

    def _check_attached(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise SpecError(("url",), f"{url!r} is no address; give http://HOST:PORT")
        for name in ("model", "flags", "env"):
            if getattr(self, name):
                raise SpecError((name,), "a server at a url has its own; remove it or url")
