"""From an ``nn.Module`` and an example input to the list of aten operations that it runs."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.func import functional_call
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from amortopt.functional.networks import eval_mode, shared_slices
from amortopt.symmetry.inputs import Inputs, apart, first_line, outputs_of
from amortopt.symmetry.trace.concrete import (
    SIZES,
    DataDependentError,
    concrete_graph,
    live,
    seeded,
    size_from,
    takes_number,
    values_read,
)
from amortopt.symmetry.trace.known import without_choices
from amortopt.symmetry.trace.watch import Watch
from amortopt.system.threads import one_at_a_time


@dataclass(frozen=True)
class Trace:
    """A traced forward pass.

    Attributes:
        nodes: Nodes of the graph in execution order.
        params: Node name -> qualified parameter name; of several names the first.
        buffers: Node name -> qualified buffer name.
        inputs: Names of the nodes that are the network's inputs.
        shapes: Qualified parameter name -> shape, in the order of ``named_parameters``.
        softsigns: Divisions that end a written-out softsign x / (1 + |x|) -> x.
    """

    nodes: tuple[torch.fx.Node, ...]
    params: dict[str, str]
    buffers: dict[str, str]
    inputs: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    softsigns: dict[torch.fx.Node, torch.fx.Node]


@one_at_a_time
def trace(module: nn.Module, inputs: Inputs, *, training: bool = False) -> Trace:
    """Record what a module computes without changing it.

    Args:
        module: The base network.
        inputs: What ``forward`` is called with.
        training: Whether to trace in training mode instead of eval mode.

    Returns:
        The graph before decomposition, with a name for every parameter node.

    Raises:
        ValueError: The module has no parameters, has parameters of a kind that no symmetry is defined for
            (lazy, integer, complex), does not take this input, or cannot be traced.
    """
    # A forward may store tensors of the tracer: in the module, hence a copy, or for all of the process
    # (functools.cache), hence a run on real tensors before it. It may also write to parameters.
    with seeded():
        with contextlib.suppress(Exception), torch.no_grad(), _quiet(module, training):
            _run_apart(module, inputs)
        graph, held, buffers, users = _graph(apart(module), inputs, training)
    first = {id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    names = {name: first[id(tensor)] for name, tensor in named}
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    if any("_for_grad" in str(getattr(node.target, "__name__", "")) for node in graph.nodes):
        raise ValueError(
            f"module: {type(module).__name__} uses torch.func.grad, vjp or jacrev in forward, whose inner "
            "operations tracing takes as constants; write out the derivative"
        )
    params = {node: names[name] for node, name in held.items()}
    state = {node: names[name] for node, name in buffers.items() if name in names}
    if not any(isinstance(node.meta.get("val"), Tensor) for node in _returned(graph)):
        raise ValueError(
            f"module: forward of {type(module).__name__} returns no tensor, so there is nothing to preserve; "
            "return tensors, in any container, not numbers or arrays"
        )
    nodes, softsigns = _fuse_softsign(live(tuple(graph.nodes), training))
    return Trace(nodes, params, state, users, shapes, softsigns)


def _run_apart(module: nn.Module, inputs: Inputs) -> None:
    """Run a network without effect on it, its parameters and its buffers."""
    copied, real = apart(module), inputs.map(torch.clone)
    state = {name: tensor.clone() for name, tensor in (*copied.named_parameters(), *copied.named_buffers())}
    with shared_slices(copied):
        functional_call(copied, state, real.args, real.kwargs)


def _returned(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return [node for output in graph.nodes if output.op == "output" for node in output.all_input_nodes]


@contextlib.contextmanager
def _quiet(module: nn.Module, training: bool) -> Iterator[None]:
    """A mode of the module, without warnings, logs and text on stderr.

    Where tracing fails, torch logs a long traceback or whole graphs beside the exception that says the same.
    """
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.CRITICAL)
        with (
            eval_mode(module, training),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


class FlatModule(nn.Module):
    """A network from a list of tensors to a list of tensors, for tracers that take no other structures."""

    def __init__(self, module: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.module, self.inputs = module, inputs

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        inputs = self.inputs.with_tensors(tensors)
        return outputs_of(self.module(*inputs.args, **inputs.kwargs))


_Graph: TypeAlias = tuple[torch.fx.Graph, dict[str, str], dict[str, str], tuple[str, ...]]


def _graph(module: nn.Module, inputs: Inputs, training: bool) -> _Graph:
    """The graph, and which of its placeholders are parameters, buffers and inputs."""
    fast = torch.backends.mha.get_fastpath_enabled()
    flat = FlatModule(module, inputs)
    try:
        # The fast path of attention is one operation for a whole layer.
        torch.backends.mha.set_fastpath_enabled(False)
        with _quiet(flat, training), without_choices():
            try:
                traced = _exported(flat, inputs)
            except DataDependentError as error:
                raise _explained(module, inputs, error, error) from error
            except Exception as error:
                # Whether export failed because forward decides something by a size that depends on values
                branches, numbers, constants = _decides(error), 0, 0
                seen = isinstance(error, _NeedsValues)
                if seen:
                    numbers, constants = error.numbers, error.constants
                elif branches and "specialized integer" in str(error):
                    # int(x) of a tensor, which only the other way to export takes as a symbol
                    numbers = _numbers_of_bytecode(module, inputs)
                    branches = not numbers
                try:
                    traced = concrete_graph(
                        flat,
                        inputs.tensors,
                        seen=seen,
                        branches=branches,
                        numbers=numbers,
                        constants=constants,
                    )
                except Exception as other:
                    raise _explained(module, inputs, error, other) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    graph, params, buffers, users = traced
    return (
        graph,
        {node: name.removeprefix("module.") for node, name in params.items()},
        {node: name.removeprefix("module.") for node, name in buffers.items()},
        users,
    )


class _NeedsValues(ValueError):
    """A shape, a text or an error that forward catches depends on values, without a branch on a number.

    Attributes:
        numbers: How often a number was taken out of a tensor; no branch depends on these either.
        constants: How many tensors were made from lists or arrays; without values, none of them is data.
    """

    def __init__(self, numbers: int, constants: int) -> None:
        super().__init__("a shape, a text or an error depends on the values of tensors")
        self.numbers, self.constants = numbers, constants


def _exported(flat: FlatModule, inputs: Inputs) -> _Graph:
    with Watch() as watch:
        program = torch.export.export(flat, tuple(inputs.tensors), strict=False)
    # Texts and errors that forward catches are not known without.
    values = bool(watch.texts or watch.tried or watch.errors)
    params, buffers, users = {}, {}, []
    for spec in program.graph_signature.input_specs:
        name = getattr(spec.arg, "name", "")
        if spec.kind == InputKind.PARAMETER and spec.target is not None:
            params[name] = spec.target
        elif spec.kind == InputKind.BUFFER and spec.target is not None:
            buffers[name] = spec.target
        elif spec.kind == InputKind.USER_INPUT:
            users.append(name)
    constants = {
        getattr(spec.arg, "name", ""): program.constants.get(spec.target or "")
        for spec in program.graph_signature.input_specs
        if spec.kind == InputKind.CONSTANT_TENSOR
    }
    for node in program.graph.nodes:
        if node.name in constants:
            node.meta["constant"] = constants[node.name]
        if "to_sparse" in str(node.target):
            # Without values it has no entries; whether a branch depends on their number is not known.
            raise ValueError("the number of entries of a sparse tensor is data-dependent")
        value = node.meta.get("val")
        parts = value if isinstance(value, list | tuple) else [value]
        # A size that depends on data is a symbol here, no number.
        values |= any(
            not all(isinstance(size, int) for size in x.shape) for x in parts if isinstance(x, Tensor)
        )
    if values:
        _check_sizes(program, flat.module.training)
        kinds = [spec.kind for spec in program.graph_signature.input_specs]
        numbers = sum(map(takes_number, program.graph.nodes))
        if watch.errors:  # some of which may be of tracing, so that a run takes another way
            raise _NeedsValues(-1, -1)
        raise _NeedsValues(numbers, kinds.count(InputKind.CONSTANT_TENSOR))
    return program.graph, params, buffers, tuple(users)


def _check_sizes(program: torch.export.ExportedProgram, training: bool) -> None:
    """Raise if a size that depends on data becomes a number, or says which elements are read.

    A size may be one of another tensor. But if it multiplies, or if ones of that size are added up, outputs
    depend on it, and a trace with values has it as a constant.

    What a number is taken from by ``item`` does not move: sizes may depend on that number in any way, and it
    may be a factor. But a rule may read an exponent or an index.

    Args:
        program: With symbols for what depends on values.
        training: Whether buffers may change that hold no numbers to move.
    """
    graph = program.graph
    holds = {getattr(spec.arg, "name", ""): spec.kind for spec in program.graph_signature.input_specs}
    still = {  # placeholders whose values are the same for all inputs and weights
        node.name
        for node in graph.nodes
        if holds.get(node.name) == InputKind.CONSTANT_TENSOR
        or (holds.get(node.name) == InputKind.BUFFER and not training and _is_whole(node))
    }
    varies: set[torch.fx.Node] = set()
    known: set[Any] = set()  # symbols for what is the same for all inputs and weights
    taken: set[Any] = set()  # symbols for numbers that are taken out by item
    seen: set[Any] = set()
    for node in graph.nodes:
        moves = node.op == "placeholder" and node.name not in still
        if moves or not varies.isdisjoint(node.all_input_nodes):
            varies.add(node)
        symbols = set[Any]().union(*map(free_unbacked_symbols, _parts(node)))
        if varies.isdisjoint(size_from(node) or [node]):
            known |= symbols - seen
        if takes_number(node):
            taken |= symbols
        seen |= symbols

    def depends(node: Any, aside: set[Any]) -> bool:
        """Whether a number, or the sizes of tensors, depend on sizes, some aside."""
        return any(free_unbacked_symbols(part) - aside for part in _parts(node))

    constants: set[torch.fx.Node] = set()  # of such a size, computed from nothing else
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or operator_name(node) in CHECKS:
            continue
        name, given = operator_name(node), arguments(node)
        shape = given["self"].meta["val"].shape if name == "aten.slice" else ()
        for key, value in given.items():
            # All of an axis whose size is a number taken out, too, may be read.
            whole = name == "aten.slice" and not isinstance(shape[given.get("dim", 0)], int)
            if key in SIZES or (whole and key in ("start", "end")):
                continue
            aside = known | taken if name in _FACTORS or whole else known
            parts = value if isinstance(value, list | tuple) else [value]
            if any(_is_symbol(part) and depends(part, aside) for part in parts):
                raise DataDependentError(_SIZE_IS_READ.format(name))
        read = [source for source in values_read(node) if not _is_symbol(source)]
        if all(source in constants for source in read) and (read or depends(node, known | taken)):
            if not depends(node, known | taken):
                raise DataDependentError(_SIZE_IS_READ.format(name))
            constants.add(node)


_FACTORS = frozenset(f"aten.{name}" for name in ("mul", "mul_", "div", "div_", "arange"))
"""Operations whose rules do not look at the number that they are given."""
_SIZE_IS_READ = "{} computes with a number of elements, or another number, that depends on values"


def _parts(node: Any) -> list[Any]:
    """What may have symbols in it."""
    value = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
    kinds = (Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)
    return [
        part for part in (value if isinstance(value, list | tuple) else [value]) if isinstance(part, kinds)
    ]


def _is_whole(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())


def _is_symbol(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)


def _decides(error: Exception) -> bool:
    """Whether ``torch.export`` failed since a value decides which operations run."""
    words = ("GuardOnDataDependent", "data-dependent", "unbacked")
    return any(word in f"{type(error).__name__} {error}" for word in words)


def _numbers_of_bytecode(module: nn.Module, inputs: Inputs) -> int:
    """How many numbers leave the tensors without a branch on any; 0 if there is one, or it is not known.

    Export by bytecode follows ``int(x)`` and ``len(x)``, where plain export stops.
    """
    try:
        program = torch.export.export(module, inputs.args, inputs.kwargs, strict=True)
    except Exception:
        return 0
    # How scales go through a power depends on the exponent, which a trace with values has as a constant.
    powers = [node for node in program.graph.nodes if _calls(node, "aten.pow") or _calls(node, "aten.pow_")]
    if any(_is_symbol(arg) for node in powers for arg in node.args):
        return 0
    return sum(map(takes_number, program.graph.nodes))


def _fuse_softsign(
    nodes: tuple[torch.fx.Node, ...],
) -> tuple[tuple[torch.fx.Node, ...], dict[torch.fx.Node, torch.fx.Node]]:
    """The nodes without x / (1 + |x|)'s inner ones, and division -> x: softsign is odd, its parts are not."""
    softsigns, inner = {}, set()
    for node in nodes:
        if not _calls(node, "aten.div") or len(node.args) != 2 or node.kwargs:
            continue
        x, total = node.args
        if not isinstance(x, torch.fx.Node) or not _calls(total, "aten.add") or total.args[1:] != (1,):
            continue
        magnitude = total.args[0]
        if _calls(magnitude, "aten.abs") and magnitude.args == (x,):
            softsigns[node] = x
            # Inner nodes that other operations read stay.
            if len(total.users) == 1:
                inner |= {total} if len(magnitude.users) > 1 else {total, magnitude}
    return tuple(node for node in nodes if node not in inner), softsigns


