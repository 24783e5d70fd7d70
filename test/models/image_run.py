"""Prompts with images under the layered loop, on a CPU: what `test_images.py` asks for, as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # SGLang compiles the encoder's rotary embedding: half a minute
sys.path[:0] = [str(Path(__file__).parents[1] / "runner"), str(Path(__file__).parents[1])]

from families_on_cpu import RECURRENT, use_references
from family_run import further_slots

use_references()

# ruff: noqa: E402
import pytest
import torch
from own_process import in_forks
from tiny_models import tiny_model

from family_checks import sequential
from harness import SteppedScheduler
from image_prompts import Asked, Picture, Pictures
from prompts import prompt
from release_differences import embeddings_of_images
from sglang_layered.core.events import StepDone
from sglang_layered.upstream import images

NUM_OUTPUTS = 10
NUM_GROUPS = 4
SMALL, WIDE, HIGH, LARGE = (
    Picture(1, 100, 70),
    Picture(2, 300, 200),
    Picture(3, 64, 480),
    Picture(4, 480, 470),
)
AGAIN = (prompt(60, 3), WIDE, prompt(25, 4))  # a prefix that two prompts share
PROMPTS = (
    Asked((prompt(12, 1),)),
    Asked((prompt(20, 2), SMALL, prompt(9, 3))),
    Asked(AGAIN),
    # Images lie across the ends of the chunks at 512 and 1024; one comes twice.
    Asked((prompt(420, 5), LARGE, prompt(250, 6), SMALL, prompt(30, 9), LARGE, prompt(20, 8))),
    Asked((*AGAIN, HIGH, prompt(30, 10))),
    Asked((SMALL, HIGH, prompt(4, 11))),
    Asked((prompt(77, 7),)),
)
NUM_ENCODER_STEPS = 2  # of this cohort, when the first image has been seen
COHORT = PROMPTS[5], Asked((prompt(30, 12),)), Asked((prompt(10, 13), WIDE, prompt(3, 14)))


class Run:
    """One scheduler; how often its encoder ran, and on how many images."""

    def __init__(self, arch: str, **flags: Any) -> None:
        self.model = tiny_model(arch)
        self.pictures = Pictures(self.model)
        self.stepped = SteppedScheduler(
            self.model,
            max_total_tokens=6000,
            layered_group_tokens=64,
            chunked_prefill_size=512,
            **flags | (states_kept(flags) if arch == "qwen3_5_moe" else {}),
        )
        self.encoded: list[int] = []
        encoder = self.stepped.scheduler.tp_worker.model_runner.model.visual
        encoder.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, encoder: Any, args: Any, kwargs: dict[str, Any], output: torch.Tensor) -> None:
        self.encoded.append(len(kwargs["grid_thw"]))

    def send(self, asked: Asked, num_outputs: int = NUM_OUTPUTS) -> str:
        ids, extra = self.pictures.request(asked)
        return self.stepped.send(ids, num_outputs, **extra)

    def forget(self, **settings: float) -> None:
        """Nothing is in the caches of KV and of embeddings."""
        self.stepped.drain()
        assert self.stepped.change(settings)
        embeddings_of_images().clear()
        self.encoded.clear()

    def answers(self, prompts: Sequence[Asked], **settings: float) -> dict[str, Any]:
        """Of prompts that are each sent while those before decode, and what was seen meanwhile."""
        self.forget(**settings)
        rids = []
        for asked in prompts:
            rids.append(self.send(asked))
            self.stepped.step(3)
        tokens = self.stepped.finish(*rids)
        return {
            "tokens": tokens,
            "cached": [self.stepped.reqs[rid].cached_tokens for rid in rids],
            "images": sum(self.encoded),
            "encoder_steps": self.kinds().count("encoder"),
            "layered_steps": self.kinds().count("layered"),
            "num_rows": max((e.num_prompt_rows for e in self.stepped.events if is_layered(e)), default=0),
        }

    def kinds(self) -> list[str]:
        return [event.kind for event in self.stepped.events if isinstance(event, StepDone)]

    def alone(self, asked: Sequence[Asked]) -> list[list[int]]:
        """What stock scheduling answers, one prompt at a time."""
        answers = []
        for one in asked:
            self.forget(layered_prefill=0)
            answers += self.stepped.finish(self.send(one))
        return answers

    @contextmanager
    def decoding(self) -> Iterator[str]:
        """A prompt with an image decodes beside what is sent inside."""
        self.forget(layered_prefill=1, layered_num_groups=NUM_GROUPS)
        rid = self.send(PROMPTS[1], 200)
        self.stepped.step(2)
        yield rid
        self.stepped.abort(rid)


def states_kept(flags: dict[str, Any]) -> dict[str, Any]:
    """How recurrent layers' states are kept for the prefix cache: with overlap as by default on a GPU."""
    return RECURRENT if flags["disable_overlap_schedule"] else further_slots()


def is_layered(event: Any) -> bool:
    return isinstance(event, StepDone) and event.kind == "layered"


