"""What a metanet does to networks that it has not seen.

Legend: n networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.functional.l1 import l1_norm
from amortopt.functional.networks import num_networks
from amortopt.metanets import Metanet
from amortopt.tasks import Examples, evaluate_many

if TYPE_CHECKING:
    from amortopt.meta.one_pass.module import OnePassModule


@dataclass(frozen=True, eq=False)
class Result:
    """What networks reach on some examples after the last pass.

    Attributes:
        loss: [n], in nats.
        accuracy: [n], in [0, 1].
        objective: Loss plus L1 strength times L1 norm, [n].
        l1_cut: By how much the L1 norm fell, as a share of what it was, [n]; negative where it grew.
    """

    loss: Tensor
    accuracy: Tensor
    objective: Tensor
    l1_cut: Tensor


@torch.no_grad()
def evaluate_pass(
    module: OnePassModule,
    metanet: Metanet,
    params: Params,
    data: Mapping[str, Examples],
    read: Examples,
    *,
    l1: float = 0.0,
    chunk: int = 64,
) -> dict[str, Result]:
    """What networks reach after all passes.

    Args:
        module: Says how, and how often, the metanet is called.
        metanet: The metanet.
        params: Networks before, [n, ...].
        data: Name -> examples.
        read: Examples for gradients, if the metanet reads them.
        l1: L1 strength.
        chunk: Networks at a time.

    Returns:
        Name -> result.
    """
    parts = []
    for start in range(0, num_networks(params), chunk):
        part = {name: p[start : start + chunk] for name, p in params.items()}
        strengths = read.x.new_full((num_networks(part),), l1)
        parts.append(module.improve(metanet, part, read, strengths)[-1])
    new = {name: torch.cat([part[name] for part in parts]) for name in params}
    norm = l1_norm(new)
    cut = 1 - norm / l1_norm(params).clamp(min=1e-12)
    results = {}
    for name, split in data.items():
        loss, accuracy = evaluate_many(module.network, new, split, module.problem.objective)
        results[name] = Result(loss, accuracy, loss + l1 * norm, cut)
    return results