def _calls(node: Any, name: str) -> TypeGuard[torch.fx.Node]:
    return isinstance(node, torch.fx.Node) and node.op == "call_function" and operator_name(node) == name


def operator_name(node: torch.fx.Node) -> str:
    """Name of the called operator without its overload: "aten.linear", "operator.getitem"."""
    if isinstance(node.target, torch._ops.OpOverload):
        return ".".join(str(node.target).split(".")[:2])
    return f"operator.{getattr(node.target, '__name__', node.target)}"


def arguments(node: torch.fx.Node) -> dict[str, Any]:
    """Arguments of a call by name, defaults included, in the order of the operator's schema."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {**{str(i): arg for i, arg in enumerate(node.args)}, **node.kwargs}
    schema = node.target._schema.arguments
    values: dict[str, Any] = {arg.name: arg.default_value for arg in schema if arg.has_default_value()}
    values.update(zip((arg.name for arg in schema), node.args, strict=False))
    values.update(node.kwargs)
    return {arg.name: values[arg.name] for arg in schema if arg.name in values}


CHECKS = frozenset(
    f"aten.{name}"
    for name in ("_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range_for_size")
)
"""Operations that check values and compute nothing."""


def wrapped_graph(node: torch.fx.Node) -> tuple[torch.fx.Graph, tuple[Any, ...]] | None:
    """The graph that a node runs under no_grad, autocast or checkpointing, with its inputs; else None."""
    if not isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    bodies = [
        (place, getattr(arg.graph.owning_module, str(arg.target), None))
        for place, arg in enumerate(node.args)
        if isinstance(arg, torch.fx.Node) and arg.op == "get_attr"
    ]
    graphs = [(place, body) for place, body in bodies if isinstance(body, torch.fx.GraphModule)]
    if str(node.target).split(".")[-1] not in _WRAPPERS or len(graphs) != 1:
        return None
    ((place, body),) = graphs
    return body.graph, node.args[place + 1 :]


_WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast", "tag_activation_checkpoint", "wrap")
_SPLITS = ("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split", "aten.unsafe_split")


def split_everywhere(node: torch.fx.Node) -> tuple[int, list[tuple[int, tuple[int, ...]]]] | None:
    """Axis, and first index and shape of each part, if all uses of a parameter split it alike; else None."""
    uses = [user for user in node.users if user.op != "output"]
    if not uses or len(uses) != len(node.users) or any(operator_name(user) not in _SPLITS for user in uses):
        return None
    splits = []
    for user in uses:
        shapes = [shape_of(part) for part in user.meta["val"]]
        ndim = len(shapes[0] or ())
        axis = int(arguments(user).get("dim", 0)) % max(ndim, 1)
        sizes = [shape[axis] for shape in shapes if shape is not None]
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        splits.append((axis, [(start, shape) for start, shape in zip(starts, shapes, strict=True) if shape]))
    return splits[0] if all(split == splits[0] for split in splits) else None


_ALLOCATES = frozenset(
    f"aten.{name}"
    for name in (
        *("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("matmul", "mm", "bmm", "addmm", "einsum", "add", "sub", "mul", "div", "cat", "stack", "clone"),
        *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "embedding", "softmax"),
        *("relu", "gelu", "silu", "tanh", "sigmoid", "hardswish", "zeros", "zeros_like", "new_zeros", "sum"),
        *("mean", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "scaled_dot_product_attention"),
    )
)


def has_readers(target: torch.fx.Node, writer: torch.fx.Node) -> bool:
    """Whether another operation may read what ``writer`` overwrote."""
    others = [user for user in target.users if user is not writer]
    # An operation that may return a view shares memory with tensors that others read.
    return bool(others) or target.op != "call_function" or operator_name(target) not in _ALLOCATES


def memory_steps(node: torch.fx.Node) -> tuple[int, ...] | None:
    """Steps in memory of the tensor that ``as_strided`` reads.

    None if it begins to read elsewhere than its tensor does, or elements of that share memory.
    """
    source, offset = node.args[0], arguments(node).get("storage_offset")
    value = source.meta.get("val") if isinstance(source, torch.fx.Node) else None
    if not isinstance(value, Tensor) or offset not in (None, value.storage_offset()):
        return None
    reach = 0  # of the axes with smaller steps
    for step, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1 and step <= reach:
            return None
        reach += (size - 1) * step
    return tuple(int(step) for step in value.stride())


def module_path(node: torch.fx.Node) -> str:
    """Qualified name of the submodule whose forward made this node; empty for the network itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]).split("@")[0] if stack else ""
    return path.removeprefix("module").removeprefix(".")  # inside of a FlatModule


