"""From an ``nn.Module`` and an example input to the list of aten operations that it runs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from amortopt.functional import eval_mode


@dataclass(frozen=True)
class Trace:
    """A traced forward pass in eval mode.

    Attributes:
        nodes: Nodes of the graph in execution order.
        params: Node name -> qualified parameter name.
        inputs: Names of the nodes that are the network's inputs.
        shapes: Qualified parameter name -> shape, in the order of ``named_parameters``.
        softsigns: Divisions that end a written-out softsign x / (1 + |x|) -> x.
    """

    nodes: tuple[torch.fx.Node, ...]
    params: dict[str, str]
    inputs: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    softsigns: dict[torch.fx.Node, torch.fx.Node]


def trace(module: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> Trace:
    """Record what a module computes, in eval mode, without changing it.

    Args:
        module: The base network.
        example_input: What ``forward`` takes: a tensor [N, ...] or a tuple of such.

    Returns:
        The graph before decomposition, with a name for every parameter node.

    Raises:
        ValueError: The module has no parameters, has parameters of a kind that no symmetry is defined for
            (lazy, integer, complex, shared between two names), does not take this input, or cannot be traced.
    """
    _check_parameters(module)
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    if not inputs or not all(isinstance(x, Tensor) and x.ndim >= 1 for x in inputs):
        got = [type(x).__name__ if not isinstance(x, Tensor) else tuple(x.shape) for x in inputs]
        raise ValueError(f"example_input: got {got}, expected tensors whose first axis is the batch")
    with eval_mode(module), _silent_tracer():
        try:
            with warnings.catch_warnings():
                # What export says about its own internals is not for the caller.
                warnings.simplefilter("ignore")
                program = torch.export.export(module, inputs, strict=False)
        except Exception as error:
            raise _explained(module, inputs, error) from error
    params, users = {}, []
    for spec in program.graph_signature.input_specs:
        name = getattr(spec.arg, "name", "")
        if spec.kind == InputKind.PARAMETER and spec.target is not None:
            params[name] = spec.target
        elif spec.kind == InputKind.USER_INPUT:
            users.append(name)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    nodes, softsigns = _fuse_softsign(tuple(program.graph.nodes))
    return Trace(nodes, params, tuple(users), shapes, softsigns)


def _fuse_softsign(
    nodes: tuple[torch.fx.Node, ...],
) -> tuple[tuple[torch.fx.Node, ...], dict[torch.fx.Node, torch.fx.Node]]:
    """Find F.softsign, which is odd although its parts are not, and leave its inner nodes out."""
    found, inner = {}, set()
    for node in nodes:
        if node.op != "call_function" or operator_name(node) != "aten.div" or len(node.args) != 2:
            continue
        x, total = node.args
        if not isinstance(x, torch.fx.Node) or not _calls(total, "aten.add") or total.args[1:] != (1,):
            continue
        magnitude = total.args[0]
        if _calls(magnitude, "aten.abs") and magnitude.args == (x,):
            found[node] = x
            inner |= {part for part in (magnitude, total) if len(part.users) == 1}
    return tuple(node for node in nodes if node not in inner), found


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


def module_path(node: torch.fx.Node) -> str:
    """Qualified name of the submodule whose forward made this node; empty for the network itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).split("@")[0] if stack else ""


def shape_of(value: Any) -> tuple[int, ...] | None:
    """Shape of what a node holds; None if it is not one tensor."""
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else None


def _check_parameters(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise ValueError(f"module: got {type(module).__name__}, expected an nn.Module")
    names: dict[int, list[str]] = {}
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
        names.setdefault(id(parameter), []).append(name)
    if not names:
        raise ValueError(f"module: {type(module).__name__} has no parameters, so it has no symmetry to find")
    for shared in names.values():
        if len(shared) > 1:
            raise ValueError(f"module: one parameter has the names {shared}; a tie is not supported yet")


@contextlib.contextmanager
def _silent_tracer() -> Iterator[None]:
    # Where tracing fails, torch logs a long traceback or whole graphs beside the exception that says it all.
    loggers = [logging.getLogger(f"torch.{name}") for name in ("_subclasses.fake_tensor", "fx", "export")]
    were = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        yield
    finally:
        for logger, was in zip(loggers, were, strict=True):
            logger.disabled = was


def _explained(module: nn.Module, inputs: tuple[Tensor, ...], error: Exception) -> ValueError:
    """Tell an input that does not fit from a forward that cannot be traced."""
    name, shapes = type(module).__name__, [tuple(x.shape) for x in inputs]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module(*inputs)
    except Exception as own:
        return ValueError(
            f"example_input: {name} does not take inputs of shapes {shapes}: {_first_line(own)}"
        )
    kind = type(error).__name__
    advice = "; forward may not branch or loop on the values of tensors" if "DataDependent" in kind else ""
    return ValueError(f"module: {name} runs but cannot be traced ({kind}: {_first_line(error)}){advice}")


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__
