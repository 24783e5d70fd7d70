"""Drafts for prompts with images, in stock scheduling and beside cohorts, on one scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import SteppedScheduler
from image_prompts import Asked, Picture, Pictures
from prompts import prompt
from release_differences import embeddings_of_images
from sglang_layered.upstream.aux_states import KeptEmbeds

NUM_OUTPUTS = 24
SMALL, WIDE, LARGE = Picture(1, 100, 70), Picture(2, 300, 200), Picture(3, 480, 470)
AGAIN = (prompt(60, 3), WIDE, prompt(25, 4))  # a prefix that two prompts share
# The fourth's images lie across the ends of the chunks.
PROMPTS = (
    Asked((prompt(12, 1),)),
    Asked((prompt(20, 2), SMALL, prompt(9, 3))),
    Asked(AGAIN),
    Asked((prompt(70, 5), LARGE, prompt(25, 6), SMALL, prompt(30, 9))),
    Asked((*AGAIN, LARGE, prompt(30, 10))),
)


@dataclass
class Drafted:
    """Of each way: the tokens of all prompts, verified steps and drafts that were right."""

    tokens: dict[str, list[list[int]]]
    accepted: dict[str, tuple[int, int]]


def answers_of_hugging_face(model: Path) -> list[list[int]]:
    return Pictures(model).hugging_face(model, PROMPTS, NUM_OUTPUTS)


class ImageRun:
    """Prompts are each sent while those before them decode."""

    def __init__(self, model: Path, stepped: SteppedScheduler) -> None:
        self._pictures, self._stepped = Pictures(model), stepped
        self._found = Drafted({}, {})

    def check(self) -> Drafted:
        cut = {"layered_prefill": 1, "layered_num_groups": self._stepped.num_layers}
        self._run("stock", layered_prefill=0)
        self._run("one layer a group", **cut)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KeptEmbeds, "_forward", _losing)
            self._run("embeddings lost", **cut)
        self._one_leaves("alone", has_other=False, **cut)
        self._one_leaves("beside one that leaves", has_other=True, **cut)
        return self._found

    def _run(self, name: str, **settings: float) -> None:
        self._forget(**settings)
        rids = []
        for asked in PROMPTS:
            rids.append(self._send(asked))
            self._stepped.step(3)
        self._note(name, rids)

    def _one_leaves(self, name: str, *, has_other: bool, **settings: float) -> None:
        """A prompt of text, in a cohort with one with an image that leaves it."""
        self._forget(**settings)
        beside = self._stepped.send(prompt(20, 7), 2 * NUM_OUTPUTS)
        self._stepped.step(3)
        rids = [self._send(PROMPTS[0])]
        if has_other:
            leaves = self._send(PROMPTS[1])
            self._stepped.step_until(lambda: self._stepped.next_group == 3)
            self._stepped.abort(leaves)
        self._note(name, rids)
        self._stepped.finish(beside)

    def _send(self, asked: Asked) -> str:
        ids, extra = self._pictures.request(asked)
        return self._stepped.send(ids, NUM_OUTPUTS, **extra)

    def _forget(self, **settings: float) -> None:
        self._stepped.drain()
        assert self._stepped.change(settings)
        embeddings_of_images().clear()

    def _note(self, name: str, rids: list[str]) -> None:
        self._found.tokens[name] = [tokens[:NUM_OUTPUTS] for tokens in self._stepped.finish(*rids)]
        reqs = [self._stepped.reqs[rid] for rid in rids]
        num_right = sum(req.spec_num_correct_drafts for req in reqs)
        self._found.accepted[name] = (sum(req.spec_verify_ct for req in reqs), num_right)


def _losing(self: KeptEmbeds, batch, layers, rows, last, kwargs):  # type: ignore[no-untyped-def]
    """As without this code, but for what SGLang's draft asserts: zeros stand for the embeddings."""
    output = self._ranges.run(batch, layers.start, layers.end, rows, last=last, **kwargs)
    if last:
        output.mm_input_embeds = output.hidden_states.new_zeros(output.hidden_states.shape)
    return output
