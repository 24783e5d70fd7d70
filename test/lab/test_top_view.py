"""The numbers of a `top` page, worked out by hand from what the fake server did."""

from __future__ import annotations

import pytest

from sglang_layered_lab.watch.energy import Device
from sglang_layered_lab.watch.sample import Sample, parse
from sglang_layered_lab.watch.view import Off, View, view
from test_top_fake_server import FakeServer, idle_server, work


def worked(server: FakeServer) -> View:
    old = server.sample(10.0)
    work(server)
    return view(old, server.sample(12.0))


def test_head_and_requests() -> None:
    seen = worked(idle_server())
    assert (seen.window_s, seen.restarted) == (2.0, False)
    assert seen.server.models == ("tiny",)
    assert seen.server.modes == ("layered, execution fused, policy tokens",)
    assert seen.server.strategies == ("fused",)
    assert (seen.load.running, seen.load.waiting) == (5, 2)
    assert seen.load.tokens.prompt_per_s == 500  # cached tokens are not computed
    assert seen.load.tokens.output_per_s == 20  # in 2 s
    assert not seen.load.tokens.at_end


def test_a_mode_that_was_left_is_not_shown() -> None:
    server = idle_server()
    server.of("prefill_mode_info", mode="layered", policy="tokens", execution="fused").set(0)
    server.of("prefill_mode_info", mode="chunked", policy="", execution="").set(1)
    assert worked(server).server.modes == ("chunked",)


def test_latency_and_steps() -> None:
    seen = worked(idle_server())
    assert seen.ttft_s.num_observations == 2
    median, high = seen.tbt_s.quantile(0.5), seen.tbt_s.quantile(0.99)
    assert median is not None and median.value == pytest.approx(0.01 + 0.01 * 19 / 30)
    assert high is not None and (high.low, high.high) == (0.02, 0.04)
    assert not isinstance(seen.steps, Off)
    lines = {line.kind: line for line in seen.steps}
    assert [lines[kind].per_s for kind in ("prefill", "decode", "layered")] == [0, 3, 2]
    assert lines["prefill"].seconds.mean is None
    assert lines["layered"].seconds.mean == pytest.approx(0.025)


def test_cohorts() -> None:
    cohorts = worked(idle_server()).cohorts
    assert not isinstance(cohorts, Off)
    assert (cohorts.in_flight, cohorts.parked_bytes) == (1, 4_200_000)
    assert (cohorts.slots_filled, cohorts.slots_partial) == (900, 300)
    assert [(each.done, each.left) for each in cohorts.progress] == [(3, 5)]
    assert cohorts.dropped == {"abort": 2}


def test_experts_energy_and_limits() -> None:
    seen = worked(idle_server())
    assert not isinstance(seen.experts, Off)
    hybrid = {line.phase: line for line in seen.experts}["hybrid"]
    assert (hybrid.bytes_per_s, hybrid.coverage.mean, hybrid.tokens_per_expert.mean) == (1.5e9, 0.75, 12.5)
    assert not isinstance(seen.power, Off)
    gpu, cpu, both = seen.power
    assert gpu.device == Device("", "gpu0", "nvml-energy")
    assert (gpu.watts, gpu.idle_watts, gpu.j_per_prompt_token, gpu.j_per_output_token) == (300, 70, 0.6, 15)
    assert (cpu.watts, cpu.idle_watts) == (50, None)
    assert (both.device, both.watts, both.idle_watts) == (None, 350, None)
    assert both.j_per_token == pytest.approx(700 / 1040)
    assert not isinstance(seen.slo, Off)
    (line,) = seen.slo
    assert (line.slo, line.limits_s, line.met, line.finished) == ("ttft", (0.5,), 3, 4)


def test_window_and_lifetime_of_limits_differ() -> None:
    server = idle_server()
    work(server)
    seen = worked(server)
    assert not isinstance(seen.slo, Off)
    assert (seen.slo[0].finished, seen.slo[0].finished_ever, seen.slo[0].met_ever) == (4, 8, 6)


def test_what_a_server_does_not_do_is_off_by_its_flag() -> None:
    server = FakeServer(("any",))
    seen = view(server.sample(0.0), server.sample(1.0))
    assert (seen.steps, seen.cohorts) == (Off("off (--prefill-mode layered)"),) * 2
    assert seen.experts == Off("off (--enable-expert-traffic-metrics)")
    assert seen.power == Off("off (--enable-energy-metrics)")
    assert seen.slo == Off("off (--slo-ttft-ms or --slo-tbt-ms)")
    assert seen.load.running is None


def test_energy_asked_for_where_none_can_be_read_is_not_off() -> None:
    server = idle_server()
    server.of("tokens_for_energy_total", kind="output").inc()
    seen = view(server.sample(0.0), server.sample(1.0))
    assert isinstance(seen.power, Off) and "doctor" in seen.power.reason


def test_tokens_without_energy_metrics_are_those_that_sglang_counts() -> None:
    server = FakeServer(("any",))
    server.of("realtime_tokens_total", mode="decode").inc()
    old = server.sample(0.0)
    for mode, number in (("decode", 38), ("prefill_compute", 1000), ("prefill_cache", 500)):
        server.of("realtime_tokens_total", mode=mode).inc(number)
    load = view(old, server.sample(2.0)).load.tokens
    assert (load.prompt_per_s, load.output_per_s, load.at_end) == (500, 19, False)


