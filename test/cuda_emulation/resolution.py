"""How SGLang resolves a launch command on the emulated GPU, and what layered mode says to it.

Starts nothing. Runs inside a worker.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from fake_device import DEVICES, pretend, pretend_memory

SHOWN = (
    "device",
    "dtype",
    "kv_cache_dtype",
    "page_size",
    "disable_overlap_schedule",
    "layered_execution",
    "layered_graph_granularity",
    "prefill_mode",
    "enable_torch_compile",
    "mem_fraction_static",
)


def resolve(case: dict[str, Any]) -> dict[str, Any]:
    """Of each command what it resolves to, or its error; on another device of the same generation, too."""
    pretend(DEVICES[case["device"]])
    pretend_memory(DEVICES[case["device"]])
    return {"commands": [_resolved(command) for command in case["commands"]]}


def _resolved(command: Sequence[str]) -> dict[str, Any]:
    """The settings that the server would run with, and what of the model must fit them."""
    from sglang_layered.upstream.releases import arguments

    try:
        given = _prepared(command)
        given.check_server_args()
        model = arguments.model_config_of(given)
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    args = arguments.resolved(given)
    graphs = args.cuda_graph_config
    sizes = [] if graphs is None or args.disable_cuda_graph else graphs.decode.bs or []
    return {name: getattr(args, name, None) for name in SHOWN} | {
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "head_size": model.head_dim,
        "num_layers": model.num_hidden_layers,
        "attention": list(arguments.attention_backends_of(given)),
        "decode_graph_sizes": list(sizes),
    }


def _prepared(command: Sequence[str]) -> Any:
    """Arguments as a launch has them when it checks them; 0.5.17 resolves them as they are made."""
    import sglang.srt.server_args as server_args

    args = server_args.prepare_server_args(list(command))
    getattr(args, "resolve_once", lambda: None)()
    return args


def refusals(case: dict[str, Any]) -> dict[str, Any]:
    """Of each command why layered mode refuses it: all reasons, what a server says, and stock's own error."""
    pretend(DEVICES[case["device"]])
    pretend_memory(DEVICES[case["device"]])
    return {"commands": [_refused(command) for command in case["commands"]]}


def _refused(command: Sequence[str]) -> dict[str, Any]:
    from sglang_layered.errors import UnsupportedError

    found: dict[str, Any] = {"reasons": [], "told": None, "stock": None}
    try:
        _prepared(command).check_server_args()
        args = _prepared([*command, "--prefill-mode", "layered"])
        found["reasons"] = list(dict.fromkeys(_reasons(args)))
        args.check_server_args()
    except UnsupportedError as error:
        found["told"] = str(error)
    except (Exception, SystemExit) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        found["stock"] = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
    return found


def _reasons(args: Any) -> Iterator[str]:
    """Flags in code style, and kinds of models; a server names the first."""
    from sglang_layered.config import LayeredConfig
    from sglang_layered.models.refused import MODELS
    from sglang_layered.refusals import REFUSALS, Start
    from sglang_layered.upstream.releases import arguments

    args = arguments.resolved(args)
    start = Start(LayeredConfig.from_server_args(args), args)
    kinds = [kind for kind, (applies, _) in MODELS.items() if applies(start.model_config)]
    for is_asked, rows in REFUSALS.items():
        for text, applies in rows.items() if is_asked(start) else ():
            if not applies(start):
                continue
            drafts = re.match(r"(--speculative-algorithm) .* cannot serve [^:]*: (.*); ", text)
            if drafts:
                yield f"`{drafts[1]}`: {drafts[2]}"
            elif "{start.model_refusal}" in text:
                yield from (
                    (re.split(r" \(|, ", kind)[0] for kind in kinds) if kinds else [start.model_refusal]
                )
            else:
                flag = re.search(r"does not work with (--[\w-]+)", text)
                yield f"`{flag[1]}`" if flag else text.format(start=start, config=start.config, args=args)
