"""What update rules remember of the gradients, and the directions that people made of it: Adam's and Muon's.

Legend: B networks, N elements of all parameters, L blocks of a bucket.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.metanets.update_rule.orthogonal import orthogonal

RuleState: TypeAlias = dict[str, Tensor]
"""``step`` [*batch], ``momenta`` [*batch, 3, N], ``second`` [*batch, 1, N]; float32. With a ``floor`` also
``length`` [*batch], see [length][amortopt.metanets.update_rule.history.length]."""

MOMENTA = (0.9, 0.95, 0.99)
"""Decays of the running averages of the gradient: Adam's, Muon's and a slow one."""
SECOND = 0.99
"""Decay of the running average of its square."""
SIZES = {"momenta": len(MOMENTA), "second": 1}
"""Entry of the state -> numbers per element."""
TINY = 1e-30
"""Added to mean squares before roots and logarithms are taken."""
FLOOR = 1e-12
"""A second moment counts as at least this share of the largest block's mean. Gradients that are rounding
errors, such as those of a bias before a batch norm, would otherwise move their weights at full speed."""


def fresh_state(layout: UpdateLayout, flat: Tensor, dtype: torch.dtype) -> RuleState:
    """State before the first step, all zeros, for parameters ``flat`` [*batch, N]."""
    kw: dict[str, Any] = {"dtype": dtype, "device": flat.device}
    batch = flat.shape[:-1]
    state = {"step": torch.zeros(batch, **kw)}
    return state | {key: torch.zeros(*batch, n, layout.size, **kw) for key, n in SIZES.items()}


def accumulate(state: RuleState, grads: Tensor, inplace: bool) -> RuleState:
    """The state after one more gradient [B, N]."""
    momenta, second = state["momenta"], state["second"]
    if inplace:
        for k, decay in enumerate(MOMENTA):
            momenta[:, k].lerp_(grads, 1 - decay)
        second[:, 0].mul_(SECOND).addcmul_(grads, grads, value=1 - SECOND)
        return {"step": state["step"].add_(1), "momenta": momenta, "second": second}
    rates = 1 - grads.new_tensor(MOMENTA).unsqueeze(-1)
    first, square = grads.unsqueeze(1).expand_as(momenta), grads.square().unsqueeze(1)
    new = {"momenta": momenta.lerp(first, rates), "second": second.lerp(square, 1 - SECOND)}
    return {"step": state["step"] + 1, **new}


def divide_by_roots(
    layout: UpdateLayout, second: Tensor, step: Tensor, damping: float
) -> Callable[[Tensor], Tensor]:
    """Of running averages of squares [B, N] after ``step`` steps [B, 1]: a function that divides by their
    unbiased roots.

    An element with a tiny gradient moves as fast as any other and turns around at the slightest cause. Its
    share in the loss is as tiny, but derivatives through many such steps explode. So with derivatives the
    value is x / root, and the derivative by x is over a damped root: of ``damping`` block means more.
    """
    second = second.detach() / (1 - SECOND**step)  # derivatives through it explode
    means = torch.cat([part.flatten(2).mean(2) for part in layout.split(second)], 1)
    floor = FLOOR * means.amax(1, keepdim=True) + TINY
    if not torch.is_grad_enabled() or not damping:
        inverse = second.add_(floor).rsqrt_()
        return lambda x: x * inverse
    root = (second + floor).sqrt()
    parts = zip(layout.split_blocks(means), layout.split(second), strict=True)
    added = torch.cat([mean.expand_as(part).flatten(1) for mean, part in parts], 1)
    damped = (second + damping * added + TINY).sqrt()

    def over_root(x: Tensor) -> Tensor:
        soft = x / damped
        return soft + (x / root - soft).detach()

    return over_root


def muon(momentum: Tensor) -> Tensor:
    """Muon's direction for matrices or kernels [B, L, rows, ...], whose other axes are columns."""
    matrices = momentum.flatten(3)
    rows, columns = matrices.shape[2:]
    return (orthogonal(matrices) * max(1.0, rows / columns) ** 0.5).view_as(momentum)


def length(layout: UpdateLayout, flat: Tensor, floor: float) -> Tensor:
    r"""How long the steps of a network are beside Muon's and Adam's, [B], from ``floor`` to 1.

    .. math:: l = \operatorname{geometric\,mean}_W\;
        \operatorname{clamp}\left(\sqrt{6 n} \operatorname{rms}(W),\, \text{floor},\, 1\right)

    over all blocks W of several axes, with n weights per output unit: 1 where weights are as torch makes
    them, uniform in :math:`\pm 1 / \sqrt n`, or larger; less if their squares are below half of that. A
    network with small weights makes up for them, with a factor behind its layers, and feels the same step
    that much more. So do its biases and its layers of the usual size, so all tensors have one length. A SIREN
    2-64-64-64-1 multiplies with 30 behind each layer; its blocks have 0.96, 0.115, 0.115 and 0.124, so its
    steps are 0.2 times as long as Muon's. The weights before the first step decide: those of a SIREN grow
    while it learns, and the factors behind them do not change.

    Args:
        layout: Of the base network.
        flat: Its parameters [B, N].
        floor: Smallest factor of a block, in (0, 1], such as of weights that start at zero.
    """
    squares = torch.cat([part.flatten(2).square().mean(2) for part in layout.split(flat.detach())], 1)
    wide = layout.fans > 0
    logs = (6 * layout.fans * squares).clamp(floor**2, 1.0).log() / 2
    return ((logs * wide).sum(1) / wide.sum().clamp(min=1)).exp()
