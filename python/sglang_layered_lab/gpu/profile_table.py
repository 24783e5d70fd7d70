"""What a profile says as a table: milliseconds a step by part, beside the roofline's. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sglang_layered_lab.cost.roofline import Device, Part, Roofline
from sglang_layered_lab.cost.ways import Beside, Way, prompt_steps
from sglang_layered_lab.gpu.kernel_parts import StepTimes

HEADINGS = ("arm", "step", "part", "ms a step", "share", "roofline ms", "over it")
LEGEND = (
    "step: of decode alone, or the average one of the prompt's. Sums of kernels on the device: of two at the"
    " same time both count. idle: no kernel ran. roofline: of one H200, with the coverage that was named."
)
ROOF_PARTS = {"dense": "dense products", "head": "dense products"}  # others are called alike


@dataclass(frozen=True, slots=True)
class Profile:
    """One arm: how its prompt was scheduled beside which streams, and what its steps took.

    `decode` are steps of one number of rows: the streams', or one more after the prompt.
    """

    arm: str
    way: Way
    prompt_tokens: int
    beside: Beside
    decode: StepTimes
    prompt: StepTimes


def profile_rows(seen: Profile, model: Roofline | None) -> Iterator[list[str]]:
    """Cells under `HEADINGS`: decode steps, then the prompt's. Without a model there is no roofline."""
    num_rows = seen.decode.batch_size
    with_prompt = seen.beside.joined_by(seen.prompt_tokens)
    decode = with_prompt if num_rows == with_prompt.decode_rows else seen.beside
    roofs: list[Mapping[str, float]] = [{}, {}]
    if model is not None:
        steps = prompt_steps(model.shape.num_layers, seen.way, seen.prompt_tokens, seen.beside)
        roofs = [
            roof_parts([model.work(step) for step in each], model.device) for each in ([decode.step()], steps)
        ]
    yield from _lines(seen.arm, f"decode, {num_rows} rows", seen.decode, roofs[0])
    prompt = f"prompt of {seen.prompt_tokens}, one of {seen.prompt.num_steps}"
    yield from _lines(seen.arm, prompt, seen.prompt, roofs[1])


def roof_parts(works: Sequence[Sequence[Part]], device: Device) -> dict[str, float]:
    """The roofline's seconds by part, of an average one of these steps."""
    found: dict[str, float] = {}
    for work in works:
        for part in work:
            name = ROOF_PARTS.get(part.kind, part.kind)
            found[name] = found.get(name, 0.0) + device.part_s(part) / len(works)
    return found


def _lines(arm: str, step: str, seen: StepTimes, roof: Mapping[str, float]) -> Iterator[list[str]]:
    parts = {name: total_s / seen.num_steps for name, total_s in seen.parts_s.items()}
    total_s = sum(parts.values())
    for name, time_s in sorted(parts.items(), key=lambda each: -each[1]):
        share = f"{time_s / total_s:.0%}" if total_s else "-"
        yield [arm, step, name, _ms(time_s), share, *_over(time_s, roof.get(name, 0.0))]
    yield [arm, step, "all", _ms(total_s), "100%", *_over(total_s, sum(roof.values()))]
    idle_s = max(seen.window_s - seen.busy_s, 0.0) / seen.num_steps
    yield [arm, step, "idle", _ms(idle_s), "", "", ""]


def _over(time_s: float, bound_s: float) -> list[str]:
    return [_ms(bound_s), f"{time_s / bound_s:.2f}"] if bound_s else ["", ""]


def _ms(time_s: float) -> str:
    return f"{1e3 * time_s:.3f}"
