"""The numbers of a `top` page, worked out by hand from what the fake server did."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_layered_lab.watch.sample import Sample, parse
from sglang_layered_lab.watch.view import View, view
from test_top_fake_server import FakeServer, idle_server, work


def worked(server: FakeServer) -> View:
    old = server.sample(10.0)
    work(server)
    return view(old, server.sample(12.0))


def cells(seen: View, part: str, row: str = "") -> dict[str, Any]:
    """The cells of a row of this name, by the head of their column."""
    (found,) = [found for name, found in seen.parts[part].rows if name == row]
    return dict(zip(seen.parts[part].columns, found, strict=True))


def rows(seen: View, part: str) -> list[str]:
    return [name for name, _ in seen.parts[part].rows]


def tokens(seen: View) -> tuple[float | None, float | None]:
    found = cells(seen, "requests")
    return found["prompt tokens/s"], found["output tokens/s"]


def test_head_and_requests() -> None:
    seen = worked(idle_server())
    assert (seen.window_s, seen.restarted) == (2.0, False)
    assert seen.server == ("model tiny", "mode layered, execution fused, policy tokens", "strategy fused")
    requests = cells(seen, "requests")
    assert (requests["running"], requests["waiting"]) == (5, 2)
    assert requests["prompt tokens/s"] == 500  # cached tokens are not computed
    assert requests["output tokens/s"] == 20  # in 2 s


def test_a_mode_that_was_left_is_not_shown() -> None:
    server = idle_server()
    server.of("prefill_mode_info", mode="layered", policy="tokens", execution="fused").set(0)
    server.of("prefill_mode_info", mode="chunked", policy="", execution="").set(1)
    assert "mode chunked" in worked(server).server


def test_latency_and_steps() -> None:
    seen = worked(idle_server())
    assert cells(seen, "latency", "TTFT")["seen"].num_observations == 2
    tbt_s = cells(seen, "latency", "TBT")["p50"]
    median, high = tbt_s.quantile(0.5), tbt_s.quantile(0.99)
    assert median is not None and median.value == pytest.approx(0.01 + 0.01 * 19 / 30)
    assert high is not None and (high.low, high.high) == (0.02, 0.04)
    steps = [cells(seen, "steps", kind) for kind in ("prefill", "decode", "layered")]
    assert [line["rate"] for line in steps] == [0, 3, 2]
    assert steps[0]["mean"].mean is None
    assert steps[2]["mean"].mean == pytest.approx(0.025)


def test_cohorts() -> None:
    seen = worked(idle_server())
    assert list(cells(seen, "cohorts").values()) == [1, 4_200_000, 900, 300, {"abort": 2}]
    assert seen.parts["groups"].rows == (("", ((3, 5),)),)


def test_experts_energy_and_limits() -> None:
    seen = worked(idle_server())
    read, coverage, rows_each = cells(seen, "experts", "hybrid").values()
    assert (read, coverage.mean, rows_each.mean) == (1.5e9, 0.75, 12.5)
    gpu, cpu, both = (list(cells(seen, "energy", name).values()) for name in ("gpu0", "package-0", "all"))
    assert (gpu[:4], gpu[5]) == ([300, 70, 0.6, 15], "nvml-energy")
    assert (cpu[:2], cpu[5]) == ([50, None], "rapl")
    assert (both[:2], both[5]) == ([350, None], "")
    assert both[4] == pytest.approx(700 / 1040)
    assert list(cells(seen, "SLO met", "TTFT").values()) == [[0.5], (3, 4), (3, 4)]
    assert rows(seen, "SLO met") == ["TTFT"]


def test_window_and_lifetime_of_limits_differ() -> None:
    server = idle_server()
    work(server)
    found = cells(worked(server), "SLO met", "TTFT")
    assert (found["in the window"], found["since its start"]) == ((3, 4), (6, 8))


def test_what_a_server_does_not_do_is_off_by_its_flag() -> None:
    server = FakeServer(("any",))
    seen = view(server.sample(0.0), server.sample(1.0))
    assert {name: part.off for name, part in seen.parts.items() if part.off} == {
        "steps": "off (--prefill-mode layered)",
        "cohorts": "off (--prefill-mode layered)",
        "experts": "off (--enable-expert-traffic-metrics)",
        "energy": "off (--enable-energy-metrics)",
        "SLO met": "off (--slo-ttft-ms or --slo-tbt-ms)",
    }
    assert cells(seen, "requests")["running"] is None


def test_energy_asked_for_where_none_can_be_read_is_not_off() -> None:
    server = idle_server()
    server.of("tokens_for_energy_total", kind="output").inc()
    seen = view(server.sample(0.0), server.sample(1.0))
    assert "doctor" in seen.parts["energy"].off


def test_tokens_without_energy_metrics_are_those_that_sglang_counts() -> None:
    server = FakeServer(("any",))
    server.of("realtime_tokens_total", mode="decode").inc()
    old = server.sample(0.0)
    for mode, number in (("decode", 38), ("prefill_compute", 1000), ("prefill_cache", 500)):
        server.of("realtime_tokens_total", mode=mode).inc(number)
    assert tokens(view(old, server.sample(2.0))) == (500, 19)


def test_tokens_of_a_server_that_counts_at_the_end_of_a_request() -> None:
    page = '# TYPE sglang:{0} counter\nsglang:{0}_total{{is_streaming="true"}} {1}\n'

    def at(prompt: int, output: int, time_s: float) -> Sample:
        return parse(page.format("prompt_tokens", prompt) + page.format("generation_tokens", output), time_s)

    found = cells(view(at(100, 10, 0.0), at(300, 50, 4.0)), "requests")
    at_end = " (counted at the end of a request)"
    assert (found[f"prompt tokens/s{at_end}"], found[f"output tokens/s{at_end}"]) == (50, 10)


def test_a_restart_shows_what_came_after_it() -> None:
    before, after = idle_server(), idle_server()
    work(before)
    work(before)
    work(after)
    seen = view(before.sample(0.0), after.sample(2.0))
    assert seen.restarted
    assert tokens(seen)[0] == 500
    assert cells(seen, "latency", "TBT")["seen"].num_observations == 38


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
    steps = sum(cells(seen, "steps", kind)["rate"] for kind in rows(seen, "steps"))
    return cells(seen, "requests")["running"], tokens(seen)[0], steps, cells(seen, "cohorts")["parked"]


def test_replicas_add_up() -> None:
    seen = ranked({"dp_rank": "0"}, {"dp_rank": "1"})
    assert sums(seen) == (6, 1000, 10, 2e6)
    for name in ("dp0 pp0", "dp1 pp0"):
        line = cells(seen, "ranks", name)
        assert (line["running"], line["steps"]) == (3, 5)
    assert rows(seen, "ranks") == ["dp0 pp0", "dp1 pp0"]
    assert seen.parts["groups"].rows == (("dp0", ((0, 4),)), ("dp1", ((1, 4),)))


def test_pipeline_stages_repeat_counts_but_not_bytes() -> None:
    seen = ranked({"pp_rank": "0"}, {"pp_rank": "1"})
    assert sums(seen) == (3, 500, 5, 2e6)
    assert rows(seen, "ranks") == ["pp0", "pp1"]
    assert cells(seen, "ranks", "pp1")["parked"] == 1e6
    assert len(seen.parts["groups"].rows) == 1


def test_tensor_ranks_repeat_everything() -> None:
    seen = ranked({"tp_rank": "0", "moe_ep_rank": "0"}, {"tp_rank": "1", "moe_ep_rank": "1"})
    assert sums(seen) == (3, 500, 5, 1e6)
    assert "ranks" not in seen.parts


def test_ten_stages_are_sorted_as_numbers() -> None:
    seen = ranked(*({"pp_rank": str(stage)} for stage in (10, 2, 0)))
    assert rows(seen, "ranks") == ["pp0", "pp2", "pp10"]


def test_priorities_break_a_gauge_down_and_do_not_add_to_it() -> None:
    page = "# TYPE sglang:num_queue_reqs gauge\n" + "".join(
        f'sglang:num_queue_reqs{{pp_rank="0",tp_rank="0",priority="{priority}"}} {value}\n'
        for priority, value in (("", 5), ("1", 2), ("2", 3))
    )
    assert cells(view(parse(page, 0.0), parse(page, 1.0)), "requests")["waiting"] == 5


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
    assert (cells(seen, "requests")["running"], tokens(seen)[0]) == (10, 1000)
    assert rows(seen, "ranks") == ["http://h:1 pp0", "http://h:2 pp0"]
    assert rows(seen, "energy") == [
        *("http://h:1 gpu0", "http://h:1 package-0", "http://h:2 gpu0", "http://h:2 package-0", "all")
    ]
    energy = [cells(seen, "energy", name) for name in rows(seen, "energy")]
    assert [line["now"] for line in energy] == [300, 50, 300, 50, 700]
    assert [line["J/prompt"] for line in energy] == [0.6, 0.1, 0.6, 0.1, 0.7]
