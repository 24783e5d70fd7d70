"""Traces: written by the listener, read back, explained, and replayed with another policy."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner

from auto_cases import NUM_LAYERS, SIZES, linear
from sglang_layered.auto.step_times import StepTimes
from sglang_layered.cli.main import cli
from sglang_layered.core.capability import Capability
from sglang_layered.core.events import Event, ServingStarted, StepDone
from sglang_layered.core.pacing import Decision, Option, StepLoad
from sglang_layered.core.plan import LayerGroup, LayerGroupPlan
from sglang_layered.core.policy import FixedCountPolicy, GroupPolicy
from sglang_layered.core.questions import Snapshot
from sglang_layered.core.view import SchedulerView
from sglang_layered.errors import BenchError
from sglang_layered.listeners.jsonl import JsonlListener
from sglang_layered_lab.traces.explain import explain_table, summary
from sglang_layered_lab.traces.replay import Replay, Request, requests_of, served_of
from sglang_layered_lab.traces.run_model import RunModel
from sglang_layered_lab.traces.trace import TracedStep, read_trace

DECISION = Decision(
    3, 0.011, 0.012, True, Option(4096, 3, 0.011, 0.09, True), Option(64, 24, 0.05, 0.2, False)
)


class Server:
    """Serves prompts by hand on the linear machine, and writes the trace that a real server would."""

    def __init__(self, policy: GroupPolicy, path: Path) -> None:
        self.policy, self.now_s, self.number = policy, 10.0, 0
        self.running: dict[str, tuple[int, int]] = {}  # tokens so far, context
        self.listener = JsonlListener(str(path))
        self.emit(ServingStarted(0, self.now_s, "by hand", 8192, SIZES))

    def emit(self, event: Event) -> None:
        self.listener.on_event(event)

    def step(
        self, prompt: dict[str, int], group: LayerGroup | None, index: int, count: int, arrived_s: float
    ) -> None:
        layers = 0 if not prompt else (group.num_layers if group else NUM_LAYERS)
        context = sum(context for _, context in self.running.values())
        load = StepLoad(
            len(self.running), context, tuple(prompt.values()), (0,) * len(prompt), SIZES.weight(0, layers)
        )
        start_s, took_s = self.now_s, linear(load)
        self.now_s += took_s
        self.number += 1
        self.running = {name: (tokens + 1, context + 1) for name, (tokens, context) in self.running.items()}
        kind = "decode" if not prompt else "layered" if group else "prefill"
        self.emit(
            StepDone(
                self.number, self.now_s, kind, start_s, took_s,
                num_decode_rows=load.decode_rows, num_prompt_rows=load.prompt_rows,
                decode={name: tokens for name, (tokens, _) in self.running.items()},
                prompt=prompt, group=group, group_index=index, num_groups=count,
                arrived_s=dict.fromkeys(prompt, arrived_s), load=load,
                decision=DECISION if kind == "layered" else None,
            )
        )  # fmt: skip

    def prompt(self, name: str, tokens: int, arrived_s: float) -> None:
        while self.running and self.now_s < arrived_s:
            self.decode(1)
        if not self.running:
            self.step({name: tokens}, None, 0, 1, arrived_s)
        else:
            plan = self.policy.plan(SchedulerView(NUM_LAYERS, (tokens,)))
            for index, group in enumerate(plan.groups):
                self.step({name: tokens}, group, index, plan.num_groups, arrived_s)
        self.running[name] = (1, tokens)

    def decode(self, times: int) -> None:
        for _ in range(times):
            self.step({}, None, 0, 1, 0.0)

    def end(self, name: str) -> None:
        del self.running[name]


def serve(policy: GroupPolicy, path: Path) -> Path:
    server = Server(policy, path)
    server.prompt("long", 300, 10.0)
    for place, tokens in enumerate((1000, 2500, 400, 4000, 1500)):
        server.prompt(f"p{place}", tokens, 10.3037 + 0.4003 * place)
        server.decode(5 + place)
        server.end(f"p{place}")
    server.decode(3)
    server.listener.close()
    return path


def ttfts(served: dict[str, Request], names: Iterable[str]) -> list[float]:
    return [served[name].ttft_s for name in names]


@pytest.mark.parametrize("recorded, wanted", [(8, 2), (2, 12), (4, 4)])
def test_another_policys_times_are_predicted_from_a_recorded_run(
    tmp_path: Path, recorded: int, wanted: int
) -> None:
    trace = read_trace(serve(FixedCountPolicy(recorded), tmp_path / "a.jsonl"))
    truth = served_of(read_trace(serve(FixedCountPolicy(wanted), tmp_path / "b.jsonl")).steps)
    model = RunModel.of(trace.steps, trace.sizes)
    found = Replay(model, FixedCountPolicy(wanted)).run(requests_of(trace.steps))
    assert found.keys() == truth.keys()
    names = [f"p{place}" for place in range(5)]
    assert ttfts(found, names) == pytest.approx(ttfts(truth, names), rel=0.05)
    worst = [max(served["long"].gaps_s) for served in (found, truth)]
    assert worst[0] == pytest.approx(worst[1], rel=0.05)


def test_another_runs_slower_machine_is_found_and_taken_into_account(tmp_path: Path) -> None:
    trace = read_trace(serve(FixedCountPolicy(4), tmp_path / "a.jsonl"))
    slower = [replace(each, duration_s=1.3 * each.duration_s) for each in trace.steps]
    model = RunModel.of(trace.steps, trace.sizes)
    same, as_it_was = model.at_speed_of(trace.steps)
    slow, factor = model.at_speed_of(slower)
    assert as_it_was == pytest.approx(1) and factor == pytest.approx(1.3)
    for each in trace.steps:
        assert slow.step_s(each.load) == pytest.approx(1.3 * same.step_s(each.load))


def test_steps_of_a_machine_that_was_slow_for_a_while_take_in_sum_what_they_took(tmp_path: Path) -> None:
    steps = list(read_trace(serve(FixedCountPolicy(4), tmp_path / "a.jsonl")).steps)
    for place in range(len(steps) // 3):
        steps[place] = replace(steps[place], duration_s=1.4 * steps[place].duration_s)
    model = RunModel.of(steps, SIZES)
    for is_prompt in (False, True):
        mine = [each for each in steps if bool(each.load.prompt_rows) == is_prompt]
        assert sum(model.step_s(each.load) for each in mine) == pytest.approx(
            sum(each.duration_s for each in mine)
        )


def test_a_trace_of_requests_with_drafts_is_refused(tmp_path: Path) -> None:
    """They get several tokens in a step; a replay that gives them one would take that many times as long."""
    steps = list(read_trace(serve(FixedCountPolicy(4), tmp_path / "a.jsonl")).steps)
    place = next(place for place in range(1, len(steps)) if steps[place - 1].decode)
    more = {name: tokens + 2 for name, tokens in steps[place].decode.items()}
    steps[place] = replace(steps[place], decode=more)
    with pytest.raises(BenchError, match=r"gave a request 3 tokens, .*; record a trace without"):
        RunModel.of(steps, SIZES)


def test_a_compressed_trace_is_read_as_well(tmp_path: Path) -> None:
    path = serve(FixedCountPolicy(4), tmp_path / "a.jsonl")
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_trace(packed) == read_trace(path)
    packed.write_bytes(b"no gzip")
    with pytest.raises(BenchError, match="no trace"):
        read_trace(packed)


def test_requests_and_their_tokens_are_read_back(tmp_path: Path) -> None:
    trace = read_trace(serve(FixedCountPolicy(4), tmp_path / "a.jsonl"))
    requests = {request.request_id: request for request in requests_of(trace.steps)}
    assert {name: request.prompt_tokens for name, request in requests.items()} == {
        "long": 300, "p0": 1000, "p1": 2500, "p2": 400, "p3": 4000, "p4": 1500,
    }  # fmt: skip
    assert [requests[f"p{place}"].output_tokens for place in range(5)] == [6, 7, 8, 9, 10]
    served = served_of(trace.steps)
    assert [len(served[name].tokens_s) for name in requests] == [r.output_tokens for r in requests.values()]


def test_a_cohort_whose_decodes_end_runs_its_rest_at_once() -> None:
    class TwoLayers:
        def plan(self, view: SchedulerView) -> LayerGroupPlan:
            return LayerGroupPlan.even(view.num_layers, view.num_layers // 2)

    first = TracedStep(
        1, 1.1, "prefill", 1.0, 0.1, {}, {"a": 100}, {"a": 0.9}, StepLoad(0, 0, (100,), (0,), NUM_LAYERS)
    )
    second = TracedStep(
        2, 1.3, "layered", 1.1, 0.2, {"a": 2}, {"b": 800}, {"b": 1.05},
        StepLoad(1, 100, (800,), (0,), NUM_LAYERS), (0, NUM_LAYERS),
    )  # fmt: skip
    served = Replay(RunModel.of([first, second], SIZES), TwoLayers()).run(requests_of([first, second]))
    assert len(served["a"].tokens_s) == 2 and len(served["b"].tokens_s) == 1
    assert served["b"].tokens_s[0] > served["a"].tokens_s[1]


def test_explain_prints_each_decision(tmp_path: Path) -> None:
    path = serve(FixedCountPolicy(4), tmp_path / "a.jsonl")
    steps = read_trace(path).steps
    assert explain_table(steps).row_count == 4 * 5
    assert "20 decisions: 0 without room" in summary(steps)
    result = CliRunner().invoke(cli, ["explain", str(path)])
    assert result.exit_code == 0, result.output
    assert "24 layers of 64 tokens" in result.output and "fits" in result.output


def test_replay_prints_recorded_predicted_and_measured(tmp_path: Path) -> None:
    recorded = serve(FixedCountPolicy(8), tmp_path / "a.jsonl")
    other = serve(FixedCountPolicy(2), tmp_path / "b.jsonl")
    args = ["replay", str(recorded), "--num-groups", "2", "--against", str(other)]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    assert "recorded: by hand" in result.output and "measured: by hand" in result.output
    result = CliRunner().invoke(cli, ["replay", str(recorded), "--policy", "auto", "--slo-tbt-ms", "20"])
    assert result.exit_code == 0, result.output
    assert "auto(20 ms)" in result.output


@pytest.mark.parametrize(
    "text, reason",
    [("", "no start of a server"), ("{}", "no trace"), ("nonsense", "no trace")],
    ids=["empty", "no event", "no json"],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(BenchError, match=reason):
        read_trace(path)


class Plans:
    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        return LayerGroupPlan.even(view.num_layers, 4)


class LastFirst(Plans):
    can = frozenset({Capability.ORDERS_QUEUE})

    def order(self, view: Snapshot) -> list[int]:
        return [len(view.waiting) - 1]


class Holds(Plans):
    can = frozenset({Capability.HOLDS_PROMPTS})

    def hold(self, view: Snapshot) -> float:
        return 0.0 if len(view.waiting) >= 2 else 10.0


class OneSitsOut(Plans):
    can = frozenset({Capability.CHOOSES_DECODES})

    def decode_rows(self, view: Snapshot) -> list[int]:
        assert all(view.running.since_token_s >= 0) and all(view.running.output_tokens >= 1)
        return list(range(1, len(view.running)))


def replayed(policy: GroupPolicy, *prompts: tuple[str, float, int]) -> dict[str, Request]:
    """On a machine that takes a tenth of a second a step, beside two streams."""
    model = RunModel(SIZES, cast("StepTimes", Tenth()), 0.0, 0)
    streams = [Request(name, 0.0, 10, output_tokens=400) for name in ("a", "b")]
    return Replay(model, policy).run(
        [*streams, *(Request(name, at_s, tokens) for name, at_s, tokens in prompts)]
    )


class Tenth:
    def predict(self, amounts: object) -> float:
        return 0.1


def test_a_replay_asks_in_which_order_prompts_are_admitted() -> None:
    prompts = [(name, 1.0, 100) for name in ("x", "y", "z")]
    served = replayed(LastFirst(), *prompts)
    ttfts_s = [served[name].ttft_s for name in ("z", "y", "x")]
    assert ttfts_s == sorted(ttfts_s) and len(set(ttfts_s)) == 3
    same = replayed(Plans(), *prompts)
    assert len({same[name].ttft_s for name in "xyz"}) == 1


def test_a_replay_holds_prompts_up_to_the_cap() -> None:
    first, second = (replayed(Holds(), ("x", 1.0, 100), *others)["x"] for others in ((), [("y", 1.55, 100)]))
    plain = replayed(Plans(), ("x", 1.0, 100))["x"]
    assert plain.ttft_s + 0.9 < first.ttft_s < plain.ttft_s + 1.2
    assert plain.ttft_s + 0.4 < second.ttft_s < plain.ttft_s + 0.7


def test_a_replay_lets_requests_sit_out() -> None:
    served = replayed(OneSitsOut(), ("x", 1.0, 100))
    plain = replayed(Plans(), ("x", 1.0, 100))
    assert max(plain["a"].gaps_s) == pytest.approx(0.1) == max(served["b"].gaps_s)
    assert max(served["a"].gaps_s) == pytest.approx(0.5)
    assert len(served["a"].tokens_s) == 400


def test_the_command_says_what_a_replay_does_not_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    path = serve(FixedCountPolicy(4), tmp_path / "a.jsonl")
    name = "policy_by_deadline:ByDeadline"
    done = CliRunner().invoke(cli, ["replay", str(path), "--policy", name, "--slo-ttft-ms", "500"])
    assert done.exit_code == 0, done.output
    assert "not asked who goes before it" in " ".join(done.output.split())
