"""Scalings: parts that keep a factor q of a unit exactly.

A unit's factor is a positive number times a sign. The positive part is removed before the metanet runs, by
bringing every network to a canonical scaling, and put back afterwards ([canonical_factors]). The sign is
carried: a unit has an odd feature vector v, which flips with it, beside an even one h, which does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from amortopt._types import Params
from amortopt.graph import EdgeBlock, GraphLayout, NodeBlock


def canonical_factors(layout: GraphLayout, params: Params) -> tuple[list[Tensor], list[Tensor]]:
    r"""Factors q that scale every unit's incoming weights to norm one.

    In the order of the groups, q_o is the norm of everything that writes to unit o, with the factors of what
    it reads already removed: :math:`q_o = \| (W_{oi} q_i)_i, b_o \|`. So q moves like the unit itself under
    :math:`W' = S_a W S_b^{-1}`, and W_oi q_i / q_o is invariant.

    A dead unit that nothing writes to (its incoming weights are exactly zero, or come from dead units) takes
    its factor from what reads it, one over the norm. A unit without any weight, or whose only neighbours have
    no scale either, has none: both q and 1/q are given as zero. Its canonical weights are zero then, and a
    metanet proposes zero for them, which every scaling leaves as it is.

    Args:
        layout: Layout of the params.
        params: Tensors [B, ...].

    Returns:
        q and 1/q, each one tensor [B, n] per node set; ones for sets that have no positive scaling.
    """
    sizes = layout.sizes(params)
    first = next(iter(params.values()))
    ones = [first.new_ones(first.shape[0], n) for n in sizes]
    known: list[Tensor | None] = [None if node.positive else ones[p] for p, node in enumerate(layout.nodes)]
    inverse: list[Tensor | None] = list(known)
    for node, kind in enumerate(layout.nodes):
        if kind.positive:
            norm = _norm(_writers(layout, params, node, known), ones[node])
            known[node], inverse[node] = norm, _reciprocal(norm, norm > 0)
    for node, kind in reversed(list(enumerate(layout.nodes))):
        if kind.positive:
            own, own_inverse = known[node], inverse[node]
            assert own is not None and own_inverse is not None
            norm = _norm(_readers(layout, params, node, inverse), ones[node])
            dead = own == 0
            known[node] = torch.where(dead, _reciprocal(norm, dead & (norm > 0)), own)
            inverse[node] = torch.where(dead, norm, own_inverse)
    return [q for q in known if q is not None], [q for q in inverse if q is not None]


def _writers(layout: GraphLayout, params: Params, node: int, known: list[Tensor | None]) -> list[Tensor]:
    """What writes to a set from sets of known factor, as rows [B, n, *]."""
    rows = [
        layout.read_node(item, params)
        for item in layout.node_blocks
        if item.node == node and item.axis.exponent == 1
    ]
    for item in layout.edge_blocks:
        factor = known[item.into]
        if item.out == node and item.out_axis.exponent == 1 and factor is not None:
            weights = layout.read_edge(item, params)
            if item.in_axis.exponent == -1:
                weights = weights * factor[:, None, None, :]
            rows.append(weights.transpose(1, 2).flatten(2))
    return rows


def _readers(layout: GraphLayout, params: Params, node: int, inverse: list[Tensor | None]) -> list[Tensor]:
    """What reads a set, with the written sets' factors removed, as rows [B, n, *]."""
    rows = []
    for item in layout.edge_blocks:
        factor = inverse[item.out]
        if item.into == node and item.out != node and item.in_axis.exponent == -1 and factor is not None:
            weights = layout.read_edge(item, params)
            if item.out_axis.exponent == 1:
                weights = weights * factor[:, None, :, None]
            rows.append(weights.permute(0, 3, 1, 2).flatten(2))
    return rows


def _norm(rows: list[Tensor], like: Tensor) -> Tensor:
    """Norm of each unit's rows [B, n]; zero without any."""
    if not rows:
        return torch.zeros_like(like)
    x = torch.cat(rows, -1)
    # What several layers of large or tiny weights multiply up to has squares outside float32's range. A power
    # of two brings them back without rounding.
    peak = x.detach().abs().amax(-1, keepdim=True)
    exponent = torch.frexp(peak).exponent.clamp(-100, 100)
    # Factors of their own: in torch 2.11 the gradient of ldexp is wrong for negative exponents.
    down, up = (torch.ldexp(torch.ones_like(peak), e) for e in (-exponent, exponent))
    return torch.linalg.vector_norm(x * down, dim=-1) * up[..., 0]


def _reciprocal(norm: Tensor, where: Tensor) -> Tensor:
    """One over the norm, zero elsewhere; gradients stay finite."""
    return torch.where(where, 1 / torch.where(where, norm, 1), 0)


def scale_node(item: NodeBlock, value: Tensor, factors: list[Tensor], inverse: list[Tensor]) -> Tensor:
    """Multiply node features [B, n, k] by q to the power of their exponent."""
    table = {1: factors, -1: inverse}.get(item.axis.exponent)
    return value if table is None else value * table[item.node][..., None]


def scale_edge(item: EdgeBlock, value: Tensor, factors: list[Tensor], inverse: list[Tensor]) -> Tensor:
    """Multiply edge features [B, k, o, i] by the q of both ends to the power of their exponents."""
    out = {1: factors, -1: inverse}.get(item.out_axis.exponent)
    into = {1: factors, -1: inverse}.get(item.in_axis.exponent)
    if out is not None:
        value = value * out[item.out][:, None, :, None]
    return value if into is None else value * into[item.into][:, None, None, :]


class RMSNorm(nn.Module):
    """x / rms(x) with a learned gain and no offset: odd in x, zero at zero.

    Args:
        width: Channels d of x [.., d].
        eps: Added to the mean square; 1e-4 keeps the gradient at zero below 100.
    """

    def __init__(self, width: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return _RMSNorm.apply(x.to(self.gain.dtype), self.gain, self.eps)


class _RMSNorm(torch.autograd.Function):
    """What torch has only on GPUs: x and its norm are all that is kept for gradients."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        scale = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, scale)
        return (x * scale).mul_(gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gain, scale = ctx.saved_tensors
        # y = x s w: dx = s g w - x s^3 mean(g w x)
        product = grad * x
        to_gain = scale.flatten() @ product.flatten(0, -2)
        along = (product @ gain)[..., None] * scale**3 / -x.shape[-1]
        return torch.mul(grad, gain, out=product).mul_(scale).addcmul_(x, along), to_gain, None
