"""What the patches of SGLang 0.5.23 call: seams, and two decorators that go around methods of its classes.

A decorated class costs one inserted line whatever is done at its methods, and the patch set pins its file by
hash, so that the methods are those which were read. One that is not there ends the import with its name.
Through SGLang's registry of hooks it would be a line in the log (docs/porting.md).

Without this module SGLang runs as released: each name is then a function that gives None, or the class it is
given. So one is never taken away or changed: a patch set that needs other ones imports another module.
"""

from functools import wraps
from typing import Any

from sglang_layered import seams
from sglang_layered.seams import check_server_args as check_server_args
from sglang_layered.seams import has_step as has_step
from sglang_layered.seams import must_run_apart as must_run_apart
from sglang_layered.seams import offer_cpu_kernels as offer_cpu_kernels
from sglang_layered.seams import refuse_settings as refuse_settings
from sglang_layered.seams import run_event_loop as run_event_loop
from sglang_layered.seams import run_step as run_step
from sglang_layered.seams import server_args_fields as server_args_fields


def scheduler_class(scheduler_class: Any) -> Any:
    """`Scheduler`: ours around what it does with requests, results, pauses, settings and its state.

    Raises:
        AttributeError: it lacks one of these methods.
    """
    handle_generate_request = scheduler_class.handle_generate_request
    pause_generation = scheduler_class.pause_generation
    observe = seams.around_results(scheduler_class.process_batch_result)
    get_internal_state = scheduler_class.get_internal_state
    set_internal_state = scheduler_class.set_internal_state

    @wraps(handle_generate_request)
    def clean(scheduler: Any, recv_req: Any, **kwargs: Any) -> None:
        seams.clean_request(scheduler, recv_req)
        handle_generate_request(scheduler, recv_req, **kwargs)

    @wraps(pause_generation)
    def pause(scheduler: Any, recv_req: Any) -> None:
        if recv_req.mode != "in_place":  # which leaves all as it is
            seams.on_pause(scheduler)
        pause_generation(scheduler, recv_req)

    @wraps(get_internal_state)
    def tell(scheduler: Any, recv_req: Any) -> Any:
        answer = get_internal_state(scheduler, recv_req)
        seams.add_state(scheduler, answer.internal_state)
        return answer

    @wraps(set_internal_state)
    def change(scheduler: Any, recv_req: Any) -> Any:
        if seams.owns_settings(scheduler, recv_req):
            return seams.change_settings(scheduler, recv_req)
        return set_internal_state(scheduler, recv_req)

    scheduler_class.handle_generate_request = clean
    scheduler_class.pause_generation = pause
    scheduler_class.process_batch_result = observe
    scheduler_class.get_internal_state = tell
    scheduler_class.set_internal_state = change
    return scheduler_class


def runner_class(runner_class: Any) -> Any:
    """`ModelRunner`: ours before and after its CUDA graphs, and among the attention backends that it knows.

    Raises:
        AttributeError: it lacks that method.
    """
    from sglang_layered.upstream.cpu_choice import register_cpu_attention

    init_cuda_graphs = runner_class.init_cuda_graphs

    @wraps(init_cuda_graphs)
    def prepare(model_runner: Any, *args: Any, **kwargs: Any) -> None:
        seams.before_graphs(model_runner)
        init_cuda_graphs(model_runner, *args, **kwargs)
        seams.after_graphs(model_runner)

    runner_class.init_cuda_graphs = prepare
    register_cpu_attention()
    return runner_class