def shape_of(value: Any) -> tuple[int, ...] | None:
    """Shape of a node's value; None if it is not one tensor."""
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else None


@one_at_a_time
def check_module(module: nn.Module) -> None:
    """Raise ValueError for a module without parameters, or with lazy, integer or complex ones."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"module: got {type(module).__name__}, expected an nn.Module")
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel | torch.jit.ScriptModule):
        raise ValueError(
            f"module: got {type(module).__name__}, expected the network inside it; pass module.module, or "
            "the module that was scripted"
        )
    for name, tensor in [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]:
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise ValueError(
                f"module: {name!r} is lazy and has no shape yet; run the module once on data first"
            )
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not parameter.dtype.is_floating_point:
            raise ValueError(
                f"module: parameter {name!r} has dtype {parameter.dtype}, expected a real floating one"
            )
    try:
        with eval_mode(module, module.training):
            pass
    except NotImplementedError as error:
        raise ValueError(
            f"module: {type(module).__name__} cannot change between training and eval mode ({error}); pass "
            "the network that was exported"
        ) from error
    if next(module.parameters(), None) is None:
        raise ValueError(f"module: {type(module).__name__} has no parameters, so it has no symmetry to find")


def _explained(module: nn.Module, inputs: Inputs, exported: Exception, concrete: Exception) -> ValueError:
    """The error for a failed trace: the input does not fit the network, or its forward cannot be traced."""
    name = type(module).__name__
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _run_apart(module, inputs)
    except Exception as error:
        return ValueError(
            f"example_input: {name} does not take inputs of shapes [{inputs}]: {first_line(error)}"
        )
    if isinstance(concrete, DataDependentError):
        return ValueError(
            f"module: {name} runs but cannot be traced: {concrete}; forward may not branch or loop on the "
            "values of tensors"
        )
    return ValueError(
        f"module: {name} runs but cannot be traced ({type(exported).__name__}: {first_line(exported)})"
    )
