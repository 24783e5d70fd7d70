"""How rows pass from layer to layer of a list, and what stands in a layer's place while a range runs."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from torch import nn

from sglang_layered.upstream.releases import boundaries

Call: TypeAlias = Callable[..., Any]


class Reached(Exception):
    """Ends a forward where a range ends: nothing after its last layer runs, whatever the model has there."""

    def __init__(self, rows: dict[str, Any]) -> None:
        super().__init__()
        self.rows = rows


@dataclass(frozen=True, slots=True)
class Flow:
    """How rows pass from layer to layer.

    `names` has for each value that a layer returns the argument that it is to the next layer, None for a
    value that no layer takes. `is_tuple` is False for layers that return one tensor.
    """

    names: tuple[str | None, ...]
    is_tuple: bool

    def taken(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What is handed over, among a layer's arguments."""
        return {name: arguments.get(name) for name in self.names if name is not None}

    def given(self, output: Any) -> dict[str, Any]:
        """What is handed over, in what a layer returned."""
        values = values_of(output)
        return {name: value for name, value in zip(self.names, values, strict=True) if name is not None}

    def output(self, handed: Mapping[str, Any]) -> Any:
        """What a layer would have returned with this."""
        values = tuple(None if name is None else handed[name] for name in self.names)
        return values if self.is_tuple else values[0]

    def passed(self, rows: PPProxyTensors) -> Any:
        """What layers before a range return, which its first layer does not look at."""
        return self.output(rows.tensors)

    def left(self, handed: dict[str, Any], batch: ForwardBatch) -> dict[str, Any]:
        """The rows in what is handed over."""
        return handed

    def entered(self, number: int, rows: PPProxyTensors, batch: ForwardBatch) -> dict[str, Any]:
        """What is handed over to layer `number` for it to have these rows."""
        return rows.tensors


@dataclass(frozen=True, slots=True)
class KeptFlow(Flow):
    """Of layers that hand one value over and keep what else is theirs on the batch (`handover`)."""

    handover: Any

    def passed(self, rows: PPProxyTensors) -> Any:
        """Of the right shape; what else is on the batch is not theirs."""
        return self.output(dict.fromkeys(filter(None, self.names), rows["hidden_states"]))

    def left(self, handed: dict[str, Any], batch: ForwardBatch) -> dict[str, Any]:
        """As a pipeline stage sends them."""
        [value] = handed.values()
        rows: dict[str, Any] = self.handover.leave(value, batch)
        return rows

    def entered(self, number: int, rows: PPProxyTensors, batch: ForwardBatch) -> dict[str, Any]:
        """As a pipeline stage takes them; `number` may be behind the last layer."""
        [name] = filter(None, self.names)
        return {name: self.handover.enter(number, rows, batch)}


class StandIn:
    """Stands in the list where a layer stands; a loop may ask it for the layer's attributes."""

    def __init__(self, layer: nn.Module, call: Call) -> None:
        self._layer = layer
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the loop gets from this layer."""
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class Layer:
    """One layer, and what is called in its place while a range runs."""

    def __init__(self, module: nn.Module, passing: Call) -> None:
        self.module = module
        self.passing = StandIn(module, passing)
        self._signature = inspect.signature(module.forward)

    def arguments(self, args: Any, kwargs: Any) -> dict[str, Any]:
        """The arguments of a call by name."""
        return dict(self._signature.bind(*args, **kwargs).arguments)

    def noting(self, calls: list[tuple[dict[str, Any], Any]]) -> StandIn:
        """Runs, and notes arguments and result."""

        def run(*args: Any, **kwargs: Any) -> Any:
            calls.append((self.arguments(args, kwargs), self.module(*args, **kwargs)))
            return calls[-1][1]

        return StandIn(self.module, run)

    def resumed(self, handed: Call) -> StandIn:
        """Runs with what `handed` gives, whatever the loop hands over."""

        def run(*args: Any, **kwargs: Any) -> Any:
            call = self._signature.bind(*args, **kwargs)
            call.arguments.update(handed())
            return self.module(*call.args, **call.kwargs)

        return StandIn(self.module, run)

    def entered(self, flow: Flow, batch: ForwardBatch) -> StandIn:
        """Ends the forward before this layer."""

        def stop(*args: Any, **kwargs: Any) -> Any:
            raise Reached(flow.left(flow.taken(self.arguments(args, kwargs)), batch))

        return StandIn(self.module, stop)

    def last(self, flow: Flow, batch: ForwardBatch, run: Call) -> StandIn:
        """Ends the forward after this layer, which `run` runs."""

        def stop(*args: Any, **kwargs: Any) -> Any:
            raise Reached(flow.left(flow.given(run(*args, **kwargs)), batch))

        return StandIn(self.module, stop)


def flow_of(output: Any, arguments: Mapping[str, Any]) -> Flow:
    """Which of the values that a layer returned the next one takes, and as what."""
    names = [
        next((name for name, taken in arguments.items() if taken is value), None)
        if isinstance(value, boundaries.HANDED)
        else None
        for value in values_of(output)
    ]
    return Flow(tuple(names), isinstance(output, tuple))


def values_of(output: Any) -> tuple[Any, ...]:
    """What a layer returned, as a tuple."""
    return output if isinstance(output, tuple) else (output,)
