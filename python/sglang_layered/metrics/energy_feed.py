"""Feeds energy into the metrics: joules as time goes by, tokens to divide them by, a step's part of them.

One process a node has the meter, so that no joule is counted twice; every replica counts its own tokens.
"""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from sglang_layered.energy.find import find_sources
from sglang_layered.energy.meter import EnergyMeter, joules_per_token, reading_record
from sglang_layered.energy.nvml import nvml_indices
from sglang_layered.errors import LayeredPrefillError
from sglang_layered.metrics.instruments import Instruments
from sglang_layered.upstream.releases import arguments, serving

logger = logging.getLogger(__name__)

EXPORT_S = 0.5
IDLE_S = 1.3  # nothing runs yet; somewhat more than the meter needs to say what idle is


class EnergyFeed:
    """Of one scheduler process; `meter` is None in all but the first of a node."""

    def __init__(
        self,
        instruments: Instruments,
        meter: EnergyMeter | None,
        missing: Sequence[str] = (),
        num_replicas: int = 1,
    ) -> None:
        self._instruments = instruments
        self._meter = meter
        self._missing = tuple(missing)
        self._num_replicas = num_replicas
        self._num_prompt_tokens = 0.0
        self._num_output_tokens = 0
        self._processed_s = 0.0
        self._exported: dict[tuple[str, str], float] = {}
        self._stopping = threading.Event()
        if meter is not None:
            meter.start()
            time.sleep(IDLE_S)
            meter.note_work()
            threading.Thread(target=self._run, name="energy-export", daemon=True).start()

    @classmethod
    def start(cls, scheduler: Any, instruments: Instruments) -> "EnergyFeed":
        """The feed of this scheduler, with a meter where this process is its node's first."""
        ranks = serving.ranks_of(scheduler)
        if ranks.pp_rank or ranks.tp_rank or (ranks.dp_rank or 0):
            return cls(instruments, None)
        found = find_sources(_gpus(scheduler.server_args))
        for reason in found.missing:
            logger.warning("Energy is not measured: %s", reason)
        meter = EnergyMeter(found.sources) if found.sources else None
        return cls(instruments, meter, found.missing, serving.num_replicas_of(scheduler))

    @property
    def has_meter(self) -> bool:
        """True where this process measures energy."""
        return self._meter is not None

    def step_j(self, launch_s: float, num_prompt_tokens: float) -> float:
        """Estimate of the joules of the step whose results have come; a layered step's tokens are fractions.

        It is the power of the last second times the time since the launch, or since the results before it
        when these came later.
        """
        now_s = time.monotonic()
        busy_s = now_s - max(launch_s, self._processed_s)
        self._processed_s = now_s
        self._num_prompt_tokens += num_prompt_tokens
        if num_prompt_tokens:
            self._instruments.add("tokens_for_energy_total", num_prompt_tokens, kind="prompt")
        if self._meter is None:
            return 0.0
        watts = sum(device.watts or 0.0 for device in self._meter.reading().devices)
        return watts * max(busy_s, 0.0)

    def output_tokens(self, count: int) -> None:
        """So many tokens are handed on."""
        self._num_output_tokens += count
        if count:
            self._instruments.add("tokens_for_energy_total", count, kind="output")

    def export(self) -> None:
        """Bring the counters up to the latest reading."""
        if self._meter is None:
            return
        for device in self._meter.reading().devices:
            key = {"device": device.device, "source": device.source}
            before = self._exported.get((device.device, device.source), 0.0)
            self._instruments.add("energy_joules_total", max(device.joules - before, 0.0), **key)
            self._exported[device.device, device.source] = device.joules
            if device.idle_watts is not None:
                self._instruments.set("energy_idle_watts", device.idle_watts, **key)

    def state(self) -> dict[str, Any]:
        """Totals since the server started, as JSON values."""
        tokens = {"prompt": round(self._num_prompt_tokens), "output": self._num_output_tokens}
        state: dict[str, Any] = {"tokens": tokens, "missing": list(self._missing)}
        if self._meter is None:
            return state
        reading = self._meter.reading()
        state |= reading_record(reading)
        if self._num_replicas == 1:  # else the tokens of the others are not known here; the metrics have all
            joules = sum(device.joules for device in reading.devices)
            state["joules_per_token"] = joules_per_token(joules, tokens["prompt"], tokens["output"])
        return state

    def stop(self) -> None:
        """The server ends."""
        self._stopping.set()
        if self._meter is not None:
            self._meter.stop()

    def _run(self) -> None:
        while not self._stopping.wait(EXPORT_S):
            self.export()


def _gpus(server_args: Any) -> Sequence[int] | None:
    """NVML indices of the GPUs that this node's part of the server uses; none without CUDA."""
    server_args = arguments.resolved(server_args)
    if server_args.device != "cuda":
        return ()
    count = server_args.tp_size * server_args.pp_size * arguments.num_replicas(server_args)
    used = [server_args.base_gpu_id + rank * server_args.gpu_id_step for rank in range(count)]
    try:
        return nvml_indices(used)
    except LayeredPrefillError as error:
        logger.warning("Energy of the GPUs is not measured: %s", error)
        return ()