def ways(run: Run) -> dict[str, Any]:
    """Stock, then layered mode in every way."""
    seen = {"stock": run.answers(PROMPTS, layered_prefill=0)}
    seen["groups"] = run.answers(PROMPTS, layered_prefill=1)
    seen["uneven"] = run.answers(PROMPTS, layered_num_groups=3)
    seen["one layer a group"] = run.answers(PROMPTS, layered_num_groups=run.stepped.num_layers)
    with sequential(run.stepped):
        seen["sequential"] = run.answers(PROMPTS, layered_num_groups=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings_of_images(), "max_size", 0)
        seen["no cache"] = run.answers(PROMPTS, layered_num_groups=3)
    return seen


def without_features(run: Run) -> dict[str, Any]:
    """The same with the features of early layers lost, as without this code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images.Deepstack, "run", lambda self, forward, end, rows: forward())
        return run.answers(PROMPTS, layered_prefill=1, layered_num_groups=3)


def encoder_step(run: Run) -> dict[str, Any]:
    """One cohort of three prompts, two with images, step by step."""
    with run.decoding() as neighbour:
        req, stepped = run.stepped.reqs[neighbour], run.stepped
        run.encoded.clear()
        rids, steps = [run.send(asked) for asked in COHORT], []
        before, heard = len(req.output_ids), len(stepped.events)
        for _ in range(NUM_ENCODER_STEPS + NUM_GROUPS):
            stepped.step()
            steps.append([sum(run.encoded), stepped.next_group])
        stepped.loop.settle()
        kinds = [event.kind for event in stepped.events[heard:] if isinstance(event, StepDone)]
        return {
            "steps": steps,
            "kinds": kinds[-NUM_ENCODER_STEPS - NUM_GROUPS :],
            "neighbour": len(req.output_ids) - before,
            "tokens": stepped.finish(*rids),
        }


def leaving(run: Run) -> list[dict[str, Any]]:
    """Each request of a cohort is aborted after each number of steps, and so are all."""
    cases = []
    for num_steps in range(NUM_ENCODER_STEPS + NUM_GROUPS):
        for gone in ([0], [1, 2], [0, 1, 2]):
            with run.decoding():
                rids = [run.send(asked) for asked in COHORT]
                run.stepped.step(num_steps)
                for index in gone:
                    run.stepped.abort(rids[index])
                stay = [index for index in range(len(rids)) if index not in gone]
                tokens = run.stepped.finish(*(rids[index] for index in stay))
                cases.append({"steps": num_steps, "stay": stay, "tokens": tokens})
    return cases


def dropped(run: Run) -> list[dict[str, Any]]:
    """All requests are retracted after each number of steps and go on later, those that decode as well."""
    cases = []
    for num_steps in range(NUM_ENCODER_STEPS + NUM_GROUPS + 2):
        run.forget(layered_prefill=1, layered_num_groups=NUM_GROUPS)
        neighbour = run.send(PROMPTS[1])
        run.stepped.step(3)
        rids = [neighbour, *(run.send(asked) for asked in COHORT)]
        run.stepped.step(num_steps)
        run.stepped.pause("retract")
        run.stepped.resume()
        cases.append({"steps": num_steps, "tokens": run.stepped.finish(*rids)})
    return cases


def begun_before(run: Run) -> dict[str, Any]:
    """A prompt that finds the first chunk of an aborted one: the prefix ends inside an image."""
    with run.decoding():
        first = run.send(PROMPTS[3])
        req = run.stepped.reqs[first]
        run.stepped.step_until(lambda: len(req.prefix_indices) == 512 and run.stepped.next_group == 1)
        run.stepped.abort(first)
        run.stepped.step(2)
        run.encoded.clear()
        rid = run.send(PROMPTS[3])
        [tokens] = run.stepped.finish(rid)
        return {"cached": run.stepped.reqs[rid].cached_tokens, "tokens": tokens, "images": sum(run.encoded)}


def other_pictures(run: Run) -> list[list[int]]:
    """Two prompts whose images alone differ, one after the other in one cache."""
    run.forget(layered_prefill=1, layered_num_groups=3)
    answers = []
    for seed in (2, 20):
        with_picture = Asked((prompt(60, 3), Picture(seed, 300, 200), prompt(25, 4)))
        answers += run.stepped.finish(run.send(PROMPTS[0], 30), run.send(with_picture))[1:]
    return answers


def found_of(arch: str, flags: dict[str, Any]) -> dict[str, Any]:
    """What is found with one scheduler."""
    model = tiny_model(arch)
    # First: once SGLang keeps states in further slots here, Hugging Face's model is no oracle any more.
    found: dict[str, Any] = {"hugging face": Pictures(model).hugging_face(model, PROMPTS, NUM_OUTPUTS)}
    run = Run(arch, **flags)
    found |= {"ways": ways(run), "without features": without_features(run)}
    found["alone"] = run.alone((PROMPTS[1], *COHORT))
    found["begun before"], found["other pictures"] = begun_before(run), other_pictures(run)
    found["encoder step"] = encoder_step(run)
    found["leaving"], found["dropped"] = leaving(run), dropped(run)
    run.stepped.drain()
    return found


def main() -> None:
    out, flags, *archs = sys.argv[1:]
    found = in_forks({arch: partial(found_of, arch, json.loads(flags)) for arch in archs})
    Path(out).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
