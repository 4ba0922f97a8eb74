"""The list of operations that a network runs, by which two networks can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from amortopt.symmetry.axes import Operation
from amortopt.symmetry.rules import Call, Result, Value


class Recording:
    """Operations in execution order, without no-ops, and for every value the operation that made it.

    Args:
        shapes: Qualified parameter name -> shape.

    Attributes:
        operations: The operations so far.
        made_by: Node -> index of the operation that made its value; inputs count down from -1, constants are
            absent.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self.operations: list[Operation] = []
        self.made_by: dict[torch.fx.Node, int] = {}

    def passed_on(self, source: torch.fx.Node, node: torch.fx.Node) -> None:
        """Note that ``node`` has the value of ``source``, or a part of it."""
        if source in self.made_by:
            self.made_by[node] = self.made_by[source]

    def record(
        self, node: torch.fx.Node, call: Call, result: Result, values: Mapping[torch.fx.Node, Any]
    ) -> None:
        """Append the operation, unless it computes nothing, and note it as the source of its output.

        Args:
            node: The call in the graph.
            call: Its operator and arguments.
            result: Its labels, by a rule.
            values: Input node -> its value.
        """
        names = tuple(dict.fromkeys(v.param for v in tensors(call.args) if v.param is not None))
        sources = [
            self.made_by.get(source)
            for source, value in values.items()
            if not (isinstance(value, Value) and value.param is not None)
        ]
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
            # Offsets to the operations that are read, inputs as "input0": they tell a skip connection.
            read = [
                "constant" if k is None else f"input{-1 - k}" if k < 0 else str(k - last - 1) for k in sources
            ]
            config = (*config, ("reads", ",".join(sorted(read) if result.kind == "add" else read)))
        if result.kind == "linear":
            # Weight before bias, as addmm does not have it; a bias may be a row [1, n].
            shapes = {name: self._shapes[name] for name in names}
            names = tuple(sorted(names, key=lambda k: (-sum(n > 1 for n in shapes[k]), -len(shapes[k]))))
        self.operations.append(Operation(result.kind, names, config))
        return last + 1


def tensors(args: Any) -> list[Value]:
    """All tensors in the arguments of a call, in order."""
    if isinstance(args, Value):
        return [args]
    if isinstance(args, dict):
        args = list(args.values())
    return [value for arg in args for value in tensors(arg)] if isinstance(args, list | tuple) else []
