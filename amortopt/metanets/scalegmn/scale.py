"""Scalings: parts that keep a factor q of a unit exactly.

A unit's factor is a positive number times a sign. The positive part is removed before the metanet runs, by
bringing every network to a canonical scaling, and put back afterwards ([canonical_factors]). The sign is
carried: a unit has an odd feature vector v, which flips with it, beside an even one h, which does not.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from amortopt._types import Params
from amortopt.metanets.scalegmn.graph.blocks import EdgeBlock, NodeBlock, Scale, scales_of
from amortopt.metanets.scalegmn.graph.factors import Teller
from amortopt.metanets.scalegmn.graph.layout import GraphLayout

Factors: TypeAlias = dict[str, Tensor]
"""Name of a factor -> [B, n]."""


def canonical_factors(layout: GraphLayout, params: Params) -> tuple[Factors, Factors]:
    r"""Factors q that scale every unit's incoming weights to norm one.

    In the order of the groups, q_o is the norm of everything that writes to unit o, with the factors of what
    it reads already removed: :math:`q_o = \| (W_{oi} q_i)_i, b_o \|`. So q moves like the unit itself under
    :math:`W' = S_a W S_b^{-1}`, and W_oi q_i / q_o is invariant. Where the order is another one, or exponents
    are others than +1 and -1, the layout knows what tells each factor.

    A dead unit that nothing writes to (its incoming weights are exactly zero, or come from dead units) takes
    its factor from what reads it, one over the norm. A unit without any weight, or whose only neighbours have
    no scale either, has none: both q and 1/q are given as zero. Its canonical weights are zero then, and a
    metanet proposes zero for them, which every scaling leaves as it is.

    Args:
        layout: Layout of the params.
        params: Tensors [B, ...].

    Returns:
        q and 1/q, each with one tensor [B, n] per factor of the layout, by its name.
    """
    if not layout.factors:
        return {}, {}
    sizes = layout.sizes(params)
    first = next(iter(params.values()))
    q = {factor.name: first.new_zeros(first.shape[0], sizes[factor.node]) for factor in layout.factors}
    inverse = dict(q)
    for told in layout.told:
        norms = _norms(layout, params, told.first, q, inverse)
        if norms is not None:
            q[told.factor], inverse[told.factor] = _factor(told.first, norms, norms > 0)
    for told in reversed(layout.told):
        norms = _norms(layout, params, told.otherwise, q, inverse)
        if norms is not None:
            dead = q[told.factor] == 0
            found, found_inverse = _factor(told.otherwise, norms, dead & (norms > 0))
            q[told.factor] = torch.where(dead, found, q[told.factor])
            inverse[told.factor] = torch.where(dead, found_inverse, inverse[told.factor])
    return q, inverse


def _norms(
    layout: GraphLayout, params: Params, tellers: tuple[Teller, ...], q: Factors, inverse: Factors
) -> Tensor | None:
    """Norms of all rows of each unit [B, n], all other factors removed."""
    rows = []
    for teller in tellers:
        value = layout.read(teller.item, params)
        for dim, scale in teller.others:
            value = value * _along(scale, dim, value.ndim, inverse, q)
        # [B, .., N, ..] -> [B, before, n, repeat, ..] -> [B, n, *]
        parts = value.movedim(teller.dim, 1).unflatten(1, (teller.scale.before, -1, teller.scale.repeat))
        rows.append(parts.movedim(2, 1).flatten(2))
    return _norm(torch.cat(rows, -1)) if rows else None


def _factor(tellers: tuple[Teller, ...], norms: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """q and 1/q from norms that go as a power of q; zero elsewhere, with finite gradients."""
    exponent = tellers[0].scale.exponent
    norms = torch.where(where, norms, 1)
    if abs(exponent) > 1:
        norms = norms ** (1 / abs(exponent))
    own, other = torch.where(where, norms, 0), torch.where(where, 1 / norms, 0)
    return (own, other) if exponent > 0 else (other, own)


def _norm(x: Tensor) -> Tensor:
    """Norm over the last axis."""
    # What several layers of large or tiny weights multiply up to has squares outside float32's range. A power
    # of two brings them back without rounding.
    peak = x.detach().abs().amax(-1, keepdim=True)
    exponent = torch.frexp(peak).exponent.clamp(-100, 100)
    # Factors of their own: in torch 2.11 the gradient of ldexp is wrong for negative exponents.
    down, up = (torch.ldexp(torch.ones_like(peak), e) for e in (-exponent, exponent))
    return torch.linalg.vector_norm(x * down, dim=-1) * up[..., 0]


def rescaled(item: NodeBlock | EdgeBlock, value: Tensor, factors: Factors, inverse: Factors) -> Tensor:
    """Multiply a block's features by the q of their ends to the power of their exponents."""
    for dim, scale in scales_of(item):
        value = value * _along(scale, dim, value.ndim, factors, inverse)
    return value


def _along(scale: Scale, dim: int, ndim: int, factors: Factors, inverse: Factors) -> Tensor:
    """q to the power of its exponent for all units along a dimension of features [B, ...]."""
    q = (factors if scale.exponent > 0 else inverse)[scale.factor]
    if abs(scale.exponent) > 1:
        q = q ** abs(scale.exponent)
    if scale.before * scale.repeat > 1:
        q = q[:, None, :, None].expand(-1, scale.before, -1, scale.repeat).flatten(1)
    return q.view(q.shape[0], *(1,) * (dim - 1), -1, *(1,) * (ndim - 1 - dim))


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