def test_tokens_of_a_server_that_counts_at_the_end_of_a_request() -> None:
    page = '# TYPE sglang:{0} counter\nsglang:{0}_total{{is_streaming="true"}} {1}\n'

    def at(prompt: int, output: int, time_s: float) -> Sample:
        return parse(page.format("prompt_tokens", prompt) + page.format("generation_tokens", output), time_s)

    load = view(at(100, 10, 0.0), at(300, 50, 4.0)).load.tokens
    assert (load.prompt_per_s, load.output_per_s, load.at_end) == (50, 10, True)


def test_a_restart_shows_what_came_after_it() -> None:
    before, after = idle_server(), idle_server()
    work(before)
    work(before)
    work(after)
    seen = view(before.sample(0.0), after.sample(2.0))
    assert seen.restarted
    assert seen.load.tokens.prompt_per_s == 500
    assert seen.tbt_s.num_observations == 38


def ranked(*ranks: dict[str, str]) -> View:
    """Every rank counts 10 steps and 1000 tokens in 2 s, has 3 requests, and parks 1 MB."""
    server = idle_server(ranks=ranks)
    old = server.sample(0.0)
    for rank, _ in enumerate(ranks):
        server.of("layered_steps_total", rank, kind="decode").inc(10)
        server.of("layered_step_seconds", rank, kind="decode").observe(0.004)
        server.of("realtime_tokens_total", rank, mode="prefill_compute").inc(1000)
        server.of("num_running_reqs", rank).set(3)
        server.of("layered_parked_bytes", rank).set(1_000_000)
        server.of("layered_cohort_groups", rank, state="done").set(rank)
        server.of("layered_cohort_groups", rank, state="left").set(4)
    return view(old, server.sample(2.0))


def sums(seen: View) -> tuple[float | None, float | None, float, float]:
    assert not isinstance(seen.steps, Off) and not isinstance(seen.cohorts, Off)
    steps = sum(line.per_s for line in seen.steps)
    return seen.load.running, seen.load.tokens.prompt_per_s, steps, seen.cohorts.parked_bytes


def test_replicas_add_up() -> None:
    seen = ranked({"dp_rank": "0"}, {"dp_rank": "1"})
    assert sums(seen) == (6, 1000, 10, 2e6)
    assert [(line.rank.source.dp_rank, line.running, line.steps_per_s) for line in seen.ranks] == [
        ("0", 3, 5),
        ("1", 3, 5),
    ]
    assert not isinstance(seen.cohorts, Off)
    assert [(each.source.dp_rank, each.done, each.left) for each in seen.cohorts.progress] == [
        ("0", 0, 4),
        ("1", 1, 4),
    ]


def test_pipeline_stages_repeat_counts_but_not_bytes() -> None:
    seen = ranked({"pp_rank": "0"}, {"pp_rank": "1"})
    assert sums(seen) == (3, 500, 5, 2e6)
    assert [line.rank.stage for line in seen.ranks] == ["0", "1"]
    assert not isinstance(seen.cohorts, Off)
    assert len(seen.cohorts.progress) == 1


def test_tensor_ranks_repeat_everything() -> None:
    seen = ranked({"tp_rank": "0", "moe_ep_rank": "0"}, {"tp_rank": "1", "moe_ep_rank": "1"})
    assert sums(seen) == (3, 500, 5, 1e6)
    assert seen.ranks == ()


def test_ten_stages_are_sorted_as_numbers() -> None:
    seen = ranked(*({"pp_rank": str(stage)} for stage in (10, 2, 0)))
    assert [line.rank.stage for line in seen.ranks] == ["0", "2", "10"]


def test_priorities_break_a_gauge_down_and_do_not_add_to_it() -> None:
    page = "# TYPE sglang:num_queue_reqs gauge\n" + "".join(
        f'sglang:num_queue_reqs{{pp_rank="0",tp_rank="0",priority="{priority}"}} {value}\n'
        for priority, value in (("", 5), ("1", 2), ("2", 3))
    )
    assert view(parse(page, 0.0), parse(page, 1.0)).load.waiting == 5


def test_page_of_a_router_has_every_server() -> None:
    """The router renames `sglang:` to `sglang_` and adds each worker's address."""

    def page(seconds: float) -> Sample:
        texts = []
        for port in (1, 2):
            server = idle_server()
            if seconds:
                work(server)
            texts.append(
                server.text().replace("{", f'{{worker_addr="http://h:{port}",').replace("sglang:", "sglang_")
            )
        return parse("".join(texts), seconds)

    seen = view(page(0.0), page(2.0))
    assert (seen.load.running, seen.load.tokens.prompt_per_s) == (10, 1000)
    assert [line.rank.source.server for line in seen.ranks] == ["http://h:1", "http://h:2"]
    assert not isinstance(seen.power, Off)
    assert [line.watts for line in seen.power] == [300, 50, 300, 50, 700]
    assert [line.j_per_prompt_token for line in seen.power] == [0.6, 0.1, 0.6, 0.1, 0.7]
