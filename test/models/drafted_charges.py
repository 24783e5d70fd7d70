"""Bytes of experts that requests with drafts are charged, as SGLang hands them on with their tokens."""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.managers.io_struct import unwrap_from_pickle

from harness import SteppedScheduler
from prompts import prompt

ASK = {"custom_params": {"layered_report": True}}


@dataclass(frozen=True)
class Charged:
    """How many tokens and values each message to the detokenizer had; bytes in them, and counted."""

    tokens: list[int]
    values: list[int]
    handed_on: int
    counted: int


def charged(stepped: SteppedScheduler, num_outputs: int) -> Charged:
    """One request decodes, another one's prompt comes beside it in layer groups; both ask."""
    stepped.drain()
    assert stepped.change({"layered_prefill": 1, "layered_num_groups": stepped.num_layers})
    before = counted(stepped)
    rids = [stepped.send(prompt(20, 5), num_outputs, sampling=ASK)]
    stepped.step(3)
    rids.append(stepped.send(prompt(90, 6), num_outputs, sampling=ASK))
    stepped.finish(*rids)
    stepped.step_until(stepped.scheduler.is_fully_idle)
    parts = [
        part
        for output in stepped.detokenizer.sent
        for part in zip(
            output.output_ids, unwrap_from_pickle(output.customized_info)["expert_bytes"], strict=True
        )
    ]
    return Charged(
        [len(tokens) for tokens, _ in parts],
        [len(values) for _, values in parts],
        sum(sum(values) for _, values in parts),
        counted(stepped) - before,
    )


def counted(stepped: SteppedScheduler) -> int:
    """Bytes of experts that the server has counted; none of a dense model."""
    observer = getattr(stepped.scheduler, "layered_observer", None)
    return 0 if observer is None else sum(observer.state()["expert_traffic"]["load_bytes"].values())
