"""Which of a user's parameters is which of the family's; networks that differ in nothing are traced once."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amortopt.symmetry import (
    FamilyMismatchError,
    Match,
    SymmetrySpec,
    UnknownOperationWarning,
    extract,
    match,
)

_VALUES = (bool, int, str, bytes, complex, type(None), torch.dtype, torch.device, torch.Size)


class OutOfFamilyWarning(UserWarning):
    """A network has other hidden widths than the checkpoint was trained on; nothing is promised there."""


def warn_widths(changes: set[str]) -> None:
    """Warn of groups whose number of units is not the family's, given as texts; for callers one level up."""
    if changes:
        warnings.warn(
            f"other hidden widths than the checkpoint was trained on: {'; '.join(sorted(changes))}; results "
            "are not measured there, check them (accept= does)",
            OutOfFamilyWarning,
            stacklevel=3,
        )


def match_all(
    family: SymmetrySpec,
    models: Sequence[nn.Module],
    example_inputs: Callable[[nn.Module], Tensor | tuple[Tensor, ...]],
    where: Callable[[int], str],
) -> list[Match]:
    """Trace networks and match each to the family.

    Tracing costs some 25 ms, more than the optimizer itself. So networks with equal fingerprints (see
    :func:`fingerprint`) share one trace; the others are traced each.

    Args:
        family: Spec that the metanet is for.
        models: The networks; not modified.
        example_inputs: What a network's forward takes, for tracing.
        where: Text that names network i in an error, in front of the message.

    Returns:
        One match per network; networks that share a trace share the object.

    Raises:
        FamilyMismatchError: A network is outside the family, with the first difference.
        ValueError: A network cannot be traced.
    """
    known: dict[Hashable, Match] = {}
    matches = []
    for i, model in enumerate(models):
        key = fingerprint(model)
        if key not in known:
            try:
                known[key] = match(family, _spec_of(model, example_inputs(model)))
            except FamilyMismatchError as error:
                raise FamilyMismatchError(f"{where(i)}{error}") from error
            except ValueError as error:
                raise ValueError(f"{where(i)}{error}") from error
        matches.append(known[key])
    return matches


def _spec_of(model: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> SymmetrySpec:
    """Trace one network without noise: what matters is in the error."""
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        model = copy.deepcopy(model)  # into ordinary tensors: torch.export takes no others
    with warnings.catch_warnings():
        # What has no rule and matters makes the match fail, with the operation's name.
        warnings.simplefilter("ignore", UnknownOperationWarning)
        return extract(model, inputs)


def fingerprint(model: nn.Module) -> Hashable:
    """All that decides what a network computes, apart from the values of parameters and buffers.

    Two networks with equal fingerprints have the same class (the object, not its name), and equal attributes
    in all submodules, however deep: numbers, text, containers by value; functions, plain tensors and any
    other object only if it is the very same one. What tells networks apart elsewhere, such as a global table
    with the networks as keys, is not seen. Only valid while the network lives and is not modified.

    Args:
        model: Any module; not modified.

    Returns:
        A nested tuple.
    """
    return _fingerprint(model, {})


def _fingerprint(value: Any, seen: dict[int, int]) -> Hashable:
    kind: Any = type(value)
    if kind in _VALUES:
        return kind, value
    if kind is float:
        return float, value.hex()
    if id(value) in seen:
        return "again", seen[id(value)]
    seen[id(value)] = len(seen)
    if issubclass(kind, nn.Module) and not _has_slots(value):
        return kind, tuple((key, _attribute(key, item, seen)) for key, item in vars(value).items())
    if kind in (list, tuple):
        return kind, tuple(_fingerprint(item, seen) for item in value)
    if kind in (set, frozenset):
        return kind, frozenset(_fingerprint(item, {}) for item in value)
    if kind in (dict, OrderedDict):
        pairs = ((_fingerprint(key, seen), _fingerprint(item, seen)) for key, item in value.items())
        return kind, tuple(pairs)
    return "the very same", id(value)


def _attribute(key: str, value: Any, seen: dict[int, int]) -> Hashable:
    if key not in ("_parameters", "_buffers"):
        return _fingerprint(value, seen)
    return tuple(
        (name, None if t is None else (type(t), t.shape, t.dtype, t.device)) for name, t in value.items()
    )


def _has_slots(module: nn.Module) -> bool:
    """Whether instances may keep attributes outside of ``vars``."""
    return any(vars(base).get("__slots__") for base in type(module).__mro__)
