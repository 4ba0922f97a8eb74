"""What a metanet does to networks that it has not seen.

Legend: n networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.functional import num_networks
from amortopt.metanets import Metanet
from amortopt.tasks import Split
from amortopt.zoo.train import evaluate_many

if TYPE_CHECKING:
    from amortopt.meta.module import OnePassModule


@torch.no_grad()
def improve_all(
    module: OnePassModule, metanet: Metanet, params: Params, read: Split, *, chunk: int = 64
) -> Params:
    """One pass over many networks, some at a time.

    Args:
        module: Says how the metanet is called.
        metanet: The metanet.
        params: [n, ...].
        read: Examples for gradients that the metanet reads. An L1 strength that it reads is 0.
        chunk: Networks per pass.

    Returns:
        New params, [n, ...].
    """
    parts = []
    for start in range(0, num_networks(params), chunk):
        part = {name: p[start : start + chunk] for name, p in params.items()}
        l1 = read.x.new_zeros(num_networks(part)) if "l1" in metanet.inputs else None
        parts.append(module.improve(metanet, part, (read.x, read.y), l1))
    return {name: torch.cat([part[name] for part in parts]) for name in params}


def evaluate_pass(
    module: OnePassModule, metanet: Metanet, params: Params, data: Mapping[str, Split], read: Split
) -> dict[str, tuple[Tensor, Tensor]]:
    """Loss and accuracy of networks after one pass.

    Args:
        module: Gives architecture and task.
        metanet: The metanet.
        params: Networks before, [n, ...].
        data: Name -> examples.
        read: Examples for gradients that the metanet reads.

    Returns:
        Name -> loss [n] in nats and accuracy [n] in [0, 1].
    """
    new = improve_all(module, metanet, params, read)
    return {name: evaluate_many(module.network, new, split, module.task) for name, split in data.items()}
