"""What the layered loop holds between steps and hands to the runner in one."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors

from sglang_layered.core.choice import StepShape
from sglang_layered.core.cohort import Cohort
from sglang_layered.core.plan import LayerGroup
from sglang_layered.core.questions import SloClass


@dataclass(slots=True)
class InFlightCohort:
    """A cohort with its SGLang batch.

    `forward` is the cohort's own ForwardBatch, made at the first group and kept to the last, or made anew
    after requests have left; `parked` holds its rows' activations [prompt rows, hidden] between two groups.
    `has_begun` is True from the first launch on. `to_encode` are images that have not passed the encoder, a
    list for each step before the first group: no step has an encoder and a group. `has_run` is False after
    others have overtaken it, until it has run a group; `num_overtaken` counts them. On a pipeline stage a
    cohort of less `urgency` (precedence, is long) overtakes older ones. `urgent` are its requests' most
    urgent values, as a policy sees them, with what they were made of.
    """

    cohort: Cohort
    batch: ScheduleBatch
    forward: ForwardBatch | None = None
    parked: PPProxyTensors | None = None
    has_begun: bool = False
    has_run: bool = True
    num_overtaken: int = 0
    urgency: tuple[int, bool] = (0, False)
    urgent: tuple[SloClass, int, float, SloClass, int] | None = None
    to_encode: deque[list[Any]] = field(default_factory=deque)

    @property
    def reqs(self) -> list[Req]:
        """SGLang's request objects, in the batch's order."""
        return self.batch.reqs

    @property
    def aborted(self) -> list[Req]:
        """Requests that nobody waits for any more."""
        return [req for req in self.reqs if req.to_finish is not None]

    @property
    def leaving(self) -> list[Req]:
        """Those of them that can leave now.

        What a client gave in place of tokens is not cut with the rows, so layer 0 must have had it before
        some leave and others stay.
        """
        aborted = self.aborted
        return [] if self.to_encode and len(aborted) < len(self.reqs) else aborted

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt rows: tokens to compute, without those found in the prefix cache."""
        return self.batch.extend_num_tokens


@dataclass(frozen=True, slots=True)
class LayerGroupBatch:
    """One engine step: every running request through all layers, the cohort through one group.

    With `encodes` some of the cohort's images pass the encoder instead; the group comes after all of them.
    `parked` are the batches of cohorts that wait meanwhile.
    """

    decode: ScheduleBatch | None
    inflight: InFlightCohort
    group: LayerGroup
    encodes: bool = False
    parked: tuple[ScheduleBatch, ...] = ()

    def shape(self, rows_per_request: int) -> StepShape:
        """Sizes of the step, where a request that decodes has so many rows."""
        num_decode_rows = 0 if self.decode is None else len(self.decode.reqs) * rows_per_request
        return StepShape(num_decode_rows, self.inflight.num_prompt_tokens, self.group.num_layers)
