"""LayeredConfig's flags as fields of SGLang's ServerArgs, and the checks made before a server starts."""

from __future__ import annotations

import logging
import sys
from dataclasses import fields
from typing import Any, get_type_hints

from sglang_layered.config import LayeredConfig
from sglang_layered.errors import ConfigError, LayeredPrefillError

logger = logging.getLogger(__name__)

SERVER_DOORS = ("sglang.launch_server", "sglang.cli.main")


def add_fields(cls: Any) -> None:
    """Add every flag to the class that SGLang turns into its ServerArgs dataclass.

    Upstream file: srt/server_args.py. Help, parsing, Engine keywords, `/server_info` and the `schedule`
    namespace follow from the annotation.
    """
    from sglang.srt.arg_groups.arg_utils import NS, A, Arg

    types = get_type_hints(LayeredConfig)
    for item in fields(LayeredConfig):
        choices = item.metadata["choices"]
        arg = Arg(
            help=item.metadata["help"],
            choices=list(choices) if choices else None,
            nargs=item.metadata["nargs"],
        )
        cls.__annotations__[item.name] = A[types[item.name], arg, NS("schedule")]
        setattr(cls, item.name, item.default)


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
    _check_unused(config)
    if config.observes:
        from sglang_layered.metrics.refusals import refuse_observing

        refuse_observing(config, server_args)
    if config.is_layered or config.observes:
        from sglang_layered.patching import verify_patched

        verify_patched()
    if not config.is_layered:
        return
    from sglang_layered.listeners.dispatch import check_listeners
    from sglang_layered.refusals import refuse_group_attention, refuse_unsupported

    config.check_policy()
    check_listeners(config.layered_listeners or ())
    _check_stages(config, server_args.pp_size)
    refuse_unsupported(server_args)
    if server_args.node_rank == 0:  # tensor rank 0, which writes, runs there
        _check_files(config)
    refuse_group_attention(config.group_attention, server_args)
    config.check_depth(server_args.get_model_config().num_hidden_layers)


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


def _check_files(config: LayeredConfig) -> None:
    """Refuse files that cannot be written, while nothing is lost yet."""
    from sglang_layered.listeners.dispatch import check_listener_files
    from sglang_layered.listeners.files import check_writable

    check_listener_files(config.layered_listeners or ())
    if config.layered_calibration_file is not None:
        where = f"--layered-calibration-file {config.layered_calibration_file}"
        check_writable(config.layered_calibration_file, where)


def _check_stages(config: LayeredConfig, num_stages: int) -> None:
    """Every pipeline stage is a process with listeners of its own, and none learns."""
    if num_stages > 1 and config.layered_calibration_file is not None:
        raise ConfigError(
            f"--layered-calibration-file {config.layered_calibration_file}: with --pp-size {num_stages} no"
            " policy hears what steps took; leave the file out"
        )
    for spec in config.layered_listeners or ():
        if num_stages > 1 and "=" in spec and "{pp}" not in spec:
            raise ConfigError(
                f"--layered-listeners {spec}: with --pp-size {num_stages} every stage writes a file of its"
                " own; put {pp} into the path"
            )


def _started_as_server() -> bool:
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    name = spec.name if spec is not None else ""
    return name in SERVER_DOORS or str(getattr(main, "__file__", "")).endswith("/bin/sglang")
