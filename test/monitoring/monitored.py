"""A real Prometheus on loopback, with the project's configuration and other targets; where its tools are."""

from __future__ import annotations

import functools
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from sglang_layered_lab.serving import HOST, free_port

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "docker" / "monitoring" / "prometheus"
GIVE_UP_S = 120.0


@functools.cache
def tool(name: str) -> Path:
    """Path of `prometheus` or `promtool`; the test is skipped where neither PATH nor apt has it."""
    got = subprocess.run([str(ROOT / "scripts" / "monitoring-tools")], capture_output=True, text=True)
    if got.returncode != 0:
        pytest.skip(reason=got.stderr.strip())
    return ROOT / ".tools" / "bin" / name


def promtool(*args: str | Path) -> str:
    """Run promtool; a failure shows what it said."""
    got = subprocess.run([tool("promtool"), *map(str, args)], capture_output=True, text=True)
    assert got.returncode == 0, got.stdout + got.stderr
    return got.stdout


def configuration(targets: Mapping[str, Sequence[str]], *, with_rules: bool = True) -> str:
    """The project's prometheus.yml with these targets for its jobs, scraping and evaluating every second."""
    config = yaml.safe_load((CONFIG / "prometheus.yml").read_text())
    jobs = {job.pop("job_name"): job for job in config["scrape_configs"]}
    for job in jobs.values():
        job.pop("dns_sd_configs", None)
    config.pop("alerting")  # nobody has that name here
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(CONFIG / name) for name in config["rule_files"]] if with_rules else []
    config["scrape_configs"] = [
        {**jobs[job], "job_name": job, "static_configs": [{"targets": list(addresses)}]}
        for job, addresses in targets.items()
    ]
    return yaml.safe_dump(config)


@contextmanager
def prometheus(
    folder: Path, targets: Mapping[str, Sequence[str]], *, with_rules: bool = True
) -> Iterator[str]:
    """Run a Prometheus that keeps its files in `folder`; gives its URL once it is ready."""
    folder.mkdir(parents=True, exist_ok=True)
    config, port = folder / "prometheus.yml", free_port()
    config.write_text(configuration(targets, with_rules=with_rules))
    command = [tool("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address={HOST}:{port}"]
    url, log_path = f"http://{HOST}:{port}", folder / "prometheus.log"
    with log_path.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_until("Prometheus is ready", lambda: _is_ready(url, process, log_path))
            yield url
        finally:
            process.terminate()


def _is_ready(url: str, process: subprocess.Popen[bytes], log_path: Path) -> bool:
    assert process.poll() is None, log_path.read_text()
    try:
        return httpx.get(f"{url}/-/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def ask(url: str, path: str, **fields: str):
    """One call of Prometheus' API; the answer as it is."""
    return httpx.get(f"{url}/api/v1/{path}", params=fields, timeout=30, trust_env=False).json()


def wait_until(what: str, done, show=lambda: "") -> None:
    """Wait until `done()` holds, long enough for a slow machine; a failure also says what `show()` gives."""
    deadline = time.monotonic() + GIVE_UP_S
    while not done():
        assert time.monotonic() < deadline, f"not in {GIVE_UP_S:g} s: {what}\n{show()}"
        time.sleep(0.5)
