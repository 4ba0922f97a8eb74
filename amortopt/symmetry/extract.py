"""The symmetry of any ``nn.Module`` from its traced graph: the rules' constraints read off as a table."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_arg

from amortopt.symmetry.labels import Atom, Dim, Dims, Labels, fixed, size_of
from amortopt.symmetry.rules import Call, NoRule, Result, Value, rule_for
from amortopt.symmetry.spec import Axis, Block, NeuronGroup, Operation, SymmetrySpec
from amortopt.symmetry.trace import Trace, arguments, module_path, operator_name, shape_of, trace


class UnknownOperationWarning(UserWarning):
    """An operation has no rule, so the groups that it touches are taken as trivial."""


class UnknownOperationError(ValueError):
    """The same under ``strict=True``."""


def extract(
    module: nn.Module, example_input: Tensor | tuple[Tensor, ...], *, strict: bool = False
) -> SymmetrySpec:
    """Find what may be permuted and rescaled in a network without changing its function in eval mode.

    The forward pass is traced; every dimension of every value is labelled with the neuron groups that it is
    made of (see :mod:`amortopt.symmetry.labels`), and a rule per operation says what these may do. The answer
    may be smaller than the true symmetry, never larger.

    Args:
        module: The base network; not modified.
        example_input: A tensor [N, ...] that ``forward`` takes, or a tuple of them; the first axis is the
            batch.
        strict: Raise where an operation without a rule costs symmetry, instead of warning.

    Returns:
        The symmetry of all named parameters.

    Raises:
        ValueError: The module has no parameters, lazy, integer, complex or shared ones, one that two
            operations use, does not take this input, or cannot be traced.
        UnknownOperationError: Under ``strict``, an operation without a rule; a ValueError.

    Warns:
        UnknownOperationWarning: An operation without a rule, with its name and module path.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        >>> print(*extract(net, torch.zeros(5, 4)).blocks_of("0.weight")[0].axes)
        h1^+1 in^-1
    """
    return _Extraction(trace(module, example_input), strict).run()


class _Extraction:
    """State of one pass over the graph."""

    def __init__(self, traced: Trace, strict: bool) -> None:
        self.traced = traced
        self.strict = strict
        self.labels = Labels()
        self.params: dict[str, Value] = {}
        self.user: dict[str, str] = {}
        self.values: dict[torch.fx.Node, Any] = {}
        self.operations: list[Operation] = []
        # Node -> index of the operation that made its value; inputs count down from -1, constants are absent.
        self.made_by: dict[torch.fx.Node, int] = {}

    def run(self) -> SymmetrySpec:
        for node in self.traced.nodes:
            if node.op == "placeholder":
                self.values[node] = self._placeholder(node)
            elif node.op == "get_attr":
                self.values[node] = _constant(node)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                outputs = map_arg(node.args, self._value)
                for value in _tensors(outputs):
                    self.labels.mark_output(value.dims)
        return _table_of(self.labels, self._ordered_params(), tuple(self.operations))

    def _placeholder(self, node: torch.fx.Node) -> Value | None:
        shape = shape_of(node.meta.get("val"))
        if shape is None:
            return None
        name = self.traced.params.get(node.name)
        if name is not None:
            value = Value(tuple(self.labels.fresh(size, name) for size in shape), shape, name)
            self.params[name] = value
            return value
        if node.name not in self.traced.inputs:
            return _constant(node)
        self.made_by[node] = -1 - self.traced.inputs.index(node.name)
        inner = tuple(self.labels.fresh_input(size) for size in shape[1:])
        return Value((fixed(shape[0], "batch"), *inner), shape)

    def _value(self, node: torch.fx.Node) -> Any:
        return self.values.get(node)

    def _call(self, node: torch.fx.Node) -> None:
        if operator_name(node) == "operator.getitem":
            source, index = node.args[0], node.args[1]
            assert isinstance(source, torch.fx.Node)
            parts = self.values.get(source)
            self.values[node] = None
            if isinstance(parts, list) and isinstance(index, int):
                self.values[node] = parts[index]
            self.made_by[node] = self.made_by.get(source, -1)
            return
        given, op = arguments(node), operator_name(node)
        if node in self.traced.softsigns:
            given, op = {"self": self.traced.softsigns[node]}, "aten.softsign"
        args = {key: map_arg(arg, self._value) for key, arg in given.items()}
        output = node.meta.get("val")
        call = Call(op, args, shape_of(output) or (), module_path(node))
        names = tuple(dict.fromkeys(value.param for value in _tensors(args) if value.param is not None))
        rule = rule_for(call.op)
        try:
            if rule is None or shape_of(output) is None:
                raise NoRule("")
            result = rule(self.labels, call)
            self.values[node] = Value(result.dims, call.shape, result.param)
        except NoRule as declined:
            result = Result((), call.op, _settings(args))
            self.values[node] = self._without_rule(call, output, str(declined))
        self._record(node, call, result, names)

    def _record(self, node: torch.fx.Node, call: Call, result: Result, names: tuple[str, ...]) -> None:
        """Append the operation, unless nothing is computed, and note where its value comes from."""
        inputs = [self.traced.softsigns[node]] if node in self.traced.softsigns else node.all_input_nodes
        values = [self.values.get(arg) for arg in inputs]
        is_param = [isinstance(value, Value) and value.param is not None for value in values]
        sources = [self.made_by.get(arg) for arg, skip in zip(inputs, is_param, strict=True) if not skip]
        made_by = sources[0] if sources else None
        if result.kind:
            for name in names:
                if name in self.user:
                    raise ValueError(
                        f"module: parameter {name!r} is used by two operations: {self.user[name]} and "
                        f"{call}; a tie is not supported yet, give each use its own parameter"
                    )
                self.user[name] = str(call)
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
            names = tuple(sorted(names, key=lambda name: -len(self.params[name].shape)))
        self.operations.append(Operation(result.kind, names, config))
        return last + 1

    def _without_rule(self, call: Call, output: Any, why: str) -> Any:
        """Allow nothing on what goes in; label what comes out as unmoved."""
        touched = _tensors(call.args)
        lost = [
            var
            for var in self.labels.variables(*(dim for value in touched for dim in value.dims))
            if not self.labels.is_pinned(var)
        ]
        if lost:
            origins = ", ".join(dict.fromkeys(self.labels.origin(var) for var in lost))
            detail = f" ({why})" if why else ""
            message = f"operation {call}{detail} has no symmetry rule; taken as trivial: groups of {origins}"
            if self.strict:
                raise UnknownOperationError(f"{message}; pass strict=False to accept that")
            warnings.warn(message, UnknownOperationWarning, stacklevel=_outside())
        for value in touched:
            if value.param is not None:
                for dim, size in zip(value.dims, value.shape, strict=True):
                    self.labels.tie(dim, fixed(size, "unknown"), call.name)
            self.labels.pin(value.dims, call.name)
        if isinstance(output, list | tuple):
            return [self._unmoved(call, part, touched) for part in output]
        return self._unmoved(call, output, touched)

    def _unmoved(self, call: Call, output: Any, touched: list[Value]) -> Value | None:
        shape = shape_of(output)
        if shape is None:
            return None
        for value in touched:
            if value.shape == shape and value.param is None:
                return Value(value.dims, shape)
        batch = [value.dims[0] for value in touched if value.param is None and value.ndim]
        dims: list[Dim] = []
        for axis, size in enumerate(shape):
            if axis == 0 and batch and size_of(batch[0]) == size:
                dims.append(batch[0])
            else:
                dims.append(self.labels.fresh(size, call.path or call.op))
        self.labels.pin(tuple(dims), call.name)
        return Value(tuple(dims), shape)

    def _ordered_params(self) -> dict[str, Dims]:
        """Labels of the parameters in the order of their use, then of those that nothing uses."""
        ordered = [name for op in self.operations for name in op.params]
        for name, shape in self.traced.shapes.items():
            if name not in ordered:
                ordered.append(name)
                self.params[name] = Value(tuple(fixed(size, "unused") for size in shape), shape, name)
        return {name: self.params[name].dims for name in ordered}


def _source(made_by: int | None, position: int) -> str:
    if made_by is None:
        return "constant"
    return f"input{-1 - made_by}" if made_by < 0 else str(made_by - position)


def _constant(node: torch.fx.Node) -> Value | None:
    shape = shape_of(node.meta.get("val"))
    return None if shape is None else Value(tuple(fixed(size, "constant") for size in shape), shape)


def _tensors(args: Any) -> list[Value]:
    if isinstance(args, Value):
        return [args]
    if isinstance(args, dict):
        args = list(args.values())
    return [value for arg in args for value in _tensors(arg)] if isinstance(args, list | tuple) else []


def _settings(args: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((key, str(arg)) for key, arg in args.items() if not _tensors(arg) and arg is not None)


def _outside() -> int:
    """Stack level of the first caller outside this file."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_code.co_filename == __file__:
        frame, level = frame.f_back, level + 1
    return level


