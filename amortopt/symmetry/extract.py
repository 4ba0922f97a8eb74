"""The symmetry of any ``nn.Module`` from its traced graph: the rules' constraints read off as a table."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_arg
from torch.overrides import TorchFunctionMode

from amortopt.symmetry.inputs import Inputs
from amortopt.symmetry.proof.running import Runner
from amortopt.symmetry.rules import Call, NoRule, Result, RuleError, Value, rule_for
from amortopt.symmetry.rules.dimensions import by_axis
from amortopt.symmetry.solve.dims import Dim, fixed, is_fixed, size_of
from amortopt.symmetry.solve.labels import Labels
from amortopt.symmetry.solve.table import Labelled, table_of
from amortopt.symmetry.spec import SymmetrySpec
from amortopt.symmetry.trace.clock import Clock
from amortopt.symmetry.trace.concrete import size_from, takes_number
from amortopt.symmetry.trace.program import (
    CHECKS,
    Trace,
    arguments,
    check_module,
    has_readers,
    memory_steps,
    module_path,
    operator_name,
    shape_of,
    split_everywhere,
    trace,
    wrapped_graph,
)
from amortopt.symmetry.trace.recording import Recording, tensors


class UnknownOperationWarning(UserWarning):
    """An operation has no rule, so the groups that it touches are taken as trivial."""


class UnknownOperationError(ValueError):
    """The same under ``strict=True``."""


def extract(
    module: nn.Module, example_input: Any, *, strict: bool = False, seconds: float | None = None
) -> SymmetrySpec:
    """Find what may be permuted and rescaled in a network without changing its function in eval mode.

    The forward pass is traced; every dimension of every value is labelled with the neuron groups that it is
    made of (see `solve.labels`), and a rule per operation constrains them. The answer may be smaller than the
    true symmetry, never larger.

    No value of a weight is read, only shapes: a network on the meta device, or made of fake tensors, has the
    table of the same network with weights, at no cost of memory. Its proof needs values.

    Args:
        module: The base network; not modified. On any device; ``example_input`` on the same one.
        example_input: What ``forward`` takes: a tensor, whose first axis is the batch; a tuple of arguments;
            a dict of keyword arguments; or ``(args, kwargs)``. Beside tensors there may be None, numbers,
            lists and objects, which are taken as they are.
        strict: Raise where an operation without a rule costs symmetry, instead of warning.
        seconds: Limit of time; None for none. It is looked at between operations.

    Returns:
        The symmetry of all named parameters.

    Raises:
        ValueError: The module has no parameters, lazy, integer or complex ones, does not take this input, or
            cannot be traced.
        UnknownOperationError: Under ``strict``, an operation without a rule; a ValueError.
        ExtractionTimeoutError: It took longer than ``seconds``; a ValueError.
        RuleError: A rule failed, which is a bug in it; with the operation and its module path.

    Warns:
        UnknownOperationWarning: An operation without a rule, with its name and module path.

    Examples:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        >>> print(*extract(net, torch.zeros(5, 4)).blocks_of("0.weight")[0].axes)
        h1^+1 in^-1
    """
    check_module(module)
    if not isinstance(strict, bool):
        raise ValueError(f"strict: got {strict!r}, expected True or False")
    inputs, clock = Inputs.of(example_input, module), Clock(seconds)
    try:
        with clock if seconds is not None else contextlib.nullcontext():
            extraction = _Extraction(trace(module, inputs), strict, movable_buffers(module, inputs), clock)
            if any(parameter not in extraction.read for parameter in extraction.traced.shapes):
                extraction.read_training(module, inputs)
            spec = extraction.spec()
    except Exception:
        # What stopped may have been taken for a failure of the network.
        clock.check()
        raise
    clock.check()
    return spec


@dataclass(frozen=True)
class _Buffers:
    """Floating buffers that are saved with the parameters, so that they may move with them.

    Attributes:
        kept: Name -> whether training mode leaves it as it is.
        norms: Those of them that are running statistics which norms use in training mode too.
    """

    kept: dict[str, bool]
    norms: frozenset[str] = frozenset()


class _RunningStatistics(TorchFunctionMode):
    """Lists running statistics that batch norms use, where they do not take those of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.used: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.batch_norm:
            norm = inspect.signature(func).bind(*args, **(kwargs or {})).arguments
            if not norm.get("training"):
                self.used += [x for x in (norm["running_mean"], norm["running_var"]) if x is not None]
        return func(*args, **(kwargs or {}))


