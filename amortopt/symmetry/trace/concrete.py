"""Tracing with the values of the example input, for networks that ``torch.export`` cannot trace symbolically.

``torch.fx`` runs the network on real tensors. Its trace holds for other inputs too, unless a value decided
which operations ran: a number that depends on inputs or parameters and leaves the tensors is an error.
"""

from __future__ import annotations

import contextlib
import operator
import random
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.overrides import TorchFunctionMode

from amortopt._types import Params
from amortopt.symmetry.trace.watch import AT_MOST, TEXTS, Watch, called_by_network

_LEAVES_TENSORS = frozenset({"item", "_local_scalar_dense", "is_nonzero", "equal", "allclose"})


class DataDependentError(ValueError):
    """The operations that the network runs depend on the values of tensors."""


def concrete_graph(
    module: nn.Module,
    inputs: Sequence[Tensor],
    *,
    seen: bool = False,
    branches: bool = False,
    numbers: int = 0,
    constants: int = 0,
) -> tuple[torch.fx.Graph, dict[str, str], dict[str, str], tuple[str, ...]]:
    """Trace a module on its example input.

    Args:
        module: In the mode to trace it in; not modified.
        inputs: Arguments of its forward.
        seen: Whether ``torch.export`` has followed what is computed with sizes that depend on values.
        branches: Whether ``torch.export`` found a branch on a size that depends on values.
        numbers: How many numbers ``torch.export`` saw leave the tensors without a branch on any of them. If
            that are all that leave here, they may depend on inputs and parameters: what they are used for,
            such as sizes, is the same for other values. Their tensors must not move.
        constants: How many tensors ``torch.export``, which has no values, saw made from lists or arrays. If
            that are all that are made here, they are the same for other values too.

    Returns:
        The graph, and for its placeholders node name -> qualified parameter name, node name -> qualified
        buffer name, and the names of the inputs' nodes.

    Raises:
        DataDependentError: A number or a size that depends on inputs or parameters decides which operations
            run, or a tensor is computed from them outside of torch.
    """
    params = {name: p.detach() for name, p in module.named_parameters()}
    with Watch() as watch, _Decisions() as decisions:
        graph = _traced(module, params, inputs)
    _check_texts_and_errors(module, params, inputs, graph, watch)
    holders = [node.name for node in graph.nodes if node.op == "placeholder"]
    buffers = dict(module.named_buffers())
    # Integers that a network keeps, such as sizes: no symmetry moves them, and only training changes them.
    still = [
        holder
        for holder, buffer in zip(holders[len(params) :], buffers.values(), strict=False)
        if not (module.training or buffer.is_floating_point() or buffer.is_complex())
    ]
    leave = [node for node in graph.nodes if takes_number(node)]
    vary, total = _check_values(graph, branches, still, allowed=leave if len(leave) == numbers else ())
    # If every truth value that left the tensors is in the graph, only those that vary are negated.
    turn = vary if total == decisions.count else range(decisions.count)
    if vary and not (
        len(vary) <= len(turn) <= AT_MOST and _same_either_way(module, params, inputs, graph, turn)
    ):
        raise DataDependentError(
            "a truth value takes a number out of a tensor that depends on inputs or parameters"
        )
    if any(str(node.target).startswith(_PACKS) for node in graph.nodes) and not _same_for_other_lengths(
        module, params, inputs, graph
    ):
        raise DataDependentError(
            "a branch depends on how long the sequences of torch.nn.utils.rnn.pack_padded_sequence are"
        )
    if not seen and any(size_from(node) for node in graph.nodes):
        _check_numbers(module, params, inputs, graph)
    if sum(node.op == "get_attr" for node in graph.nodes) not in (0, constants):
        _check_constants(module, params, inputs, graph)
    by_name = dict(zip(holders, (*params, *buffers), strict=False))
    return (
        graph,
        {node: name for node, name in by_name.items() if name in params},
        {node: name for node, name in by_name.items() if name not in params},
        tuple(holders[len(by_name) :]),
    )


