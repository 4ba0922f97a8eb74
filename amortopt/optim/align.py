"""Which entry of a params dict is which parameter of the family, and whether it has a network axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from amortopt._types import Params
from amortopt.symmetry import Block, SymmetrySpec


@dataclass(frozen=True)
class Alignment:
    """How a params dict corresponds to a family.

    Attributes:
        names: The family's parameter name -> the dict's key.
        batched: Whether tensors have a leading network axis.
        width_changes: A line for every hidden group whose number of units differs; empty if none does.
    """

    names: dict[str, str]
    batched: bool
    width_changes: tuple[str, ...]


def align(family: SymmetrySpec, params: Params) -> Alignment:
    """Match params to a family by name, or by order if the names are others.

    Args:
        family: Spec that the metanet is for.
        params: The family's names, or others in the same order, -> tensors; all with a leading network
            axis or none.

    Returns:
        The correspondence.

    Raises:
        ValueError: Not a dict of floating-point tensors on one device, another number of parameters, shapes
            that are not the family's (hidden widths aside), or network axes that differ.
    """
    _check_tensors(params)
    if len(params) != len(family.params):
        raise ValueError(
            f"params: got {len(params)} tensors ({', '.join(params)}), expected {len(family.params)} "
            f"({', '.join(family.params)})"
        )
    same = params.keys() == set(family.params)
    keys = list(family.params) if same else list(params)
    names = dict(zip(family.params, keys, strict=True))
    failures: list[ValueError] = []
    for lead in (0, 1):
        try:
            sizes = _group_sizes(family, {name: params[key] for name, key in names.items()}, names, lead)
        except ValueError as error:
            failures.append(error)
            continue
        changes = tuple(
            f"group {group.name!r} ({group.origin}) has {sizes[group.name]} units, the family {group.size}"
            for group in family.groups
            if sizes.get(group.name, group.size) != group.size
        )
        return Alignment(names, bool(lead), changes)
    # A network axis was meant where every tensor has one axis more.
    first = family.params[0]
    axes = len(family.blocks_of(first)[0].axes)
    raise failures[1 if params[names[first]].ndim > axes else 0]


def _check_tensors(params: Params) -> None:
    if not isinstance(params, Mapping) or not params:
        raise ValueError(f"params: got {type(params).__name__}, expected a dict of name -> tensor, not empty")
    for key, value in params.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"params[{key!r}]: got {got}, expected a floating-point tensor")
    places = {key: value.device for key, value in params.items()}
    if len(set(places.values())) > 1:
        first = next(iter(places))
        other = next(key for key in places if places[key] != places[first])
        raise ValueError(
            f"params: mixed devices: {first!r} is on {places[first]} and {other!r} on {places[other]}; move "
            "all to one"
        )
    if next(iter(places.values())).type == "meta":
        raise ValueError("params: the tensors are on the meta device and have no values; load them first")


def _group_sizes(family: SymmetrySpec, params: Params, names: dict[str, str], lead: int) -> dict[str, int]:
    """Units per group as the shapes say them; raises where they contradict each other or the family."""
    if lead:
        lengths = {names[name]: value.shape[0] if value.ndim else 0 for name, value in params.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"params: got network axes {lengths}, expected one length B >= 1 for all")
    # Units that are owned come in runs of the family's length.
    sizes = {g.name: g.size for g in family.groups if not g.permutable or g.within is not None}
    flattened: list[Block] = []
    for block in family.blocks:
        if block.slices or block.buffer:
            continue  # a slice's own sizes do not show in the parameter's shape
        shape = params[block.param].shape[lead:]
        if len(shape) != len(block.axes):
            flattened.append(block)
            continue
        expected = _lengths(family, block, sizes)  # from other tensors, not what this one says of itself
        for group, size in zip(_whole(family, block), shape, strict=True):
            if group is not None:
                sizes.setdefault(group, size)
        if list(shape) != _lengths(family, block, sizes):
            raise _misfit(names[block.param], params[block.param], block, expected, lead)
    for block in flattened:
        shape = list(params[block.param].shape[lead:])
        lengths = _lengths(family, block, sizes)
        if not shape or not _merges(lengths, shape):
            raise _misfit(names[block.param], params[block.param], block, lengths, lead)
    return sizes


def _whole(family: SymmetrySpec, block: Block) -> list[str | None]:
    """The group along every axis of a block; None where the length is fixed, as that of one run is."""
    return [
        None if family.owner_axis(block, place) is not None else axis.group
        for place, axis in enumerate(block.axes)
    ]


def _lengths(family: SymmetrySpec, block: Block, sizes: dict[str, int]) -> list[int]:
    groups = zip(block.axes, _whole(family, block), strict=True)
    return [axis.size if group is None else sizes.get(group, axis.size) for axis, group in groups]


def _merges(lengths: list[int], shape: list[int]) -> bool:
    """Whether ``shape`` is ``lengths`` with neighbours multiplied."""
    product, rest = 1, list(shape)
    for length in lengths:
        product *= length
        if rest and product == rest[0]:
            product = 1
            rest.pop(0)
    return not rest and product == 1


def _misfit(key: str, tensor: Tensor, block: Block, lengths: list[int], lead: int) -> ValueError:
    axes = ", ".join(map(str, (["B", *lengths] if lead else lengths)))
    return ValueError(
        f"params[{key!r}]: got shape {list(tensor.shape)}, expected [{axes}] as the family's {block.param!r} "
        f"({', '.join(map(str, block.axes))}); tensors are taken by the family's names, or else in its order"
    )
