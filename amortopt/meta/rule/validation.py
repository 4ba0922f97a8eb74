"""What an update rule makes of networks that it was not trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from amortopt.meta.rule.inner import InnerProblem
from amortopt.metanets.update_rule.rule import UNFRule

FINAL = 32
"""Minibatches that a final loss is measured on."""


@torch.no_grad()
def validate(rule: UNFRule, inner: InnerProblem, count: int, steps: int) -> tuple[Tensor, Tensor]:
    """Train networks, always from the same unseen initialisations and on the same minibatches.

    Args:
        rule: The rule.
        inner: Problem and family.
        count: Networks B.
        steps: Inner steps.

    Returns:
        Mean over steps of the loss on minibatches [B], and the loss after the last step, on further
        minibatches [B], in nats.
    """
    generator = torch.Generator().manual_seed(2**31)
    flat = inner.init(count, generator)
    state = rule.init_state(inner.layout, flat)
    losses = []
    for _ in range(steps):
        loss, grads = inner.losses_and_grads(flat, *inner.draw(count, generator))
        update, state = rule(inner.layout, flat, grads, state, inplace=True)
        flat = flat - update
        losses.append(loss)
    final = [inner.losses(flat, *inner.draw(count, generator)) for _ in range(FINAL)]
    return torch.stack(losses).mean(0), torch.stack(final).mean(0)
