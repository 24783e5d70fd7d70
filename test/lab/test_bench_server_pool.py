"""The pool of servers: one runs, the others stand still; the one that waited longest makes room."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from sglang_layered.errors import LabError
from sglang_layered_lab.bench import server_pool
from sglang_layered_lab.bench.server_pool import ServerPool
from sglang_layered_lab.bench.spec import BenchSpec, spec_from
from sglang_layered_lab.bench.workload import Server


class FakeProcess:
    """Notes what is done to it."""

    made: ClassVar[list[FakeProcess]] = []

    def __init__(self, name: str, log_path: Path) -> None:
        self.name, self.log_path, self.state, self.is_dead = name, log_path, "new", False
        self.base_url = f"http://{name}"
        self.made.append(self)

    def start(self) -> None:
        assert self.state == "new"
        self.state = "running"

    def pause(self) -> None:
        self.state = "paused"

    def resume(self) -> None:
        self.state = "running"

    def stop(self) -> None:
        self.state = "ended"

    def has_exited(self) -> bool:
        return self.is_dead

    def log_tail(self) -> str:
        return "its last words"


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeProcess]:
    monkeypatch.setattr(FakeProcess, "made", [])
    monkeypatch.setattr(server_pool, "ServerProcess", FakeProcess)
    monkeypatch.setattr(server_pool, "model_folder", lambda spec: Path("model"))
    monkeypatch.setattr(
        server_pool, "process_of", lambda spec, model, log: FakeProcess(spec.server.flags[0], log)
    )
    monkeypatch.setattr(server_pool, "_free_bytes", lambda: 100 * 2**30)
    monkeypatch.setattr(server_pool, "started", lambda spec, model, url: Server(url, 10))
    return FakeProcess.made


def spec_of(flag: str, **more: Any) -> BenchSpec:
    lengths = {"distribution": "fixed", "tokens": 3}
    values = {
        "run": {"name": "any"},
        "server": {"model": "somewhere", "flags": [flag]},
        "load": {"arrivals": "closed", "num_clients": 1, "num_requests": 1},
        "workload": {"lengths": {"prompt": lengths, "output": lengths}},
    }
    return spec_from(values | more)


def states(made: list[FakeProcess]) -> dict[str, str]:
    return {process.name: process.state for process in made}


def test_one_server_runs_at_a_time_and_all_are_ended(made: list[FakeProcess], tmp_path: Path) -> None:
    warmed: list[str] = []
    with ServerPool(3, tmp_path, lambda spec, server: warmed.append(server.url)) as pool:
        for flag in ("a", "b", "c", "a", "a", "b"):
            assert pool.turn_of(spec_of(flag)).url == f"http://{flag}"
            assert [name for name, state in states(made).items() if state == "running"] == [flag]
        assert warmed == ["http://a", "http://b", "http://c"]
        assert pool.num_starts == 3
    assert set(states(made).values()) == {"ended"}


def test_the_server_that_waited_longest_makes_room(made: list[FakeProcess], tmp_path: Path) -> None:
    with ServerPool(2, tmp_path, lambda spec, server: None) as pool:
        for flag in ("a", "b", "a", "c"):
            pool.turn_of(spec_of(flag))
        assert states(made) == {"a": "paused", "b": "ended", "c": "running"}
        pool.turn_of(spec_of("b"))
        assert [process.name for process in made] == ["a", "b", "c", "b"]
        assert made[0].state == "ended"


def test_servers_make_room_where_memory_runs_out(
    made: list[FakeProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = lambda: sum(process.state in ("running", "paused") for process in made)  # noqa: E731
    monkeypatch.setattr(server_pool, "_free_bytes", lambda: (10 - 3 * alive()) * 2**30)
    with ServerPool(9, tmp_path, lambda spec, server: None) as pool:
        for flag in ("a", "b", "c", "d"):
            pool.turn_of(spec_of(flag))
        assert states(made) == {"a": "ended", "b": "ended", "c": "paused", "d": "running"}


def test_load_and_workload_do_not_need_a_server_of_their_own(made: list[FakeProcess], tmp_path: Path) -> None:
    other = {"arrivals": "poisson", "rate_per_s": 2.0, "num_requests": 3}
    with ServerPool(2, tmp_path, lambda spec, server: None) as pool:
        pool.turn_of(spec_of("a"))
        pool.turn_of(spec_of("a", load=other))
    assert len(made) == 1


def test_models_of_one_name_in_two_folders_are_two_servers() -> None:
    specs = [spec_of("a", server={"model": f"/{place}/model", "flags": ["a"]}) for place in ("here", "there")]
    assert server_pool.key_of(specs[0]) != server_pool.key_of(specs[1])


def test_a_server_that_died_between_its_turns_is_an_error(made: list[FakeProcess], tmp_path: Path) -> None:
    with ServerPool(2, tmp_path, lambda spec, server: None) as pool:
        pool.turn_of(spec_of("a"))
        pool.turn_of(spec_of("b"))
        made[0].is_dead = True
        with pytest.raises(LabError, match="its last words"):
            pool.turn_of(spec_of("a"))
        assert pool.turn_of(spec_of("a")).url == "http://a"  # it is started anew


def test_a_server_at_a_url_is_nobodys(made: list[FakeProcess], tmp_path: Path) -> None:
    workload = {**spec_of("a").to_json()["workload"], "vocab": [1, 50]}
    spec = spec_of("a", server={"url": "http://127.0.0.1:9/"}, workload=workload)
    with ServerPool(1, tmp_path, lambda spec, server: None) as pool:
        assert pool.turn_of(spec) == Server("http://127.0.0.1:9", 50)
    assert made == []