def movable_buffers(module: nn.Module, inputs: Inputs) -> _Buffers:
    """Buffers that may move with the parameters, and what training mode does with them."""
    buffers = {}
    for path, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_floating_point() and name not in part._non_persistent_buffers_set:
                buffers[f"{path}.{name}".removeprefix(".")] = buffer
    if not buffers:
        return _Buffers({})
    runner = Runner(module, inputs, dtype=torch.float32)
    try:
        with _RunningStatistics() as norms:
            _, after = runner.run({}, training=True)
        kept = {name: name in after and after[name].equal(runner.buffers[name]) for name in buffers}
    except Exception:  # it does not run in training mode, or its tensors have no values
        return _Buffers(dict.fromkeys(buffers, False))
    used = {id(tensor) for tensor in norms.used}
    return _Buffers(kept, frozenset(name for name, same in kept.items() if same and id(after[name]) in used))


def differentiated(module: nn.Module, inputs: Inputs, names: Sequence[str]) -> set[str]:
    """The parameters among ``names`` that outputs in training mode depend on; all if it does not run."""
    runner = Runner(module, inputs, dtype=torch.float32)
    weights = {name: runner.params[name].clone().requires_grad_() for name in names}
    try:
        outputs, _ = runner.run(weights, training=True, grad=True)
        total = sum(t.sum() for t in outputs if t.is_floating_point() and t.requires_grad)
        if not isinstance(total, Tensor):
            return set()
        grads = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    except Exception:  # it does not run in training mode, or its tensors have no values
        return set(names)
    return {name for name, grad in zip(weights, grads, strict=True) if grad is not None}


