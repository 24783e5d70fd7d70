"""The launch commands of recipes.toml, and the table in docs/models.md of what layered mode says to each."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

import tomllib

from workers import HERE, PROJECT, Workers, build_stub_driver

DOCUMENT = PROJECT / "docs" / "models.md"
MARKED = re.compile(r"(<!-- recipes: begin[^>]*-->\n).*?(<!-- recipes: end -->)", re.DOTALL)
# Of a family that transformers does not know: its folder brings the class of its configuration.
OWN_CLASS = """from transformers import PretrainedConfig


class OwnConfig(PretrainedConfig):
    model_type = "{model_type}"
"""
OWN_FAMILIES = ("mimo_v2",)


def recipes() -> list[dict[str, Any]]:
    """Model, weights, device, flags and config.json of each."""
    listed: list[dict[str, Any]] = tomllib.loads((HERE / "recipes.toml").read_text())["recipe"]
    return listed


def command(recipe: dict[str, Any], folder: Path) -> list[str]:
    """Its launch command, of a folder that is made here with its configuration."""
    folder.mkdir(parents=True)
    config, model_type = recipe["config"], recipe["config"]["model_type"]
    if model_type in OWN_FAMILIES:
        config = config | {"auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
        (folder / "configuration_own.py").write_text(OWN_CLASS.format(model_type=model_type))
    (folder / "config.json").write_text(json.dumps(config))
    return ["--model-path", str(folder), "--load-format", "dummy", *shlex.split(recipe["flags"])]


def asked(workers: Workers, folder: Path) -> list[dict[str, Any]]:
    """Each recipe with what the emulated device says to it."""
    listed, found = recipes(), {}
    for device in sorted({recipe["device"] for recipe in listed}):
        indices = [index for index, recipe in enumerate(listed) if recipe["device"] == device]
        commands = [command(listed[index], folder / str(index)) for index in indices]
        found |= dict(zip(indices, workers.refusals(device, commands), strict=True))
    return [recipe | found[index] for index, recipe in enumerate(listed)]


def table(answers: list[dict[str, Any]]) -> str:
    """Model, weights, flags, and accepted or all reasons."""
    lines = ["| | model | weights | flags | `--prefill-mode layered` |", "|---|---|---|---|---|"]
    for number, answer in enumerate(answers, 1):
        reasons = answer["reasons"]
        says = f"refused: {'; '.join(reasons)}" if reasons else "accepted"
        lines.append(f"| {number} | {answer['model']} | {answer['weights']} | `{answer['flags']}` | {says} |")
    return "\n".join(lines) + "\n"


def written(answers: list[dict[str, Any]]) -> str:
    """The text of the document with the table as the code has it now."""
    text, count = MARKED.subn(lambda match: match[1] + table(answers) + match[2], DOCUMENT.read_text())
    if count != 1:
        raise ValueError(f"{DOCUMENT} has {count} places for the table of recipes")
    return text


def main() -> None:
    """Write the document."""
    with tempfile.TemporaryDirectory() as folder:
        driver = Path(folder) / "driver"
        driver.mkdir()
        build_stub_driver(driver)
        workers = Workers(driver)
        try:
            answers = asked(workers, Path(folder) / "models")
        finally:
            workers.stop()
    broken = {answer["model"]: answer["stock"] for answer in answers if answer["stock"]}
    if broken:
        raise SystemExit(f"SGLang itself does not resolve {json.dumps(broken, indent=2)}")
    DOCUMENT.write_text(written(answers))


if __name__ == "__main__":
    main()
