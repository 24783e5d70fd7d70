"""LayeredConfig's flags as fields of SGLang's ServerArgs, and the checks made before a server starts."""

import logging
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, get_type_hints

from sglang_layered.config import LayeredConfig
from sglang_layered.errors import ConfigError, LayeredPrefillError
from sglang_layered.files import check_writable
from sglang_layered.flag_fields import flag_name
from sglang_layered.listeners.dispatch import check_listeners
from sglang_layered.models.images import refused_media
from sglang_layered.upstream.cpu_choice import (
    check_cpu_attention,
    offer_cpu_attention,
    register_cpu_attention,
)
from sglang_layered.upstream.releases import arguments

logger = logging.getLogger(__name__)

HEADING = "Of sglang-layered; docs/flags.md says which to set first."
SERVER_DOORS = ("sglang.launch_server", "sglang.cli.main")


def add_fields(cls: Any) -> Any:
    """The class that SGLang takes its flags from, with every flag of ours.

    Upstream file: srt/server_args.py.
    """
    types = get_type_hints(LayeredConfig)
    flags = [
        (
            item.name,
            types[item.name],
            item.default,
            {
                "help": item.metadata["help"],
                "choices": list(item.metadata["choices"] or ()) or None,
                "nargs": item.metadata["nargs"],
            },
        )
        for item in fields(LayeredConfig)
    ]
    cls = arguments.with_fields(cls, flags)
    arguments.let_flags_be_added(cls, under_heading)
    if arguments.IS_ONE_CLASS:
        register_cpu_attention()
    offer_cpu_attention(cls)
    return cls


class _WithHeading:
    """A parser to add arguments to: our flags go to a group of their own, everything else to the parser."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._group: Any = None
        self._ours = {flag_name(item.name) for item in fields(LayeredConfig)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def add_argument(self, *names: str, **settings: Any) -> Any:
        if not self._ours.intersection(names):
            return self._parser.add_argument(*names, **settings)
        self._group = self._group or self._parser.add_argument_group("layered prefill", HEADING)
        return self._group.add_argument(*names, **settings)


def under_heading(add_cli_args: Callable[..., None]) -> Callable[..., None]:
    """Wrap what adds flags to a parser: `--help` shows ours under a heading behind SGLang's hundreds."""

    @wraps(add_cli_args)
    def add(parser: Any, *args: Any, **kwargs: Any) -> None:
        add_cli_args(_WithHeading(parser), *args, **kwargs)

    return add


def check(server_args: Any) -> None:
    """Check our flags in any mode, and everything else that layered mode depends on.

    From the command line an error is one line and exit status 2; through `sglang.Engine` it is raised.

    Raises:
        ConfigError: a flag holds a bad value.
        UnsupportedError: layered mode refuses the combination or the model.
        PatchError: the installed SGLang is not patched as our manifest says.
    """
    try:
        _check(server_args)
    except LayeredPrefillError as error:
        if _started_as_server():
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)
        raise


def _check(server_args: Any) -> None:
    config = LayeredConfig.from_server_args(server_args)
    server_args = arguments.resolved(server_args)
    _check_unused(config)
    check_cpu_attention(server_args)
    if not config.is_layered and not config.observes:
        return
    from sglang_layered.patching import verify_patched
    from sglang_layered.refusals import refuse
    from sglang_layered.upstream.fused_sums import keep_sums_apart
    from sglang_layered.upstream.plugins import refuse_replaced_places

    verify_patched()
    if config.is_layered:
        refuse_replaced_places()
        config.check_layered_flags()
        _check_files(config, may_write=server_args.node_rank == 0)  # tensor rank 0, which writes, runs there
    refuse(config, server_args)
    if config.is_layered:
        limit_media(server_args)
        keep_sums_apart(server_args)
        if server_args.enable_lora or server_args.lora_paths:
            from sglang_layered.upstream.lora import give_back_what_is_left_behind

            give_back_what_is_left_behind()
        config.check_depth(arguments.model_config_of(server_args).num_hidden_layers)


def limit_media(server_args: Any) -> None:
    """Let SGLang answer what layer ranges would lose of an encoder's work with 400, request by request.

    Its warm-up sends an image to a multimodal model and ends the server when that gets a 400. Where images
    do, the warm-up is left out.
    """
    refused = refused_media(server_args)
    if not refused:
        return
    limits = {**(server_args.limit_mm_data_per_request or {}), **refused}
    skips_warmup = server_args.skip_server_warmup or "image" in refused
    arguments.decide(server_args, limit_mm_data_per_request=limits, skip_server_warmup=skips_warmup)
    logger.warning(
        "Layered mode answers requests with %s with 400 for %s%s",
        ", ".join(refused),
        server_args.model_path,
        "; the server's warm-up, which sends an image, is left out" if "image" in refused else "",
    )


def _check_unused(config: LayeredConfig) -> None:
    """Flags of layered mode that were given without it would do nothing."""
    refused = config.unused_flags("refuse")
    if refused:
        raise ConfigError(
            f"{', '.join(refused)} without --prefill-mode layered: nothing would be written; add that flag or"
            " leave it out"
        )
    warned = config.unused_flags("warn")
    if warned:
        logger.warning(
            "%s: without --prefill-mode layered these flags do nothing; add it or leave them out",
            ", ".join(warned),
        )


def _check_files(config: LayeredConfig, may_write: bool) -> None:
    """Refuse listeners that are not there and files that cannot be written, while nothing is lost yet."""
    check_listeners(config.layered_listeners or (), may_write)
    if may_write and config.layered_calibration_file is not None:
        where = f"--layered-calibration-file {config.layered_calibration_file}"
        check_writable(config.layered_calibration_file, where)


def _started_as_server() -> bool:
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    name = spec.name if spec is not None else ""
    return name in SERVER_DOORS or str(getattr(main, "__file__", "")).endswith("/bin/sglang")
