"""What a step policy starts from: rates measured on the device at start, and the calibration file."""

import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sglang_layered.core.pacing import DeviceRates, ModelSizes, Start, StepPolicy
from sglang_layered.errors import ConfigError
from sglang_layered.upstream.releases import arguments, serving
from sglang_layered.upstream.room import rows_per_request

logger = logging.getLogger(__name__)

FORMAT = 2  # 1 took steps of --layered-execution auto for fused ones
SIZE, ROWS, REPEATS = 2048, 256, 7
CALLS_A_LAYER = 12  # kernels or library calls of one layer, roughly
STEPS_BETWEEN_WRITES = 512


def measure_rates(device: str, dtype: torch.dtype) -> DeviceRates:
    """Time a product with one row (reads), with many (computes), and a call that does next to nothing."""
    weights = torch.zeros(SIZE, SIZE, device=device, dtype=dtype)
    row, rows = (torch.zeros(count, SIZE, device=device, dtype=dtype) for count in (1, ROWS))
    call_s = _median_s(device, lambda: row.add_(0))
    read_s = max(_median_s(device, lambda: row @ weights) - call_s, 1e-9)
    compute_s = max(_median_s(device, lambda: rows @ weights) - call_s, 1e-9)
    return DeviceRates(
        byte_s=read_s / (weights.numel() * weights.element_size()),
        flop_s=compute_s / (2 * ROWS * weights.numel()),
        layer_call_s=CALLS_A_LAYER * call_s,
    )


def _median_s(device: str, call: Callable[[], Any]) -> float:
    times_s = []
    with torch.inference_mode():
        for _ in range(REPEATS):
            start_s = time.monotonic()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            times_s.append(time.monotonic() - start_s)
    return statistics.median(times_s[1:])


class CalibrationFile:
    """`--layered-calibration-file`: read at start, written now and then; made for one kind of server.

    A file that cannot be written any more costs what was learned, not layered mode: it is told of once.
    """

    def __init__(self, path: Path, kind: dict[str, Any], amounts: Sequence[str]) -> None:
        self._path, self._kind, self._amounts = path, kind, list(amounts)
        self._steps = 0
        self._has_warned = False

    @classmethod
    def of(cls, scheduler: Any, sizes: ModelSizes, path: str, policy: StepPolicy) -> "CalibrationFile":
        """The file of this scheduler's kind of server, for what this policy learns."""
        args = arguments.resolved(scheduler.server_args)
        kind = {
            "policy": args.layered_policy,
            "model": Path(args.model_path).name,
            "device": torch.cuda.get_device_name() if scheduler.device == "cuda" else scheduler.device,
            "dtype": str(scheduler.model_config.dtype),
            "num_layers": sizes.num_layers,
            "num_experts": sizes.num_experts,
            "execution": args.layered_execution,
            "attention": args.attention_backend,
            "drafts": args.speculative_algorithm
            and [args.speculative_algorithm, rows_per_request(scheduler)],
            "tp_size": serving.ranks_of(scheduler).tp_size,
            "threads": torch.get_num_threads() if scheduler.device == "cpu" else 0,
        }
        return cls(Path(path), kind, policy.amounts)

    def read(self) -> dict[str, list[float]] | None:
        """What was learned; None where there is no file yet.

        Raises:
            ConfigError: it is no such file, or of another kind of server.
        """
        if not self._path.exists():
            return None
        where = f"--layered-calibration-file {self._path}"
        try:
            values = json.loads(self._path.read_text())
            learned = {str(name): list(map(float, each)) for name, each in values["learned"].items()}
            kind, version = dict(values["kind"]), (values["format"], values["amounts"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{where}: no calibration ({error!r}); delete it or give another path"
            ) from error
        if version != (FORMAT, self._amounts):
            raise ConfigError(f"{where}: it is of another version; delete it or give another path")
        for name, value in self._kind.items():
            if kind.get(name) != value:
                raise ConfigError(
                    f"{where}: made with {name} {kind.get(name)}, this server has {value};"
                    " delete it or give another path"
                )
        return learned

    def step_done(self, policy: StepPolicy) -> None:
        """Keep it now and then."""
        self._steps += 1
        if self._steps % STEPS_BETWEEN_WRITES == 0:
            self.keep(policy)

    def keep(self, policy: StepPolicy) -> None:
        """Write what was learned, if that is possible; whatever the policy raises passes."""
        try:
            self.write(policy)
        except OSError as error:
            if not self._has_warned:
                logger.warning(
                    "--layered-calibration-file %s cannot be written (%s): what is learned is lost at the"
                    " next start; it is tried again every %d steps",
                    self._path, error, STEPS_BETWEEN_WRITES,
                )  # fmt: skip
            self._has_warned = True

    def write(self, policy: StepPolicy) -> None:
        """Replace the file as a whole.

        Raises:
            OSError: it cannot be written; then the file is as it was.
        """
        learned = {name: [float(value) for value in each] for name, each in policy.learned().items()}
        values = {"format": FORMAT, "kind": self._kind, "amounts": self._amounts, "learned": learned}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        try:
            partial.write_text(json.dumps(values))
            partial.replace(self._path)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def start_of(scheduler: Any, file: CalibrationFile | None) -> Start:
    """Measure the device and read the file."""
    dtype = scheduler.model_config.dtype
    return Start(measure_rates(scheduler.device, dtype), None if file is None else file.read())
