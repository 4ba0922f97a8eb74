"""Tracing with the example's own values, for what ``torch.export`` cannot trace symbolically.

The trace of ``torch.fx`` runs the network on real tensors. That is as good, unless a value decided what was
run: where a number that depends on inputs or parameters leaves the tensors, nothing is known of other inputs.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

_LEAVES_TENSORS = frozenset({"item", "_local_scalar_dense", "is_nonzero", "equal", "allclose"})


class DataDependentError(ValueError):
    """What the network runs depends on the values of tensors."""


def concrete_graph(
    module: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[torch.fx.Graph, dict[str, str], dict[str, str], tuple[str, ...]]:
    """Trace a module on its example input.

    Args:
        module: In the mode to trace it in; not modified.
        inputs: What its forward takes.

    Returns:
        The graph, and for its placeholders node name -> qualified parameter name, node name -> qualified
        buffer name, and the names of the inputs' nodes.

    Raises:
        DataDependentError: A number that depends on inputs or parameters decides about what is run.
    """
    params = {name: p.detach() for name, p in module.named_parameters()}
    buffers = {name: b.clone() for name, b in module.named_buffers()}

    def run(params: dict[str, Tensor], buffers: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> object:
        return functional_call(module, {**params, **buffers}, inputs)

    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tracer = make_fx(run, tracing_mode="real", pre_dispatch=True, _error_on_data_dependent_ops=False)
        graph = tracer(params, buffers, inputs).graph
    holders = [node.name for node in graph.nodes if node.op == "placeholder"]
    _check_values(graph)
    names = [*params, *buffers]
    by_name = dict(zip(holders[: len(names)], names, strict=True))
    return (
        graph,
        {node: name for node, name in by_name.items() if name in params},
        {node: name for node, name in by_name.items() if name in buffers},
        tuple(holders[len(names) :]),
    )


def _check_values(graph: torch.fx.Graph) -> None:
    """Numbers may leave the tensors only where they are computed from constants, and none may come back."""
    varies: set[torch.fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            raise DataDependentError("a tensor comes from outside of torch's operations")
        if node.op == "placeholder" or any(source in varies for source in node.all_input_nodes):
            varies.add(node)
        name = str(node.target).removeprefix("aten.").split(".")[0]
        if node in varies and node.op == "call_function" and name in _LEAVES_TENSORS:
            raise DataDependentError(
                f"aten.{name} takes a number out of a tensor that depends on inputs or parameters"
            )
