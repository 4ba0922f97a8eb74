"""The L1 norm of networks."""

from __future__ import annotations

import torch
from torch import Tensor

from amortopt._types import Params


def l1_norm(params: Params) -> Tensor:
    """Sum of the absolute values of all params per network.

    Args:
        params: Tensors [B, ...].

    Returns:
        [B]; differentiable.
    """
    return torch.stack([p.abs().reshape(len(p), -1).sum(1) for p in params.values()]).sum(0)
