r"""A listener that keeps the slowest steps of a server in a text file.

PYTHONPATH=examples .venv/bin/python -m sglang.launch_server --model-path MODEL --prefill-mode layered \
    --layered-listeners listener_slowest_steps:SlowestSteps=slowest.txt
"""

from pathlib import Path

from sglang_layered.hooks import Event, StepDone

NUM_KEPT = 10


class SlowestSteps:
    """Keeps `NUM_KEPT` steps, slowest first; written at every change, since a killed server never closes."""

    def __init__(self, path: str = "slowest_steps.txt") -> None:
        self.path = Path(path)
        self.slowest: list[StepDone] = []
        self._write()

    def on_event(self, event: Event) -> None:
        """Compare a step with those kept; other events are of no interest here."""
        if not isinstance(event, StepDone):
            return
        kept = sorted([*self.slowest, event], key=lambda step: -step.duration_s)[:NUM_KEPT]
        if kept != self.slowest:
            self.slowest = kept
            self._write()

    def close(self) -> None:
        """Print what the file holds."""
        print(f"Slowest steps, also in {self.path}:\n{self._table()}", end="")

    def _write(self) -> None:
        self.path.write_text(self._table())

    def _table(self) -> str:
        lines = [
            f"{step.duration_s * 1000:9.3f} ms  step {step.step}  {step.kind}"
            f"  {step.num_decode_rows} decode rows  {step.num_prompt_rows} prompt rows"
            for step in self.slowest
        ]
        return "".join(line + "\n" for line in lines)
