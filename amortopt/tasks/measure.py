"""Losses, gradients and scores of many networks on examples.

Legend: B networks, N examples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.chain import chain_loss_and_grad
from amortopt.functional.networks import apply_many, l1_norm, num_networks
from amortopt.tasks.examples import Examples
from amortopt.tasks.objective import Objective


def loss_many(
    module: nn.Module,
    params: Params,
    examples: Examples,
    objective: Objective,
    *,
    l1: float | Tensor | None = None,
) -> Tensor:
    r"""Objective of each network, :math:`L(\theta) + \lambda\lVert\theta\rVert_1` where λ is passed.

    Args:
        module: Architecture; its own params are not read.
        params: Qualified name -> [B, ...].
        examples: On the params' device; shared by all networks or one set per network.
        objective: Gives L.
        l1: Strength λ, one for all networks or one per network [B].

    Returns:
        [B]; differentiable in ``params`` to any order.

    Raises:
        ValueError: If examples are for another number of networks, or outputs do not fit the objective.
    """
    outputs = apply_many(module, params, examples.x, shared=examples.shared)
    losses = objective.loss(outputs, examples.y, examples.mask)
    if l1 is None:
        return losses
    return losses + torch.as_tensor(l1, dtype=losses.dtype, device=losses.device) * l1_norm(params)


def loss_and_grad_many(
    module: nn.Module,
    params: Params,
    examples: Examples,
    objective: Objective,
    *,
    l1: float | Tensor | None = None,
    create_graph: bool = False,
) -> tuple[Tensor, Params]:
    """Objective of each network and its gradient; works without autograd being enabled.

    Arguments and errors are those of [loss_many][amortopt.tasks.loss_many]. With ``create_graph`` both can be
    differentiated again by ``params``. Returns [B], and gradients with the names and shapes of ``params``.
    """
    if create_graph and l1 is None and not examples.shared:
        written_out = chain_loss_and_grad(
            module, params, examples.x, lambda outputs: objective.loss(outputs, examples.y, examples.mask)
        )
        if written_out is not None:
            return written_out
    with torch.enable_grad():
        at = {
            name: p if create_graph and p.requires_grad else p.detach().requires_grad_()
            for name, p in params.items()
        }
        losses = loss_many(module, at, examples, objective, l1=l1)
        # A network's loss depends on its params alone, so the gradient of the sum holds every network's.
        # One plain backward pass is a quarter faster here than torch.func.grad.
        grads = torch.autograd.grad(
            losses.sum(), list(at.values()), create_graph=create_graph, materialize_grads=True
        )
    return losses if create_graph else losses.detach(), dict(zip(at, grads, strict=True))


def answers_many(module: nn.Module, params: Params, inputs: Tensor) -> Examples:
    """Inputs with what each network returns for them as targets, for an objective's ``matching``.

    Args:
        module: Architecture.
        params: Qualified name -> [B, ...].
        inputs: [N, ...], the same for all networks.

    Returns:
        Examples of each network: x [B, N, ...], y [B, N, *output_shape].
    """
    outputs = apply_many(module, params, inputs)
    return Examples(inputs.expand(len(outputs), *inputs.shape), outputs, shared=False)


@torch.no_grad()
def evaluate_many(
    module: nn.Module, params: Params, examples: Examples, objective: Objective, *, chunk: int = 1000
) -> tuple[Tensor, Tensor]:
    """Loss [B] and score [B] of each network, float64.

    Arguments are those of [loss_many][amortopt.tasks.loss_many]; ``chunk`` is the number of examples per
    forward pass, which bounds the memory.
    """
    sums = torch.zeros(2, num_networks(params), dtype=torch.float64, device=examples.x.device)
    for part in examples.chunks(chunk):
        outputs = apply_many(module, params, part.x, shared=part.shared)
        objective.check_shapes(outputs, part.y)
        terms = torch.stack([term(outputs, part.y) for term in (objective.losses, objective.score_terms)])
        sums += (terms if part.mask is None else torch.where(part.mask, terms, 0)).double().sum(-1)
    loss, mean = sums / (len(examples) if examples.mask is None else examples.mask.sum(-1))
    return loss, objective.score_from(mean, examples.y, examples.mask)
