"""The only module that a patch imports: one short function a seam.

Patched SGLang imports it in every process and in every mode, so importing it loads neither torch nor sglang,
and with the mode and the metrics' flags off each function costs one attribute test, or a look at the flags
once at start. What a seam leads to is imported on use.

The patch to `sglang/__init__.py` lists the names that SGLang calls. Where this module is missing, or lacks
one of them, none is called: each is then a function that returns None (`server_args_fields`: its class), and
that must leave SGLang as released. A function whose arguments or meaning change gets a new name.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any


def offer_cpu_kernels() -> None:
    """`sglang/__init__.py`: offer kernels/cpu as `sgl_kernel` where no CUDA driver exists."""
    from sglang_layered.upstream import cpu_kernels

    cpu_kernels.offer_cpu_kernels()


def server_args_fields(cls: Any) -> Any:
    """`ServerArgs`: the class with the flags of LayeredConfig as annotated fields."""
    from sglang_layered.server_flags import add_fields

    return add_fields(cls)


def check_server_args(server_args: Any) -> None:
    """`ServerArgs.check_server_args`: refuse bad flags; in layered mode also what it cannot serve."""
    from sglang_layered.server_flags import check

    check(server_args)


def run_event_loop(scheduler: Any) -> bool:
    """`dispatch_event_loop`: observe in any mode; run the layered loop until shutdown and say True.

    False leaves the loop to SGLang.
    """
    from sglang_layered.scheduler.observer import observe

    observe(scheduler)
    if scheduler.server_args.prefill_mode != "layered":
        return False
    from sglang_layered.upstream.releases import serving

    if serving.ranks_of(scheduler).pp_size > 1:
        from sglang_layered.scheduler.pipeline import PipelineLoop

        PipelineLoop.start(scheduler)
    else:
        from sglang_layered.scheduler.loop import LayeredLoop

        LayeredLoop.start(scheduler)
    return True


def on_pause(scheduler: Any) -> None:
    """`Scheduler.pause_generation` (abort and retract modes): let go of the cohort in flight."""
    loop = getattr(scheduler, "layered_loop", None)
    if loop is not None:
        loop.on_pause()


def owns_settings(scheduler: Any, request: Any) -> bool:
    """`Scheduler.set_internal_state`: does this request name settings of layered mode?"""
    from sglang_layered.settings import owns

    return owns(request.server_args)


def change_settings(scheduler: Any, request: Any) -> Any:
    """`Scheduler.set_internal_state`: change them and give SGLang's answer."""
    from sglang_layered.settings import change

    return change(scheduler, request.server_args)


def refuse_settings(answers: Any) -> None:
    """`TokenizerControlMixin.set_internal_state`: answer refused settings with 400 and the reason."""
    from sglang_layered.settings import raise_refused

    raise_refused(answers)


def has_step(forward_batch: Any) -> bool:
    """`ModelRunner._forward_raw`: does this ForwardBatch carry a layered step?"""
    return hasattr(forward_batch, "layered_step")


def run_step(model_runner: Any, forward_batch: Any) -> Any:
    """`ModelRunner._forward_raw`: run the step that the ForwardBatch carries."""
    return forward_batch.layered_step.run(model_runner)


def before_graphs(model_runner: Any) -> None:
    """`ModelRunner.init_cuda_graphs`: put what counts experts in place, but for those of a draft."""
    if model_runner.server_args.enable_expert_traffic_metrics and not model_runner.is_draft_worker:
        from sglang_layered.runner.expert_watch import ExpertWatch

        ExpertWatch.install(model_runner)


def after_graphs(model_runner: Any) -> None:
    """`ModelRunner.init_cuda_graphs`, its end: make what runs layered steps, with graphs of its own."""
    if model_runner.server_args.prefill_mode == "layered":
        from sglang_layered.runner.at_start import make_runner

        make_runner(model_runner)


def before_results(scheduler: Any, batch: Any) -> None:
    """`Scheduler.process_batch_result`: charge what the step loaded, before its tokens are streamed."""
    observer = getattr(scheduler, "layered_observer", None)
    if observer is not None:
        observer.before_results(batch)


def after_results(scheduler: Any, batch: Any) -> None:
    """`Scheduler.process_batch_result`: note when the tokens were handed on."""
    observer = getattr(scheduler, "layered_observer", None)
    if observer is not None:
        observer.after_results(batch)


def around_results(process_batch_result: Callable[..., None]) -> Callable[..., None]:
    """`Scheduler.process_batch_result` where no line is inserted: both of these around it, in one call."""

    @wraps(process_batch_result)
    def process(scheduler: Any, batch: Any, result: Any) -> None:
        observer = getattr(scheduler, "layered_observer", None)
        if observer is not None:
            observer.before_results(batch)
        process_batch_result(scheduler, batch, result)
        if observer is not None:
            observer.after_results(batch)

    return process


def add_state(scheduler: Any, state: dict[str, Any]) -> None:
    """`Scheduler.get_internal_state`: what `/server_info` shows of us."""
    observer = getattr(scheduler, "layered_observer", None)
    if observer is not None:
        state["layered"] = observer.state()


def clean_request(scheduler: Any, request: Any) -> None:
    """`Scheduler.handle_generate_request`: drop the fields of disaggregation where it is off.

    The address of SGLang's own fake sender, 2.2.2.2, keeps a prompt out of the prefix cache; one of several
    chunks then begins again with every chunk, in other slots, until the pool is empty.
    """
    if scheduler.disaggregation_mode.value == "null":
        for name in ("host", "port", "room", "pair_key"):
            setattr(request, f"bootstrap_{name}", None)
        request.disagg_prefill_dp_rank = None


def must_run_apart(chosen: list[Any], req: Any) -> bool:
    """`Scheduler._get_new_batch_prefill_raw`: does `req` not fit into one batch with the `chosen` ones?"""
    return bool(chosen) and (chosen[0].input_embeds is None) != (req.input_embeds is None)


def lost_its_token(req: Any) -> bool:
    """`_GenerationStreamAccumulator`: was `req` retracted, so that the token of this result is dropped?"""
    return bool(req.is_retracted)
