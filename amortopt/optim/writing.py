"""What becomes of new values: networks in place, copies, and whether a user's loss accepts them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from amortopt._types import Params
from amortopt.optim.apply import plain
from amortopt.optim.checks import as_loss, is_lower


def copied(model: nn.Module, where: str) -> nn.Module:
    """A deep copy.

    Args:
        model: The network; not modified.
        where: Text that names it in an error, in front of the message.

    Returns:
        The copy.

    Raises:
        ValueError: It cannot be copied.
    """
    try:
        with plain():
            return copy.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"{where}copy.deepcopy failed on {type(model).__name__} ({type(error).__name__}: {error}); pass "
            "inplace=True without accept, which needs no copy"
        ) from error


def judged(
    accept: Callable[[Any], float],
    old: Sequence[nn.Module],
    new: Sequence[nn.Module],
    where: Callable[[int], str],
    i: int,
) -> bool:
    """Whether ``accept`` finds network i better than it was; it gets copies."""
    losses = [as_loss(accept(copied(which[i], where(i))), where(i)) for which in (new, old)]
    return is_lower(losses[0], losses[1])


def written(model: nn.Module, new: Params) -> nn.Module:
    """Write new values into a network's trainable parameters; returns the network."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Tensors made in inference mode can be written to only there.
            with torch.inference_mode(parameter.is_inference()), torch.no_grad():
                parameter.copy_(new[name])
    return model