def _table_of(labels: Labels, params: dict[str, Dims], operations: tuple[Operation, ...]) -> SymmetrySpec:
    """Name the groups along the parameters, in execution order, and write down the axes."""
    facts: dict[tuple[int, ...], tuple[int, str]] = {}
    blocks: list[tuple[str, list[tuple[tuple[int, ...], Atom]]]] = []
    for param, dims in params.items():
        axes: list[tuple[tuple[int, ...], Atom]] = []
        for dim in dims:
            axes.extend(_axes_of(labels, labels.resolve(dim)))
        # A weight reads from its second axis: naming the axes from the end gives execution order.
        for key, atom in reversed(axes):
            if key and key not in facts:
                facts[key] = (atom.size, labels.origin(key[0]))
        blocks.append((param, axes))
    names = _names(facts)
    groups = tuple(
        NeuronGroup(names[key], size, labels.kind(key[0]), labels.permutable(key[0]), origin)
        for key, (size, origin) in facts.items()
    )
    return SymmetrySpec(
        groups,
        tuple(
            Block(param, tuple(_axis(names.get(key), atom) for key, atom in axes)) for param, axes in blocks
        ),
        operations,
    )


def _axes_of(labels: Labels, dim: Dim) -> list[tuple[tuple[int, ...], Atom]]:
    """The axes along one dimension, each with the variables of its group; none for a fixed axis."""
    if len(dim) > 1 and all(labels.is_input(atom) for atom in dim):
        # A flattened input is one group of its own.
        key = tuple(atom.var for atom in dim if atom.var is not None)
        return [(key, Atom(size_of(dim), key[0], dim[0].exponent))]
    axes: list[tuple[tuple[int, ...], Atom]] = []
    for atom in dim:
        if atom.var is not None:
            axes.append(((atom.var,), atom))
        elif axes and axes[-1][1].var is None:
            merged = axes.pop()[1]
            axes.append(((), Atom(merged.size * atom.size, role=merged.role)))
        elif atom.size != 1 or len(dim) == 1:
            axes.append(((), atom))
    return axes


def _axis(name: str | None, atom: Atom) -> Axis:
    return Axis(None, 0, atom.size, atom.role) if name is None else Axis(name, atom.exponent, atom.size)


def _names(facts: dict[tuple[int, ...], tuple[int, str]]) -> dict[tuple[int, ...], str]:
    """ "in", "h1", "h2", ..., "out"; further inputs and outputs are numbered."""
    names: dict[tuple[int, ...], str] = {}
    count = {"in": 0, "h": 0, "out": 0}
    for key, (_, origin) in facts.items():
        stem = {"input": "in", "output": "out"}.get(origin, "h")
        count[stem] += 1
        names[key] = stem if stem != "h" and count[stem] == 1 else f"{stem}{count[stem]}"
    return names
