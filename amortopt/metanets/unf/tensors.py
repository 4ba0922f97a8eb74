"""The params of base networks as tensors with a group id per axis, as UNF layers read them.

Legend: B networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.metanets.unf.basis import Spec
from amortopt.symmetry import Block, SymmetrySpec
from amortopt.symmetry.blocks import join, read


class WeightTensors:
    """Params to tensors and back, one tensor per block of a spec.

    Axes of one group have one id. A fixed axis has an id that no other has, which makes it a set; fixed axes
    of size 1 are dropped. Units that move with an owner count as units of one set: that asks for more
    symmetry than there is, so what is equivariant to it is equivariant.

    Args:
        spec: Symmetry of the base networks.

    Attributes:
        blocks: Block of every tensor.
        specs: Group id of every axis of every tensor.
        runs: (tensor, axis) -> the axis that says whose run of units it is along. Such an axis may only be
            kept together with that one, as the runs of different owners are permuted differently.
    """

    def __init__(self, spec: SymmetrySpec) -> None:
        self.blocks = tuple(block for name in spec.params for block in spec.blocks_of(name))
        self.specs: tuple[Spec, ...] = ()
        self.runs: dict[tuple[int, int], int] = {}
        ids: dict[str, int] = {}
        for number, block in enumerate(self.blocks):
            axes = _kept_axes(block)
            keys = []
            for position, k in enumerate(axes):
                along, key = spec.owner_axis(block, k), f"\0{block.label}\0{k}"
                if along is not None:
                    self.runs[number, position] = axes.index(along)
                elif (group := block.axes[k].group) is not None:
                    units = spec.units_of(group)
                    key = units if spec.group(units).size == block.axes[k].size else key
                keys.append(key)
            self.specs += (tuple(ids.setdefault(key, len(ids)) for key in keys),)

    def read(self, *params: Params) -> list[Tensor]:
        """Tensors with one channel for each of several params: weights, gradients.

        Args:
            *params: Qualified name -> [B, *shape]; widths of whole parameters may differ from the spec's.

        Returns:
            Per block [B, *axes, len(params)].

        Raises:
            ValueError: A parameter is missing, or has another number of axes than the block.
        """
        tensors = []
        for block in self.blocks:
            channels = []
            for each in params:
                if (value := each.get(block.param)) is None:
                    raise ValueError(
                        f"params: got {', '.join(each) or 'none'}, expected also {block.param!r}; give all "
                        "parameters of the spec"
                    )
                if block.slices:
                    value = read(value, block)
                elif value.ndim != 1 + len(block.axes):
                    if math.prod(value.shape[1:]) != math.prod(block.shape):
                        raise ValueError(
                            f"params: got shape {tuple(value.shape)} for {block.param!r}, expected networks "
                            f"first and then {block.shape}; stack networks along a new first axis"
                        )
                    value = value.reshape(len(value), *block.shape)
                channels.append(value.reshape(len(value), *(value.shape[1 + k] for k in _kept_axes(block))))
            tensors.append(torch.stack(channels, dim=-1))
        return tensors

    def write(self, tensors: Sequence[Tensor], like: Params) -> Params:
        """The inverse of ``read`` for one channel; differentiable.

        Args:
            tensors: Per block [B, *axes].
            like: Params of the shapes to return. Those that the spec lacks are returned as they are.

        Returns:
            Qualified name -> [B, *shape].
        """
        by_name: dict[str, list[tuple[Block, Tensor]]] = {}
        for block, tensor in zip(self.blocks, tensors, strict=True):
            by_name.setdefault(block.param, []).append((block, tensor))
        written = {
            name: join([block for block, _ in many], [tensor for _, tensor in many], like[name].shape[1:])
            for name, many in by_name.items()
        }
        return {name: written.get(name, value) for name, value in like.items()}


class FoldedTensors:
    """Params to few tensors: one for all blocks that lie along the same groups of units.

    Axes along units are tensor axes, in the order of the groups' ids; all other axes (fixed ones, and units
    that are known by their index) are folded into channels. Blocks with runs of units stay by themselves.

    Args:
        spec: Symmetry of the base networks.

    Attributes:
        blocks: The spec's blocks, as `WeightTensors` has them.
        specs: Group id of every axis of every tensor.
        channels: Channels of every tensor.
        runs: As those of `WeightTensors`, for these tensors.
    """

    def __init__(self, spec: SymmetrySpec) -> None:
        self._tensors = WeightTensors(spec)
        self.blocks = self._tensors.blocks
        groups: dict[int, str] = {}
        moved: dict[tuple[int, int], bool] = {}
        for number, (block, ids) in enumerate(zip(self.blocks, self._tensors.specs, strict=True)):
            for place, (k, one) in enumerate(zip(_kept_axes(block), ids, strict=True)):
                name = block.axes[k].group
                moved[number, place] = name is not None and any(
                    spec.group(owner).permutable for owner in spec.owners(name)
                )
                if name is not None and spec.owner_axis(block, k) is None:
                    groups.setdefault(one, spec.units_of(name))
        # Tensor -> its blocks, each with the places of its axes along units.
        self._parts: list[list[tuple[int, list[int]]]] = []
        self.specs: tuple[Spec, ...] = ()
        self.runs: dict[tuple[int, int], int] = {}
        self._groups: list[list[str | None]] = []
        found: dict[Spec, int] = {}
        for number, ids in enumerate(self._tensors.specs):
            places = [place for place in range(len(ids)) if moved[number, place]]
            own_runs = {place: along for (n, place), along in self._tensors.runs.items() if n == number}
            own_runs = {p: a for p, a in own_runs.items() if p in places}
            if not own_runs:
                places.sort(key=lambda place: ids[place])
            key = tuple(ids[place] for place in places)
            if own_runs or key not in found:
                if not own_runs:
                    found[key] = len(self.specs)
                for place, along in own_runs.items():
                    self.runs[len(self.specs), places.index(place)] = places.index(along)
                self.specs += (key,)
                self._parts.append([])
                self._groups.append([groups.get(one) for one in key])
            tensor = len(self.specs) - 1 if own_runs else found[key]
            self._parts[tensor].append((number, places))
        self.channels = [
            sum(
                math.prod(
                    block.axes[k].size for place, k in enumerate(_kept_axes(block)) if place not in places
                )
                for block, places in ((self.blocks[number], places) for number, places in parts)
            )
            for parts in self._parts
        ]

    def along(self, spec: SymmetrySpec, group: str) -> int:
        """The tensor with one axis, along the units of a group.

        Raises:
            ValueError: No block is along these units alone.
        """
        wanted: list[str | None] = [spec.units_of(group)]
        if wanted not in self._groups:
            raise ValueError(
                f"head.units: no parameter of the networks is along group {group!r} alone, such as a bias; "
                "expected a group of which there is one"
            )
        return self._groups.index(wanted)

    def read_blocks(self, params: Params) -> list[Tensor]:
        """Per block [B, *axes], as `WeightTensors.read` returns them without channels."""
        return [x[..., 0] for x in self._tensors.read(params)]

    def fold(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """Per block [B, *axes] -> per tensor [B, *units, channels]."""
        folded = []
        for parts in self._parts:
            values = []
            for number, places in parts:
                x = blocks[number].movedim([1 + p for p in places], list(range(1, len(places) + 1)))
                values.append(x.reshape(*x.shape[: len(places) + 1], -1))
            folded.append(torch.cat(values, dim=-1))
        return folded


def _kept_axes(block: Block) -> list[int]:
    return [k for k, axis in enumerate(block.axes) if axis.group is not None or axis.size > 1]
