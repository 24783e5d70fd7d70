"""Plug-ins of SGLang's that take the place of what our patches stand at: layered mode would not run, unsaid.

Upstream: srt/plugins/hook_registry.py. Hooks before, after and around a function call it, and so ours.
"""

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_layered.errors import UnsupportedError

SCHEDULER, RUNNER = "sglang.srt.managers.scheduler", "sglang.srt.model_executor.model_runner.ModelRunner"
PLACES = {
    f"{SCHEDULER}.dispatch_event_loop",
    f"{SCHEDULER}.Scheduler",
    f"{SCHEDULER}.Scheduler.run_event_loop",
    f"{SCHEDULER}.Scheduler.pause_generation",
    f"{SCHEDULER}.Scheduler.process_batch_result",
    RUNNER,
    f"{RUNNER}._forward_raw",
    f"{RUNNER}.init_cuda_graphs",
}
"""Without these a cohort would be scheduled by SGLang, lost, or run as a whole prompt."""


def refuse_replaced_places() -> None:
    """Look at the hooks of all plug-ins, which SGLang has loaded before it checks its arguments.

    Raises:
        UnsupportedError: one of them replaces one of PLACES.
    """
    for target in sorted(PLACES & HookRegistry._hooks.keys()):
        names = [
            source.plugin_name if source is not None else "without a name"
            for kind, _, source in HookRegistry._hooks[target]
            if kind is HookType.REPLACE
        ]
        if names:
            raise UnsupportedError(
                f"--prefill-mode layered: SGLang's plug-in {names[-1]} replaces {target}, and layered prefill"
                " would not run; leave it out: SGLANG_PLUGINS with the names of the others"
            )
