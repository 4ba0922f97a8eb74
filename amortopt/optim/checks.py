"""What a one-shot optimizer refuses, before anything is computed or written."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from amortopt._types import Params
from amortopt.functional.l1 import L1Range
from amortopt.release import check_passes as check_passes
from amortopt.tasks import Objective

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


class OutOfRangeWarning(UserWarning):
    """An L1 strength that the checkpoint was not trained for; nothing is promised there."""


def as_list(models: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    """The networks as a list.

    Raises:
        ValueError: Nothing in it, or something that is no network.
    """
    if isinstance(models, _CONTAINERS):
        raise ValueError(
            f"models: got {type(models).__name__}, expected a network or a list of them; pass list(models)"
        )
    many = [models] if isinstance(models, nn.Module) else models
    if not isinstance(many, list | tuple):
        raise ValueError(f"models: got {type(models).__name__}, expected an nn.Module or a list of them")
    if not many:
        raise ValueError("models: got an empty list, expected at least one network")
    for i, model in enumerate(many):
        if not isinstance(model, nn.Module) or isinstance(model, _CONTAINERS):
            raise ValueError(f"models[{i}]: got {type(model).__name__}, expected a network (nn.Module)")
    return list(many)


def check_networks(
    models: Sequence[nn.Module], *, inplace: bool, frozen: str, where: Callable[[int], str]
) -> None:
    """Check devices, frozen and shared parameters.

    Args:
        models: The networks.
        inplace: Whether their parameters will be written, so that two networks may not share one.
        frozen: ``"error"`` or ``"keep"``.
        where: Text that names network i in an error, in front of the message.

    Raises:
        ValueError: What is wrong, with the network and the parameter.
    """
    if frozen not in ("error", "keep"):
        raise ValueError(f"frozen: got {frozen!r}, expected 'error' or 'keep'")
    for i, model in enumerate(models):
        if lazy := [name for name, p in model.named_parameters() if is_lazy(p)]:
            raise ValueError(
                f"{where(i)}parameter {lazy[0]!r} is lazy and has no shape yet; run the network once on data"
            )
        _check_devices(model, where(i))
        held = [name for name, p in model.named_parameters() if not p.requires_grad]
        if held and frozen == "error":
            raise ValueError(
                f"{where(i)}frozen parameters (requires_grad=False): {', '.join(held)}; pass frozen='keep' "
                "to leave them as they are, or unfreeze them with requires_grad_(True)"
            )
        _check_memory(
            [(f"parameter {name!r}", p) for name, p in model.named_parameters(remove_duplicate=False)],
            where(i),
        )
    if inplace and len(models) > 1:
        _check_memory(
            [
                (f"models[{i}]'s {name!r}", p)
                for i, model in enumerate(models)
                for name, p in model.named_parameters(remove_duplicate=False)
            ],
            "inplace: ",
        )


def _check_devices(model: nn.Module, where: str) -> None:
    places = {name: t.device for name, t in [*model.named_parameters(), *model.named_buffers()]}
    if len(set(places.values())) > 1:
        first = next(iter(places))
        other = next(name for name in places if places[name] != places[first])
        raise ValueError(
            f"{where}mixed devices: {first!r} is on {places[first]} and {other!r} on {places[other]}; move "
            "the whole network to one device with model.to(device)"
        )
    if places and next(iter(places.values())).type == "meta":
        raise ValueError(
            f"{where}the network is on the meta device and has no values; load its weights first"
        )


def _check_memory(named: list[tuple[str, nn.Parameter]], where: str) -> None:
    """Raise if two of the parameters are one, or lie in the same memory."""
    spans = []
    for name, p in named:
        if p.numel() and p.layout == torch.strided:
            strides = [(size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True)]
            spans.append(
                (str(p.device), p.data_ptr(), p.data_ptr() + (sum(strides) + 1) * p.element_size(), name)
            )
            if any(size > 1 and stride == 0 for size, stride in zip(p.shape, p.stride(), strict=True)):
                raise ValueError(f"{where}{name} is an expanded tensor: its values share memory; clone it")
    spans.sort()
    for (device, _, end, name), (other_device, start, _, other) in pairwise(spans):
        if device == other_device and start < end:
            raise ValueError(
                f"{where}{name} and {other} are tied (one tensor, or the same memory), so they cannot get "
                "values of their own; give each its own tensor"
            )


def check_finite(params: Params, names: Callable[[int, str], str], advice: str) -> None:
    """Check stacked params for NaN and infinities.

    Args:
        params: Tensors [B, ...].
        names: Text for network b and a parameter's name, to begin the message with.
        advice: How the message ends.

    Raises:
        ValueError: The first network and parameter that are not finite.
    """
    # One reduction per parameter; where it failed is looked up only then.
    good = [value.isfinite().all() for value in params.values()]
    if not good or bool(torch.stack(good).all()):
        return
    for name, value in params.items():
        bad = (~value.isfinite()).flatten(1).sum(1)
        if bool(bad.any()):
            b = int(bad.nonzero()[0])
            raise ValueError(
                f"{names(b, name)} has {int(bad[b])} NaN or infinite values of {value[b].numel()}; {advice}"
            )


def l1_strengths(l1: float | Sequence[float] | Tensor | None, count: int, *, read: bool) -> Tensor | None:
    """L1 strength per network.

    Args:
        l1: One for all networks, or one per network; None is 0.
        count: Number of networks B.
        read: Whether the metanet reads it.

    Returns:
        float64 [B] on the CPU, or None if it is not read.

    Raises:
        ValueError: Given but not read, not one or B values, negative or not finite.
    """
    if not read:
        if l1 is not None:
            raise ValueError(
                "l1: this checkpoint does not read an L1 strength; leave l1 out, or use one trained with it"
            )
        return None
    try:
        values = torch.as_tensor(0.0 if l1 is None else l1, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"l1: got {l1!r}, expected a number or one per network") from error
    if values.ndim > 1 or (values.ndim == 1 and len(values) != count):
        raise ValueError(
            f"l1: got shape {tuple(values.shape)}, expected a number or {count}, one per network"
        )
    if not bool((values.isfinite() & (values >= 0)).all()):
        raise ValueError(f"l1: got {values.tolist()}, expected finite strengths >= 0")
    return values.expand(count)


def warn_outside(strengths: Tensor | None, trained: L1Range | None) -> None:
    """Warn of L1 strengths [B] that the metanet was not trained for, if that is known."""
    if strengths is None or trained is None:
        return
    outside = strengths[trained.outside(strengths)].unique().tolist()
    if outside:
        listed = ", ".join(f"{value:g}" for value in outside[:5]) + (", ..." if len(outside) > 5 else "")
        warnings.warn(
            f"l1: got {listed}, but this checkpoint was trained for {trained}; results are not measured "
            "outside of it, check them (accept= does)",
            OutOfRangeWarning,
            stacklevel=3,
        )


def check_batch(batch: object, *, read: bool) -> tuple[Tensor, Tensor] | None:
    """Check that data for gradients are given if and only if they are read.

    Args:
        batch: Inputs [N, ...] and labels [N], or None.
        read: Whether the metanet reads gradients.

    Returns:
        The pair.

    Raises:
        ValueError: Missing, given but not read, or no such pair.
    """
    if batch is None:
        if read:
            raise ValueError(
                "batch: this checkpoint reads gradients; pass batch=(x, y) with data of its problem"
            )
        return None
    if not read:
        raise ValueError("batch: this checkpoint reads weights alone; leave batch out")
    if not isinstance(batch, tuple | list) or [isinstance(part, Tensor) for part in batch] != [True, True]:
        raise ValueError(f"batch: got {type(batch).__name__}, expected a pair of tensors (x, y)")
    x, y = batch
    if x.ndim == 0 or y.ndim != 1 or len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"batch: got x {tuple(x.shape)} and y {tuple(y.shape)}, expected N > 0 inputs [N, ...] and N "
            "labels [N]"
        )
    return x, y


def check_examples(x: Tensor, y: Tensor, shape: tuple[int, ...] | None, objective: Objective) -> None:
    """Check examples against a problem.

    Args:
        x: Inputs [N, ...].
        y: Targets [N, ...].
        shape: Shape of one input; None if it is not known.
        objective: What the targets are for.

    Raises:
        ValueError: Inputs of another shape or not finite, targets that the objective cannot read.
    """
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        expected = ", ".join(["N", *map(str, shape)])
        raise ValueError(
            f"batch: got x of shape {list(x.shape)}, expected [{expected}] as the networks take it; pass "
            "example_input if these networks take another form"
        )
    if x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"batch: got x of {x.dtype}, expected floating-point inputs")
    if x.is_floating_point() and (bad := int((~x.isfinite()).sum())):
        raise ValueError(
            f"batch: x has {bad} NaN or infinite values of {x.numel()}; leave those examples out"
        )
    objective.check_targets(y, "batch")


def check_accept(accept: object) -> None:
    """Raise a ``ValueError`` unless ``accept`` is a callable, or None."""
    if accept is not None and not callable(accept):
        raise ValueError(f"accept: got {accept!r}, expected a callable that takes a model and returns a loss")


def as_loss(value: Any, where: str) -> float:
    """What ``accept`` returned, as a number.

    Raises:
        ValueError: It is none.
    """
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{where}accept returned {type(value).__name__}, expected one number such as a validation loss"
        ) from error


def is_lower(new: float, old: float) -> bool:
    """Whether ``new`` counts as an improvement; NaN never does."""
    return not math.isnan(new) and new < old
