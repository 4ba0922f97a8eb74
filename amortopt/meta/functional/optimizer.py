"""The optimizer of functionals and editors."""

from __future__ import annotations

import torch
from torch import nn

from amortopt.meta.schedule import param_groups
from amortopt.metanets import Metanet
from amortopt.training.muon import Muon

_BETAS = (0.9, 0.98)


def reader_optimizer(
    model: nn.Module, *, lr: float, matrix_lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW over all parameters; where a metanet has matrices and prototypes by role, Muon for these.

    The key ``rate`` of a group keeps its full learning rate.

    Args:
        model: A functional or an editor.
        lr: Rate of AdamW.
        matrix_lr: Rate of Muon.
        weight_decay: Of AdamW, where it has all parameters.
    """
    if isinstance(model, Metanet) and model.param_roles():
        groups = param_groups(model, lr=matrix_lr, prototype_lr=matrix_lr, correction_lr=lr, scalar_lr=lr)
        return Muon(groups, betas=_BETAS)
    group = {"params": list(model.parameters()), "rate": lr}
    return torch.optim.AdamW([group], lr=lr, betas=_BETAS, weight_decay=weight_decay)
