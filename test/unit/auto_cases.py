"""A machine whose step times are known, and a scheduler of one cohort at a time on it, for policy auto."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from sglang_layered.auto.policy import AutoPolicy
from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.core.pacing import Decision, DeviceRates, ModelSizes, PaceView, QueueView, Start, StepLoad

NUM_LAYERS = 24
LAYERS = (LayerShape(2_000_000, 32, 2, 1_000_000, attention_width=1024),) * NUM_LAYERS
SIZES = ModelSizes.of(NUM_LAYERS, LAYERS)
RATES = DeviceRates(byte_s=2e-11, flop_s=1e-12, layer_call_s=2e-5)
START = Start(RATES)

StepCost = Callable[[StepLoad], float]


def linear(load: StepLoad) -> float:
    """4 ms a step and 0.1 ms a decode row; a prompt row takes 20 us in all layers together."""
    part = load.prompt_layers / NUM_LAYERS
    return 4e-3 + 1e-4 * load.decode_rows + part * (2e-5 * load.prompt_rows + 1e-3 * bool(load.prompt_rows))


def with_jumps(load: StepLoad) -> float:
    """As linear, in steps of 256 prompt rows (tiles) and of 8 decode rows (graph sizes)."""
    rounded = StepLoad(
        -(-load.decode_rows // 8) * 8,
        load.decode_tokens,
        tuple(-(-rows // 256) * 256 for rows in load.prompt_lens),
        load.prefix_lens,
        load.prompt_layers,
    )
    return linear(rounded)


def noisy(seed: int, part: float = 0.03) -> StepCost:
    """As linear, a few per cent off each time."""
    dice = random.Random(seed)
    return lambda load: linear(load) * (1 + dice.uniform(-part, part))


def adversarial(seed: int) -> StepCost:
    """As linear; every twentieth step or so takes ten times as long."""
    dice = random.Random(seed)
    return lambda load: linear(load) * (10 if dice.random() < 0.05 else 1)


@dataclass
class Machine:
    """Runs prompts through a policy beside decodes that never end; remembers gaps and decisions."""

    policy: AutoPolicy
    cost: StepCost
    decode_rows: int = 4
    now_s: float = 100.0
    heard_s: float = 100.0
    gaps_s: list[float] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    @classmethod
    def with_limit(cls, limit_s: float | None, cost: StepCost, decode_rows: int = 4) -> Machine:
        policy = AutoPolicy(limit_s)
        policy.begin(SIZES, LAYERS, START)
        return cls(policy, cost, decode_rows)

    def due_s(self) -> float | None:
        limit_s = self.policy.tbt_limit_s
        return None if limit_s is None else self.heard_s + limit_s - self.now_s

    def run_step(self, load: StepLoad, is_paced: bool) -> None:
        took_s = self.cost(load)
        self.now_s += took_s
        self.policy.observe(load, took_s)
        self.gaps_s.append(self.now_s - self.heard_s)
        self.policy.observe_gap(self.gaps_s[-1], is_paced)
        self.heard_s = self.now_s

    def decode(self, times: int = 1) -> None:
        for _ in range(times):
            self.run_step(StepLoad(self.decode_rows, 500 * self.decode_rows), is_paced=False)

    def prompt(self, tokens: int, max_tokens: int = 8192) -> float:
        """Serve one prompt; gives its time to first token."""
        began_s, done = self.now_s, 0
        while done < tokens:
            view = QueueView(
                (tokens - done,), (done,), self.decode_rows, 500 * self.decode_rows, self.due_s(), max_tokens
            )
            rows = min(self.policy.cohort_tokens(view), tokens - done)
            self.cohort(rows, done)
            done += rows
        return self.now_s - began_s

    def cohort(self, rows: int, before: int) -> None:
        layer = 0
        while layer < NUM_LAYERS:
            load = StepLoad(self.decode_rows, 500 * self.decode_rows, (rows,), (before,))
            decision = self.policy.next_layers(PaceView(load, layer, self.due_s()))
            self.decisions.append(decision)
            layers = min(decision.layers, NUM_LAYERS - layer)
            done = SIZES.weight(layer, layer + layers)
            self.run_step(
                StepLoad(self.decode_rows, 500 * self.decode_rows, (rows,), (before,), done), is_paced=True
            )
            layer += layers
