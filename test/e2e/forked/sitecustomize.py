"""A server that finds this module forks its processes where SGLang spawns them; see `servers.forked`."""

import multiprocessing

as_asked = multiprocessing.set_start_method


def set_start_method(method: str, force: bool = False) -> None:
    """As asked, but not spawn."""
    as_asked("fork" if method == "spawn" else method, force=force)


multiprocessing.set_start_method = set_start_method
