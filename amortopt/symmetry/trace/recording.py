"""What a network computes, as a list of operations by which two networks can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from amortopt.symmetry.axes import Operation
from amortopt.symmetry.rules import Call, Result, Value


class Recording:
    """Operations in execution order, without no-ops, and where every value comes from.

    Args:
        shapes: Qualified parameter name -> shape.

    Attributes:
        operations: What was recorded.
        made_by: Node -> index of the operation that made its value; inputs count down from -1, constants are
            absent.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self.operations: list[Operation] = []
        self.made_by: dict[torch.fx.Node, int] = {}

    def passed_on(self, source: torch.fx.Node, node: torch.fx.Node) -> None:
        """A node has the value of another one, or a part of it."""
        if source in self.made_by:
            self.made_by[node] = self.made_by[source]

    def record(
        self, node: torch.fx.Node, call: Call, result: Result, values: Mapping[torch.fx.Node, Any]
    ) -> None:
        """Append the operation, unless nothing is computed, and note where its value comes from.

        Args:
            node: The call in the graph.
            call: The call.
            result: What its rule found.
            values: What goes in, by node.
        """
        inputs = list(values)
        names = tuple(dict.fromkeys(v.param for v in tensors(call.args) if v.param is not None))
        is_param = [isinstance(value, Value) and value.param is not None for value in values.values()]
        sources = [self.made_by.get(arg) for arg, skip in zip(inputs, is_param, strict=True) if not skip]
        made_by = sources[0] if sources else None
        if result.kind:
            made_by = self._append(result, names, sources)
        if made_by is not None and result.param is None:
            self.made_by[node] = made_by
            first = node.args[0] if node.args else None
            if call.op.endswith("_") and isinstance(first, torch.fx.Node):
                self.made_by[first] = made_by

    def _append(self, result: Result, names: tuple[str, ...], sources: list[int | None]) -> int:
        last = len(self.operations) - 1
        previous = self.operations[-1] if self.operations else None
        is_bias = result.kind == "add" and names and sources == [last] and not result.config
        if is_bias and previous is not None and previous.kind == "linear" and len(previous.params) == 1:
            # x @ W.T + b is a dense layer, however it is written.
            self.operations[-1] = Operation("linear", (*previous.params, *names), previous.config)
            return last
        config = result.config
        if sources != [last]:
            # Offsets to the operations read, inputs as "input0": what makes a skip connection another
            # network.
            read = [_source(source, last + 1) for source in sources]
            config = (*config, ("reads", ",".join(sorted(read) if result.kind == "add" else read)))
        if result.kind == "linear":
            # Weight before bias, as addmm does not have it.
            names = tuple(sorted(names, key=lambda name: -len(self._shapes[name])))
        self.operations.append(Operation(result.kind, names, config))
        return last + 1


def _source(made_by: int | None, position: int) -> str:
    if made_by is None:
        return "constant"
    return f"input{-1 - made_by}" if made_by < 0 else str(made_by - position)


def tensors(args: Any) -> list[Value]:
    """All tensors in the arguments of a call, in order."""
    if isinstance(args, Value):
        return [args]
    if isinstance(args, dict):
        args = list(args.values())
    return [value for arg in args for value in tensors(arg)] if isinstance(args, list | tuple) else []
