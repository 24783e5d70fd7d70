"""Sees the memory that each operation touches: shared buffers by name, and what a graph would hold on to.

A kernel's reference is one launch, whatever torch does inside: it is told by its arguments.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from emulated_streams import CURRENT, ORDER

LAUNCHERS = ("sglang_layered", "sglang/srt", "sglang/kernels")  # whose lines are named in a violation


class Touched:
    """Addresses of storages that operations read or wrote and did not allocate themselves."""

    def __init__(self) -> None:
        self.addresses: set[int] = set()
        self._made: list[torch.Tensor] = []  # kept, so that no address is given out twice
        self._made_addresses: set[int] = set()

    def used(self, address: int) -> None:
        if address not in self._made_addresses:
            self.addresses.add(address)

    def made(self, tensor: torch.Tensor) -> None:
        address = tensor.untyped_storage().data_ptr()
        if address not in self.addresses:
            self._made.append(tensor)
            self._made_addresses.add(address)


class MemoryWatch(TorchDispatchMode):
    """Hears of every operation of the process."""

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[int, str] = {}  # of a storage
        self._freeable: dict[str, tuple[StorageWeakRef, int, str]] = {}  # with its address and its stream
        self._kept_for: dict[int, set[str]] = {}
        self._num_named = 0
        self._touched: Touched | None = None

    def name(self, tensor: torch.Tensor, name: str, home: str | None = None) -> None:
        """Watch the memory of a tensor; `home` is the stream that allocated it, where it may be freed."""
        self.look_for_freed()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._names or not storage.nbytes():
            return
        if home is not None:
            self._num_named += 1
            name = f"{name} #{self._num_named}"
            self._freeable[name] = StorageWeakRef(storage), storage.data_ptr(), home
        self._names[storage.data_ptr()] = name

    def alive(self, name: str) -> int:
        """How many buffers of a name that may be freed are still there."""
        self.look_for_freed()
        return sum(known.startswith(name) for known in self._freeable)

    def keep(self, tensor: torch.Tensor, stream: Any) -> None:
        """`Tensor.record_stream`."""
        self._kept_for.setdefault(tensor.untyped_storage().data_ptr(), set()).add(stream.name)

    @contextmanager
    def touching(self) -> Iterator[Touched]:
        """What is touched inside."""
        before, self._touched = self._touched, Touched()
        try:
            yield self._touched
        finally:
            self._touched = before

    def is_named(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._names

    def uses(self, tensor: torch.Tensor, is_write: bool) -> None:
        """An operation launched now reads or writes this tensor."""
        if not tensor.numel():
            return
        address = tensor.untyped_storage().data_ptr()
        if self._touched is not None:
            self._touched.used(address)
        if address in self._names:
            ORDER[0].access(self._names[address], CURRENT[-1].name, is_write, _where())

    def made(self, output: Any) -> None:
        """An operation gave this; memory that nothing used before is its own."""
        if self._touched is not None:
            for tensor in tensors_in(output):
                if tensor.numel():
                    self._touched.made(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.look_for_freed()
        if func is torch.ops.aten.lift_fresh.default:  # a Python number became a tensor
            self.made(args[0])
        views, writes = _how(func)
        for position, value in (*enumerate(args), *kwargs.items()):
            if position not in views or self._touched is not None:
                for tensor in tensors_in(value):
                    self._dispatched(tensor, position in views, position in writes)
        output = func(*args, **kwargs)
        self.made(output)
        return output

    def _dispatched(self, tensor: torch.Tensor, is_view: bool, is_write: bool) -> None:
        if not is_view:
            self.uses(tensor, is_write)
        elif self._touched is not None and tensor.numel():
            self._touched.used(tensor.untyped_storage().data_ptr())

    def look_for_freed(self) -> None:
        """Memory that went back since the last look goes back now."""
        for name in [name for name, (ref, _, _) in self._freeable.items() if ref.expired()]:
            _, address, home = self._freeable.pop(name)
            ORDER[0].free(name, home, self._kept_for.pop(address, set()))
            self._names.pop(address, None)


WATCH = MemoryWatch()
LAUNCHED: set[str] = set()  # Triton kernels, with their modules


@functools.cache
def _how(func: Any) -> tuple[frozenset[int | str], frozenset[int | str]]:
    """Arguments, by position and by name, that become views, and those that are written."""
    views, writes = set(), set()
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None:
            (writes if argument.alias_info.is_write else views).update((position, argument.name))
    return frozenset(views), frozenset(writes)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors of an argument or a result, in lists and tuples, too."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def as_kernel(*written: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a reference one launch that writes the arguments of these names and reads the others."""

    def decorate(reference: Callable[..., Any]) -> Callable[..., Any]:
        names = reference.__code__.co_varnames[: reference.__code__.co_argcount]

        @functools.wraps(reference)
        def launched(*args: Any, **kwargs: Any) -> Any:
            for name, value in (*zip_longest(names[: len(args)], args), *kwargs.items()):
                for tensor in tensors_in(value):
                    WATCH.uses(tensor, name in written)
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                output = reference(*args, **kwargs)
            WATCH.made(output)
            return output

        return launched

    return decorate


def watch_triton() -> None:
    """Interpreted Triton kernels launch no torch operation: what one wrote is what it left changed."""
    from triton.runtime.interpreter import GridExecutor

    launch = GridExecutor.__call__

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        LAUNCHED.add(f"{self.fn.__module__}:{self.fn.__name__}")
        tensors = tensors_in((*args, *kwargs.values()))
        before = [tensor.clone() if WATCH.is_named(tensor) else None for tensor in tensors]
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            launch(self, *args, **kwargs)
        for tensor, old in zip(tensors, before, strict=True):
            WATCH.uses(tensor, is_write=old is not None and not torch.equal(tensor, old))

    GridExecutor.__call__ = watched


def _where() -> str:
    """The innermost function of SGLang's or our own code."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if any(part in path for part in LAUNCHERS) and "cuda_emulation" not in path:
            return f"{path.rpartition('/')[2]}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "the test"
