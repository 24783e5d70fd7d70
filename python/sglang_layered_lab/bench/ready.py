"""What can be known before a server starts or a request is sent: a dry run and a run refuse the same."""

from __future__ import annotations

import json
from pathlib import Path

from sglang_layered_lab.bench.spec import BenchSpec, MakeModelSpec
from sglang_layered_lab.bench.spec_errors import SpecError
from sglang_layered_lab.models.router_topics import topics_of


def check_model(spec: BenchSpec) -> None:
    """Refuse a model that is not there, or that cannot give what the workload asks of it.

    Raises:
        SpecError: it names the key.
    """
    model = spec.server.model
    if model is None:
        return
    if isinstance(model, MakeModelSpec):
        vocab_size = model.recipe().vocab_size
    else:
        vocab_size = _vocab_size(Path(model))
        if spec.workload.topics and not topics_of(model):
            raise SpecError(("workload", "topics"), "the model has none; calibrate its routers, or remove it")
    if spec.workload.vocab is not None and spec.workload.vocab[1] > vocab_size:
        raise SpecError(("workload", "vocab"), f"the model has {vocab_size} token ids; stay below that")


def _vocab_size(folder: Path) -> int:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return int(config.get("text_config", config)["vocab_size"])
    except OSError as error:
        raise SpecError(
            ("server", "model"), f"{folder} holds no config.json; give a folder with a model"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(
            ("server", "model"), f"{path} does not say vocab_size ({error!r}); correct it"
        ) from error