def _traced(module: nn.Module, params: Params, inputs: Sequence[Tensor]) -> torch.fx.Graph:
    params, buffers = _copied(module, params)

    def run(params: Params, buffers: Params, inputs: list[Tensor]) -> object:
        return _run(module, params, buffers, inputs)

    # The same random numbers in every trace, also those that a network draws outside of torch.
    with torch.no_grad(), seeded(), warnings.catch_warnings(), _Lists():
        warnings.simplefilter("ignore")
        tracer = make_fx(run, tracing_mode="real", pre_dispatch=True, _error_on_data_dependent_ops=False)
        return tracer(params, buffers, list(inputs)).graph


def _copied(module: nn.Module, params: Params) -> tuple[Params, Params]:
    """Parameters and buffers that a forward may write to."""
    return {n: p.clone() for n, p in params.items()}, {n: b.clone() for n, b in module.named_buffers()}


def _run(module: nn.Module, params: Params, buffers: Params, inputs: Sequence[Tensor]) -> object:
    return functional_call(module, {**params, **buffers}, tuple(inputs))


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Random numbers of torch, numpy and Python from seed 0; their states are as before afterwards."""
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


class _Lists(TorchFunctionMode):
    """Records numbers that leave a tensor as a list or an array, which tracing by itself does not.

    What is read at an address is not known.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.data_ptr and called_by_network(sys._getframe(1)):
            raise DataDependentError("data_ptr gives an address, and what is read there is not known")
        if func in _MADE_LISTS and not args[0].is_sparse and args[0].layout == torch.strided:
            entries = args[0].detach().reshape(-1)
            # A list has its numbers one by one in a trace of torch.export, too.
            for entry in entries if func is Tensor.tolist and len(entries) < 1000 else entries[:1]:
                (entry.long() if entry.dtype == torch.bool else entry.real).item()
        return func(*args, **(kwargs or {}))


_MADE_LISTS = (Tensor.tolist, Tensor.numpy, Tensor.__array__)


class _Decisions(TorchFunctionMode):
    """Counts the truth values that leave the tensors, and negates the one with index ``turned``.

    Attributes:
        count: Truth values so far.
        after: Functions of torch that were called after the negated one, until something is raised.
    """

    def __init__(self, turned: int | None = None) -> None:
        super().__init__()
        self.count, self.turned, self.after = 0, turned, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        negated = self.turned is not None and self.count > self.turned
        self.after += negated and sys.exc_info()[1] is None
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, bool) or func not in _TRUTH_VALUES:
            return result
        self.count += 1
        return not result if self.count - 1 == self.turned else result


_TRUTH_VALUES = (
    *(Tensor.item, Tensor.__bool__, Tensor.__contains__, Tensor.equal, Tensor.allclose),
    *(torch.equal, torch.allclose),
)


def _same_either_way(
    module: nn.Module, params: Params, inputs: Sequence[Tensor], graph: torch.fx.Graph, turn: Sequence[int]
) -> bool:
    """Whether negated truth values, one by one, change no operation: at most a warning depends on them.

    A network that raises at once, before any other operation, checks its values: where it does so it computes
    nothing that could be preserved.
    """
    for turned in turn:
        decisions = _Decisions(turned)
        try:
            with decisions:
                other = _traced(module, params, inputs)
        except Exception:
            if decisions.after or decisions.count > turned + 1:
                return False
            continue
        if _listed(other) != _listed(graph):
            return False
    return True


def _listed(graph: torch.fx.Graph) -> list[tuple[str, str]]:
    """The operations that outputs depend on, in order, with the number of each argument's operation."""
    nodes = live(tuple(graph.nodes))
    number = {node: f"%{k}" for k, node in enumerate(nodes)}
    return [(str(node.target), str(map_arg((node.args, node.kwargs), number.get))) for node in nodes]


