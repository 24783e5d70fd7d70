"""A spec's load as requests to send: what is read once, what is planned anew for each repetition."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang_layered_lab.bench.arrivals import arrival_times, measuring_window, read_timestamps
from sglang_layered_lab.bench.client_data import PlannedRequest
from sglang_layered_lab.bench.lengths import LengthSource, load_lengths
from sglang_layered_lab.bench.spec import BenchSpec, MakeModelSpec
from sglang_layered_lab.bench.spec_errors import SpecError, gathered, raise_all
from sglang_layered_lab.bench.workload import Server, Workload, sizes_of
from sglang_layered_lab.models.router_topics import topics_of


@dataclass(frozen=True, slots=True)
class Load:
    """What of a spec is read once: lengths and, for a replayed trace, its times."""

    spec: BenchSpec
    lengths: LengthSource
    timestamps: tuple[float, ...]

    @classmethod
    def of(cls, spec: BenchSpec) -> "Load":
        """Read the spec's files; a dry run and a run refuse the same.

        Raises:
            SpecError: a file or the model is bad, or the load cannot be planned.
        """
        errors: list[SpecError] = []
        with gathered(errors):
            stamps = read_timestamps(spec.load.trace, spec.folder) if spec.load.trace else ()
        with gathered(errors):
            lengths = load_lengths(spec.workload.lengths, spec.folder)
        with gathered(errors):
            _check_model(spec)
        raise_all(errors)
        return cls(spec, lengths, tuple(stamps))

    def due_s(self, repetition: int) -> tuple[float, ...]:
        """Due times of a repetition's requests in s since its zero, in order; see `arrival_times`.

        Of a closed load the first ones are the clients' starts; the others follow an end.

        Raises:
            SpecError: none of them would be measured.
        """
        load = self.spec.load
        times = arrival_times(load, self.spec.run.seed, repetition=repetition, timestamps=self.timestamps)
        if load.is_closed:
            return (*times, *[max(times)] * ((load.num_requests or 0) - len(times)))
        measuring_window(load, times)  # one that holds nothing is told before the load, not after it
        return times

    def planned(self, repetition: int, server: Server) -> list[PlannedRequest]:
        """The requests of one repetition, in the order in which they are due.

        Raises:
            SpecError: nothing would be measured, the prompts are too long, or not for this model.
        """
        due_s = self.due_s(repetition)
        workload = Workload(self.spec, self.lengths, server, repetition)
        sizes_of(self.spec, self.lengths, repetition, len(due_s))
        planned, short = [], self.spec.workload.short
        for index, time_s in enumerate(due_s):
            content = workload.request(index)
            name = f"{self.spec.run.name}-{repetition}-{index}"
            sampling = short.sampling(content.prompt_tokens) if short else {}
            planned.append(PlannedRequest(name, time_s, content.prompt, content.output_tokens, sampling))
        return planned

    def background(self, repetition: int, server: Server) -> list[PlannedRequest]:
        """The streams that decode beside one repetition's requests."""
        asked = self.spec.load.background
        if asked is None:
            return []
        workload = Workload(self.spec, self.lengths, server, repetition)
        name = f"{self.spec.run.name}-{repetition}-beside"
        prompts = [workload.background(index, asked.prompt_tokens) for index in range(asked.num_streams)]
        return [
            PlannedRequest(f"{name}-{index}", 0.0, prompt, asked.output_tokens)
            for index, prompt in enumerate(prompts)
        ]

    def window_s(self, sent_s: Sequence[float], repetition: int) -> tuple[float, float]:
        """Range of due times that are measured; of a closed load it is laid over the times of sending."""
        load = self.spec.load
        return measuring_window(load, sent_s if load.is_closed else self.due_s(repetition))


def vocab_size_of(folder: Path) -> int:
    """How many token ids the model in a folder has.

    Raises:
        SpecError: it holds no model.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return int(config.get("text_config", config)["vocab_size"])
    except OSError as error:
        problem = f"{folder} holds no config.json; give a folder with a model"
        raise SpecError("server.model", problem) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError("server.model", f"{path} does not say vocab_size ({error!r}); correct it") from error


def _check_model(spec: BenchSpec) -> None:
    """Refuse a model that is not there, or that cannot give what the workload asks of it."""
    model, asked = spec.server.model, spec.workload
    if model is None:
        return
    if isinstance(model, MakeModelSpec):
        vocab_size = model.recipe().vocab_size
    else:
        vocab_size = vocab_size_of(Path(model))
        if asked.topics and not topics_of(Path(model)):
            raise SpecError("workload.topics", "the model has none; calibrate its routers, or remove it")
    if asked.vocab is not None and asked.vocab[1] > vocab_size:
        raise SpecError("workload.vocab", f"the model has {vocab_size} token ids; stay below that")
