"""Budget, learning rates and averages: which parameters get which rate, and how it falls."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from amortopt.metanets import Metanet


def param_groups(
    metanet: Metanet,
    *,
    lr: float,
    prototype_lr: float,
    scalar_lr: float,
    correction_lr: float,
    weight_decay: float = 0.0,
    prototype_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Split a metanet's parameters among rates; every parameter is in exactly one group.

    Args:
        metanet: Its [param_roles][amortopt.metanets.Metanet.param_roles] decide: matrices and prototypes are
            updated by Muon, the others by AdamW.
        lr: Rate of matrices. Low: through features that change quickly, noise is read out of a network.
        prototype_lr: Rate of prototypes.
        scalar_lr: Rate of parameters without a role.
        correction_lr: Rate of corrections. Low: large updates of these write noise into the weights.
        weight_decay: Of matrices.
        prototype_decay: Of prototypes.

    Returns:
        Groups for [Muon][amortopt.training.muon.Muon]; the key ``rate`` keeps the full learning rate.
    """
    roles = metanet.param_roles()
    taken = {id(p) for group in roles.values() for p in group}
    roles["other"] = [p for p in metanet.parameters() if id(p) not in taken]
    decays = {"matrix": weight_decay, "prototype": prototype_decay}
    rates = {"matrix": lr, "prototype": prototype_lr, "correction": correction_lr, "other": scalar_lr}
    return [
        {
            "params": roles[role],
            "lr": rate,
            "rate": rate,
            "muon": role in decays,
            "weight_decay": decays.get(role, 0.0),
        }
        for role, rate in rates.items()
        if roles.get(role)
    ]


def rate_factor(step: int, progress: float, *, warmup_steps: int, hold: float) -> float:
    """Factor on the learning rates, in [0, 1]: linear warm-up, constant, then linear decay.

    Args:
        step: Steps done.
        progress: Share of the budget that is used up, in [0, 1].
        warmup_steps: Steps of warm-up.
        hold: Share of the budget at the full rate.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    decay = 1.0 if progress < hold or hold >= 1 else (1 - progress) / (1 - hold)
    return warmup * decay


def budget_used(trainer: L.Trainer) -> float:
    """Share of a run's steps that are done, in [0, 1].

    Rates and penalties follow it. It does not depend on the clock, so a recipe with a seed gives the same
    weights on a busy and on a quiet machine; a limit of time only stops a run.
    """
    return min(1.0, trainer.global_step / trainer.max_steps)


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, step: int, decay: float) -> None:
    """Move an average of weights towards the weights; faster in the first steps.

    Args:
        average: Copy of ``module``; written.
        module: Where the weights come from.
        step: Steps done, at least 1.
        decay: Weight of the old average, reached once the average is older than its memory.
    """
    weight = 1 - min(decay, (step + 1) / (step + 10))
    old: list[Tensor] = list(average.parameters())
    new: list[Tensor] = [p.detach() for p in module.parameters()]
    torch._foreach_lerp_(old, new, weight)  # pyright: ignore[reportPrivateImportUsage]
