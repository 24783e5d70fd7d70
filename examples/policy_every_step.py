r"""A policy for every step: it learns what a row costs in a layer, and goes as far as a limit allows.

PYTHONPATH=examples .venv/bin/python -m sglang.launch_server --model-path MODEL --prefill-mode layered \
    --layered-policy policy_every_step:EveryStep --slo-tbt-ms 50 --layered-calibration-file rows.json
"""

from collections.abc import Mapping, Sequence

from sglang_layered.hooks import (
    Capability,
    Decision,
    LayerGroupPlan,
    LayerShape,
    ModelSizes,
    PaceView,
    QueueView,
    SchedulerView,
    Start,
    StepLoad,
)

FORGET = 0.9  # of what was known, a step
ROOM = 0.8  # of the time until a token is due that a step may fill


class EveryStep:
    """Says in `can` what it wants to be asked and told; of each capability it has all methods."""

    can = frozenset({Capability.LEARNS, Capability.KEEPS_TBT_LIMIT, Capability.PACES_STEPS})
    amounts = ("layer_row_s",)

    def __init__(self) -> None:
        self.limit_s: float | None = None
        self.layer_row_s = 0.0  # seconds of one row in one layer; 0 until a step was seen
        self.num_layers = 1
        self.longest_gap_s = 0.0

    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        """Where a cohort starts: all layers at once. Each decision cuts what is left anew."""
        return LayerGroupPlan.whole(view.num_layers)

    def begin(self, sizes: ModelSizes, layers: Sequence[LayerShape], start: Start) -> None:
        """Take up what an earlier server had learned."""
        self.num_layers = sizes.num_layers
        if start.learned is not None:
            (self.layer_row_s,) = start.learned["layer_row_s"]

    def keep_tbt_limit(self, limit_s: float | None) -> None:
        """`--slo-tbt-ms`, or what an operator changed it to."""
        self.limit_s = limit_s

    def cohort_tokens(self, view: QueueView) -> int:
        """As many as the server allows."""
        return view.max_tokens

    def next_layers(self, view: PaceView) -> Decision:
        """The most that fit before a token is due; at least one layer, or the cohort would stand still."""
        left, layer_s = self.num_layers - view.done_layers, self.layer_row_s * view.load.prompt_rows
        decode_s = self.layer_row_s * view.load.decode_rows * self.num_layers
        if self.limit_s is None or view.due_s is None or layer_s == 0:
            return Decision(left, decode_s + left * layer_s, float("inf"), fits=True)
        budget_s = ROOM * view.due_s
        fitting = min(int((budget_s - decode_s) / layer_s), left)
        layers = max(fitting, 1)
        return Decision(layers, decode_s + layers * layer_s, budget_s, fits=fitting >= 1)

    def prompt_s(self, num_tokens: int) -> float:
        """How long a prompt takes alone."""
        return self.layer_row_s * num_tokens * self.num_layers

    def observe(self, load: StepLoad, duration_s: float) -> float:
        """Learn from a step; gives what was predicted."""
        layer_rows = load.decode_rows * self.num_layers + load.prompt_rows * load.prompt_layers
        predicted_s = self.layer_row_s * layer_rows
        forget = FORGET if self.layer_row_s else 0.0
        self.layer_row_s = forget * self.layer_row_s + (1 - forget) * duration_s / max(layer_rows, 1)
        return predicted_s

    def learned(self) -> Mapping[str, Sequence[float]]:
        """What goes into the calibration file, under the names in `amounts`."""
        return {"layer_row_s": [self.layer_row_s]}

    def observe_gap(self, gap_s: float, was_planned: bool) -> None:
        """Remember the longest gap that a step of ours made."""
        if was_planned:
            self.longest_gap_s = max(self.longest_gap_s, gap_s)