class _Extraction:
    """Labels and what was read from one graph, or two."""

    def __init__(self, traced: Trace, strict: bool, buffers: _Buffers, clock: Clock) -> None:
        self.clock = clock
        self.traced = traced
        self.strict = strict
        self.training = False
        self.labels = Labels()
        self.params: dict[str, Value] = {}
        # Buffers that may move with the parameters; whether they stay as they are in training mode.
        self.frozen, self.still = buffers.kept, buffers.norms
        self.buffers: dict[str, Value] = {}
        # Parameters that are only ever used in parts: the axis, and every part with its first index.
        self.parts: dict[str, tuple[int, list[tuple[int, Value]]]] = {}
        self.values: dict[torch.fx.Node, Any] = {}
        self.recording = Recording(traced.shapes)
        # Values that went into a node whose result is no tensor with labels: a number, a tracer's object.
        self.hidden: dict[torch.fx.Node, list[Value]] = {}
        # What is computed from nothing that a user passes or that a symmetry moves.
        self.constants: set[torch.fx.Node] = set()
        # Parameters that an operation reads, in order.
        self.read: dict[str, None] = {}
        self._read()

    def read_training(self, module: nn.Module, inputs: Inputs) -> None:
        """Read the graph in training mode too: it may use parameters that the one in eval mode does not.

        What the network computes stays that of eval mode.
        """
        unused = [name for name in self.traced.shapes if name not in self.read]
        try:
            self.traced = trace(module, inputs, training=True)
        except ValueError:
            self.traced = replace(self.traced, nodes=())
        reads = {self.traced.params.get(node.name) for node in self.traced.nodes if node.users}
        if self.traced.nodes and reads.isdisjoint(unused):
            return
        if not self.traced.nodes or any(name in self.parts for name in self.traced.params.values()):
            unused = [name for name in unused if name in differentiated(module, inputs, unused)]
            if not unused:
                return
            warnings.warn(
                f"parameters {unused} are not used in eval mode, and training mode cannot be read; they are "
                "taken as fixed, so that what training mode computes with them may change",
                UnknownOperationWarning,
                stacklevel=_outside(),
            )
            return
        self.training = True
        computed, self.recording = self.recording, Recording(self.traced.shapes)
        self._read()
        self.recording = computed

    def spec(self) -> SymmetrySpec:
        """The table."""
        dims = [part.dims for part in self._labelled() if not part.buffer]
        known = set(self.labels.variables(*(dim for param in dims for dim in param)))
        for value in self.buffers.values():
            for dim in value.dims:
                if not known.issuperset(self.labels.variables(dim)):
                    self.labels.pin((dim,), "buffer")
        return table_of(self.labels, self._labelled(), tuple(self.recording.operations))

    def _read(self) -> None:
        self.alive = set(self.traced.nodes)
        for node in self.traced.nodes:
            self.clock.check()
            if node.op == "placeholder":
                self.values[node] = self._placeholder(node)
            elif node.op == "output":
                for value in tensors(map_arg(node.args, self.values.get)):
                    self.labels.mark_output(value.dims)
            else:
                self._step(node)

    def _step(self, node: torch.fx.Node) -> None:
        if node.op == "get_attr":
            self.values[node] = _constant(node)
            self.constants.add(node)
        elif node.op == "call_function" and (body := wrapped_graph(node)) is not None:
            self._inline(node, *body)
        elif node.op == "call_function" and takes_number(node) and not node.users:
            # A number that decides sizes; they stay as they are if it does.
            for value in tensors(map_arg(node.args, self.values.get)):
                self.labels.pin(value.dims, "number")
        elif (decide := size_from(node)) and self.alive.isdisjoint(node.users):
            # So does a number of elements, of which nothing else is read.
            for value in tensors(map_arg(decide, self.values.get)):
                self.labels.pin(value.dims, "number of elements")
        elif node.op == "call_function" and operator_name(node) not in CHECKS:
            self._call(node)

    def _inline(self, node: torch.fx.Node, graph: torch.fx.Graph, inputs: Sequence[Any]) -> None:
        """Read the body of an operation that only sets how it is run: without gradients, under autocast."""
        holders = [inner for inner in graph.nodes if inner.op == "placeholder"]
        for holder, argument in zip(holders, inputs, strict=True):
            self.values[holder] = map_arg(argument, self.values.get)
            if isinstance(argument, torch.fx.Node):
                self.recording.passed_on(argument, holder)
                self.hidden |= {holder: self.hidden[argument]} if argument in self.hidden else {}
        for inner in graph.nodes:
            if inner.op == "output":
                results = inner.args[0]
                self.values[node] = map_arg(results, self.values.get)
                for result in inner.all_input_nodes:
                    self.recording.passed_on(result, node)
            elif inner.op != "placeholder":
                self._step(inner)

    def _placeholder(self, node: torch.fx.Node) -> Value | None:
        shape = shape_of(node.meta.get("val"))
        if shape is None:
            return None
        name = self.traced.params.get(node.name)
        if name in self.params:
            return self.params[name]
        if name is not None and (cut := split_everywhere(node)) is not None:
            self.parts[name] = (cut[0], [(start, self._fresh(name, part)) for start, part in cut[1]])
            return None
        if name is not None:
            self.params[name] = self._fresh(name, shape)
            return self.params[name]
        if node.name not in self.traced.inputs:
            name = self.traced.buffers.get(node.name)
            if name not in self.frozen:
                self.constants.add(node)
                return _constant(node)
            if name not in self.buffers:
                buffer = replace(self._fresh(name, shape), param=None, buffer=name)
                self.buffers[name] = replace(buffer, still=name in self.still)
            return self.buffers[name]
        self.recording.made_by[node] = -1 - self.traced.inputs.index(node.name)
        dims = tuple(self.labels.fresh_input(size) for size in shape[1:])
        return Value((fixed(shape[0], "batch"), *dims) if shape else (), shape, dtype=node.meta["val"].dtype)

    def _fresh(self, name: str, shape: tuple[int, ...]) -> Value:
        return Value(tuple(self.labels.fresh(size, name) for size in shape), shape, name)

    def _call(self, node: torch.fx.Node) -> None:
        if self.constants.issuperset(node.all_input_nodes):
            self.constants.add(node)
        if operator_name(node) == "operator.getitem":
            source, index = node.args[0], node.args[1]
            assert isinstance(source, torch.fx.Node)
            parts = self.values.get(source)
            self.values[node] = None
            if isinstance(parts, list | tuple) and isinstance(index, int):
                self.values[node] = parts[index]
            if source in self.hidden and self.values[node] is None:
                self.hidden[node] = self.hidden[source]
            self.recording.passed_on(source, node)
            return
        named, op = arguments(node), operator_name(node)
        source = node.args[0] if node.args else None
        if isinstance(source, torch.fx.Node) and self.traced.params.get(source.name) in self.parts:
            self.values[node] = [part for _, part in self.parts[self.traced.params[source.name]][1]]
            return
        if node in self.traced.softsigns:
            named, op = {"self": self.traced.softsigns[node]}, "aten.softsign"
        args = {key: map_arg(arg, self.values.get) for key, arg in named.items()}
        if op == "aten.as_strided":
            args["own"] = memory_steps(node)
        output = node.meta.get("val")
        outputs = output if isinstance(output, list | tuple) else [output]
        shapes = tuple(shape_of(part) for part in outputs)
        whole = shapes[0] if shapes and shapes[0] else ()
        first = outputs[0] if outputs else None
        integer = isinstance(first, Tensor) and not (first.is_floating_point() or first.is_complex())
        call = Call(op, args, whole, module_path(node), shapes, self.training, integer)
        self.read |= dict.fromkeys(value.param for value in tensors(args) if value.param is not None)
        moved = [source for source in node.all_input_nodes if source not in self.constants]
        hidden = [value for source in moved for value in self.hidden.get(source, ())]
        try:
            result = self._applied(call, output, hidden)
            inputs = [self.traced.softsigns[node]] if node in self.traced.softsigns else node.all_input_nodes
            values = self.values[node] = result[1]
            if not all(isinstance(v, Value) for v in (values if isinstance(values, list) else [values])):
                self.hidden[node] = [*hidden, *tensors(args)]
            self._written_in_place(node, call)
        except UnknownOperationError:
            raise
        except Exception as error:
            shown = [f"{key} {v.shape}" for key, v in args.items() if isinstance(v, Value)]
            raise RuleError(
                f"the rule of operation {call} failed with {', '.join(shown)}: {type(error).__name__}: "
                f"{error}; this is a bug in amortopt.symmetry.rules"
            ) from error
        self.recording.record(node, call, result[0], {source: self.values.get(source) for source in inputs})

    def _applied(self, call: Call, output: Any, hidden: list[Value]) -> tuple[Result, Any]:
        """The result of the operation's rule, and the labels of the outputs; without a rule all is pinned."""
        values = tensors(call.args)
        rule = None if hidden else rule_for(call.op)
        statistics = _STATISTICS if call.name in ("batch_norm", "instance_norm") else ()
        for key, value in call.args.items():
            for buffer in (v for v in tensors(value) if v.buffer is not None):
                if key not in statistics and not self.frozen[str(buffer.buffer)]:
                    # Training mode may change it under other scales than those seen in eval mode.
                    self.labels.limit(buffer.dims, "none", "buffer")
        for value in values:
            self.labels.own_once(value.dims)
        try:
            if rule is None or not any(shape is not None for shape in call.shapes):
                raise NoRule("")
            if isinstance(call.args.get("out"), Value):
                raise NoRule("it writes to a tensor that it is given")
            if call.name not in _WITHOUT_ELEMENTS and any(0 in v.shape for v in values):
                raise NoRule("a tensor has no elements")
            result = rule(self.labels, call)
        except NoRule as declined:
            settings = {
                k: str(v)
                for k, v in call.args.items()
                if not tensors(v) and v is not None and k not in ("device", "layout", "pin_memory")
            }
            result = Result((), call.op, tuple(settings.items()))
            return result, self._without_rule(call, output, str(declined), hidden)
        outputs = output if isinstance(output, list | tuple) else [output]
        dtypes = [part.dtype if isinstance(part, Tensor) else None for part in outputs]
        if result.parts is None:
            return result, Value(result.dims, call.shape, result.param, dtype=dtypes[0], zero=result.zero)
        return result, [
            None if dims is None or shape is None else Value(dims, shape, dtype=dtype)
            for dims, shape, dtype in zip(result.parts, call.shapes, dtypes, strict=True)
        ]

    def _written_in_place(self, node: torch.fx.Node, call: Call) -> None:
        """What an operation wrote into a tensor that others read too moves as that tensor does."""
        target = node.args[0] if node.args else None
        if not call.op.endswith("_") or call.op.endswith("__") or not isinstance(target, torch.fx.Node):
            return
        before, after = self.values.get(target), self.values.get(node)
        if isinstance(before, Value) and isinstance(after, Value) and has_readers(target, node):
            if before.shape != after.shape:
                self.labels.pin((*before.dims, *after.dims), call.name)
                return
            for old, new in zip(before.dims, after.dims, strict=True):
                self.labels.tie(new, old, call.name)
            self.labels.align(by_axis(before.dims), by_axis(after.dims))

    def _without_rule(self, call: Call, output: Any, why: str, hidden: list[Value]) -> Any:
        """Allow nothing on what goes in; label what comes out as unmoved.

        What is computed from constants alone is a constant, whatever the operation.
        """
        touched = [*tensors(call.args), *hidden]
        lost = [
            var
            for var in self.labels.variables(*(dim for value in touched for dim in value.dims))
            if self.labels.permutable(var) and self.labels.origin(var) != "constant"
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
        if all(is_fixed(dim) for value in touched for dim in value.dims):
            return Value(tuple(fixed(size, "constant") for size in shape), shape)
        batch = [value.dims[0] for value in touched if value.param is None and value.ndim]
        dims: list[Dim] = []
        for axis, size in enumerate(shape):
            if axis == 0 and batch and size_of(batch[0]) == size:
                dims.append(batch[0])
            else:
                dims.append(self.labels.fresh(size, call.path or call.op))
        self.labels.pin(tuple(dims), call.name)
        return Value(tuple(dims), shape)

    def _labelled(self) -> list[Labelled]:
        """Parameters in the order of their use, then those that nothing uses, then moved buffers."""
        labelled: list[Labelled] = []
        for name in dict.fromkeys([*self.read, *self.traced.shapes]):
            shape = self.traced.shapes[name]
            if name in self.parts:
                axis, parts = self.parts[name]
                for start, part in parts:
                    starts = tuple(start if other == axis else 0 for other in range(len(shape)))
                    labelled.append(Labelled(name, shape, part.dims, starts))
                continue
            read = name in self.read
            dims = self.params[name].dims if read else tuple(fixed(n, "unused") for n in shape)
            labelled.append(Labelled(name, shape, dims, (0,) * len(shape)))
        for name, value in self.buffers.items():
            labelled.append(Labelled(name, value.shape, value.dims, (0,) * value.ndim, buffer=True))
        return labelled


_STATISTICS = ("running_mean", "running_var")
_WITHOUT_ELEMENTS = (
    "cat",
    "clamp",
    "zeros",
    "new_zeros",
    "zeros_like",
    "slice",
    "clone",
    "detach",
    "to",
    "_to_copy",
)
"""Operations whose rules know tensors without elements."""


def _constant(node: torch.fx.Node) -> Value | None:
    value = node.meta.get("val")
    if value is None and node.op == "get_attr":
        value = getattr(node.graph.owning_module, str(node.target), None)
    shape = shape_of(value)
    if value is None or shape is None:
        return None
    known = node.meta.get("constant", getattr(node.graph.owning_module, str(node.target), None))
    zero = False
    if isinstance(known, Tensor) and known.numel() == 1 and known.device.type != "meta":
        zero = not bool(known.any())
    return Value(tuple(fixed(size, "constant") for size in shape), shape, dtype=value.dtype, zero=zero)


def _outside() -> int:
    """Stack level of the first caller outside this file."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_code.co_filename == __file__:
        frame, level = frame.f_back, level + 1
    return level