def _check_texts_and_errors(
    module: nn.Module, params: Params, inputs: Sequence[Tensor], graph: torch.fx.Graph, watch: Watch
) -> None:
    """Trace again with other texts of tensors, and with errors where the network catches them.

    A network that raises computes nothing that could be preserved.
    """
    if watch.errors:
        with Watch() as plain, torch.no_grad(), seeded(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _run(module, *_copied(module, params), inputs)
        if plain.errors != watch.errors:
            raise DataDependentError("forward catches an error that only tracing raises")
    if len(watch.tried) > AT_MOST:
        raise DataDependentError(f"{len(watch.tried)} calls may fail for some values, which forward catches")
    others = [(Watch(text=text), "the text of a tensor") for text in TEXTS if watch.texts]
    others += [
        (Watch(failing=place), f"whether {name} fails, which forward catches")
        for place, name in enumerate(watch.tried)
    ]
    for other, what in others:
        try:
            with other:
                again = _traced(module, params, inputs)
        except Exception:
            continue
        if _listed(again) != _listed(graph):
            raise DataDependentError(f"a branch depends on {what}")


class _Lengths(TorchFunctionMode):
    """Packs sequences as if each were of another length: all as long as the padded ones, or shorter."""

    def __init__(self, full: bool) -> None:
        super().__init__()
        self.full = full

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") == "_pack_padded_sequence":
            x, lengths, batch_first = args
            steps = x.shape[1 if batch_first else 0]
            # Of 7 steps and 3 sequences: 7, 7, 7 or 3, 2, 1.
            shorter = (steps // 2 - torch.arange(len(lengths))).clamp(min=1)
            args = (x, torch.full_like(lengths, steps) if self.full else shorter.to(lengths), batch_first)
        return func(*args, **(kwargs or {}))


def _same_for_other_lengths(
    module: nn.Module, params: Params, inputs: Sequence[Tensor], graph: torch.fx.Graph
) -> bool:
    """Whether packing is followed by the same operations for other lengths, but for the numbers in them.

    A network that raises computes nothing that could be preserved.
    """

    def listed(graph: torch.fx.Graph) -> list[tuple[str, str]]:
        nodes = live(tuple(graph.nodes), lengths=False)
        packs = (k for k, node in enumerate(nodes) if str(node.target).startswith(_PACKS))
        packed = next(packs, len(nodes))  # nothing that depends on outputs packs
        number = {node: f"%{k}" for k, node in enumerate(nodes[packed:])}
        shown = [
            (str(n.target), str(map_arg((n.args, n.kwargs), lambda x: number.get(x, "%"))))
            for n in nodes[packed:]
        ]
        return [(target, _INTEGERS.sub("n", args)) for target, args in shown]

    for full in (True, False):
        try:
            with _Lengths(full):
                other = _traced(module, params, inputs)
        except Exception:
            continue
        if listed(other) != listed(graph):
            return False
    return True


_PACKS = "aten._pack_padded_sequence."
_INTEGERS = re.compile(r"(?<![%\w.])-?\d+(?![\w.])")


def live(
    nodes: tuple[torch.fx.Node, ...], training: bool = False, *, lengths: bool = True
) -> tuple[torch.fx.Node, ...]:
    """The nodes that outputs depend on, and those that write to tensors; norms write in training mode.

    Without ``lengths``, not those that only compute how long packed sequences are.
    """
    needed: set[torch.fx.Node] = set()
    for node in reversed(nodes):
        schema = getattr(node.target, "_schema", None)
        if isinstance(node.target, torch._ops.OpOverload):
            writes = (schema is not None and schema.is_mutable) or (training and "norm" in str(node.target))
            # They decide sizes, even if nothing else is read of them.
            writes |= takes_number(node) or bool(size_from(node)) or not str(node.target).startswith("aten.")
        else:
            writes = node.op == "call_function" and getattr(node.target, "__name__", "") != "getitem"
        if node in needed or writes or node.op in ("output", "placeholder"):
            packs = not lengths and str(node.target).startswith(_PACKS)
            read = [node.args[0]] if packs else values_read(node)
            needed.update((node, *(source for source in read if isinstance(source, torch.fx.Node))))
    return tuple(node for node in nodes if node in needed)


def values_read(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The nodes that an operation reads, without one of which it reads only the shape or type."""
    only = _ONLY_ITS_SHAPE.get(str(node.target).removeprefix("aten.").split(".")[0])
    if only is None or only >= len(node.args):
        return node.all_input_nodes
    others = [arg for place, arg in enumerate(node.args) if place != only]
    return [source for source in node.all_input_nodes if source in others or source in node.kwargs.values()]


_ONLY_ITS_SHAPE = {
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones"), 0),
    **dict.fromkeys(("rand_like", "randn_like", "randint_like", "new_full", "new_empty"), 0),
    **dict.fromkeys(("expand_as", "view_as", "reshape_as", "type_as"), 1),
}
"""Operations that read an argument's shape or type, not its values -> its place."""


def takes_number(node: torch.fx.Node) -> bool:
    """Whether an operation takes one number, other than a truth value, out of a tensor."""
    if node.op != "call_function" or not str(node.target).startswith(_NUMBERS):
        return False
    value = _source(node)
    return not (isinstance(value, Tensor) and value.dtype == torch.bool)


_NUMBERS = ("aten.item.", "aten._local_scalar_dense.")


def _source(node: torch.fx.Node) -> Any:
    """Value of a node's first argument."""
    source = node.args[0] if node.args else None
    return source.meta.get("val") if isinstance(source, torch.fx.Node) else None


def _check_values(
    graph: torch.fx.Graph, branches: bool, still: Sequence[str], allowed: Sequence[torch.fx.Node]
) -> tuple[list[int], int]:
    """Numbers may leave the tensors only where they are computed from constants, or from nodes ``still``.

    Nodes ``allowed`` may take them out anywhere.

    Returns:
        Indices of the truth values that leave the tensors and vary, and the number of all that leave them.
    """
    varies: set[torch.fx.Node] = set()
    vary: list[int] = []
    total = 0
    for node in graph.nodes:
        moves = node.op == "placeholder" and node.name not in still
        if moves or any(source in varies for source in node.all_input_nodes):
            varies.add(node)
        name = str(node.target).removeprefix("aten.").split(".")[0]
        if node.op != "call_function":
            continue
        if name in _LEAVES_TENSORS:
            value = _source(node)
            if (
                isinstance(value, Tensor)
                and (value.dtype == torch.bool or len(node.args) > 1)
                and not node.users
            ):
                vary += [total] if node in varies else []
                total += 1
            elif node in varies and node not in allowed and not _counts_sequences(node.args[0]):
                raise DataDependentError(
                    f"aten.{name} takes a number out of a tensor that depends on inputs or parameters"
                )
        # How long sequences are is looked at by itself.
        sized = not str(node.target).startswith(_PACKS) and any(x in varies for x in size_from(node))
        if branches and sized:
            raise DataDependentError(
                f"the number of elements of aten.{name} depends on inputs or parameters, and a branch on it"
            )
    return vary, total


def _counts_sequences(node: Any) -> bool:
    """Whether a value is how many packed sequences have a first step: all of them, whatever their lengths."""
    if not (
        isinstance(node, torch.fx.Node) and str(node.target) == "aten.select.int" and node.args[1:] == (0, 0)
    ):
        return False
    rows = node.args[0]
    if not (isinstance(rows, torch.fx.Node) and rows.target is operator.getitem and rows.args[1] == 1):
        return False
    return str(getattr(rows.args[0], "target", "")).startswith(_PACKS)


def size_from(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The nodes whose values decide how many elements an operation's output has."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    name = str(node.target).removeprefix("aten.").split(".")[0]
    given = [x for arg in node.args for x in (arg if isinstance(arg, list | tuple) else [arg])]
    nodes = [x for x in given if isinstance(x, torch.fx.Node)]
    if name == "index":
        values = [(x, x.meta.get("val")) for x in nodes[1:]]
        return [x for x, v in values if isinstance(v, Tensor) and v.dtype in (torch.bool, torch.uint8)]
    if name in ("repeat_interleave", "masked_select", "_pack_padded_sequence"):  # copies, masks, lengths
        last = node.kwargs.get("repeats", node.kwargs.get("mask", nodes[-1] if nodes else None))
        by_tensor = str(node.target) != "aten.repeat_interleave.self_int"
        return [last] if by_tensor and isinstance(last, torch.fx.Node) else []
    by_values = torch.Tag.dynamic_output_shape in node.target.tags or str(node.target) in _BY_VALUES
    if name == "where":
        by_values = len(node.args) == 1
    elif name == "one_hot":
        by_values = len(node.args) < 2 or bool(node.args[1] == -1)
    elif name == "bincount":  # as many as there are classes, which a network usually knows
        by_values = len(node.args) < 3
    return node.all_input_nodes if by_values else []


_BY_VALUES = (
    *("aten.nonzero_numpy.default", "aten.to_sparse.default", "aten._to_sparse.default"),
    "torchvision.nms.default",
)
"""Operations whose output has a size that depends on values, without a tag that says so."""


SIZES = frozenset(("size", "sizes", "shape", "split_size", "split_sizes", "n", "m", "k", "pad"))
"""Arguments that are sizes of an output, by their names in the operators' schemas."""


def _check_numbers(
    module: nn.Module, params: Params, inputs: Sequence[Tensor], graph: torch.fx.Graph
) -> None:
    """Check by traces on other data that numbers in operations, other than sizes, are the same again.

    A network that raises on other data is not checked.
    """

    def listed(graph: torch.fx.Graph) -> list[tuple[str, dict[str, str]]]:
        nodes = live(tuple(graph.nodes))
        number, found = {node: f"%{k}" for k, node in enumerate(nodes)}, []
        for node in nodes:
            schema = getattr(node.target, "_schema", None)
            names = [arg.name for arg in schema.arguments] if schema is not None else map(str, range(99))
            given = dict(zip(names, node.args, strict=False)) | node.kwargs
            if str(node.target) == "aten.slice.Tensor" and (value := _source(node)) is not None:
                # All of an axis may be read.
                end, size = given.pop("end", 2**63 - 1), value.shape[given.get("dim", 0)]
                given["rest"] = max(size - end, 0)
            shown = {k: str(map_arg(v, number.get)) for k, v in given.items() if k not in SIZES}
            found.append((str(node.target), shown))
        return found

    for seed in (0, 1):
        try:
            again = _traced(module, *_others(params, inputs, seed))
        except Exception:
            continue
        if listed(again) != listed(graph):
            raise DataDependentError(
                "numbers or operations depend on a number of elements that depends on values"
            )


def _others(params: Params, inputs: Sequence[Tensor], seed: int) -> tuple[Params, list[Tensor]]:
    """Other weights and inputs, as large as these; integers in another order."""
    generator = torch.Generator().manual_seed(seed)

    def other(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x.flatten().roll(1).view_as(x) if x.dtype != torch.bool else x
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return noise.to(x) * (x.detach().double().pow(2).mean().sqrt().to(x) + 0.1)

    return {name: other(p) for name, p in params.items()}, [other(x) for x in inputs]


def _check_constants(
    module: nn.Module, params: Params, inputs: Sequence[Tensor], graph: torch.fx.Graph
) -> None:
    """Check by a second trace, on other data, that tensors made from lists or arrays are the same again."""
    again = _traced(module, *_others(params, inputs, seed=0))
    if [str(node.target) for node in graph.nodes] == [str(node.target) for node in again.nodes]:
        pairs = zip(graph.nodes, again.nodes, strict=True)
        constants = [
            [getattr(node.graph.owning_module, str(node.target)) for node in pair]
            for pair in pairs
            if pair[0].op == "get_attr"
        ]
        if all(isinstance(a, Tensor) and a.shape == b.shape and a.equal(b) for a, b in constants):
            return
    raise DataDependentError(
        "a tensor comes from outside of torch's operations (a list, tolist(), numpy, or a derivative that "
        "torch.autograd or torch.func takes), and depends on data"
    )
