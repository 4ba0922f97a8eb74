"""The params of base networks as tensors with a group id per axis, as UNF layers want them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.metanets.unf.basis import Spec
from amortopt.symmetry import Block, SymmetrySpec


class WeightTensors:
    """Params to tensors and back, one tensor per block of a spec.

    Axes of one group have one id, a fixed axis has an id of its own, which makes it a set; axes of size 1
    that
    are fixed are dropped. Units that move with an owner count as units of one set: that asks for more
    symmetry than
    there is, so what is equivariant to it is equivariant.

    Args:
        spec: Symmetry of the base networks.

    Attributes:
        specs: Group id of every axis of every tensor.
        runs: (tensor, axis) -> the axis that says whose run of units it is along; such an axis may only be
        kept
            together with that one, as the runs of different owners are permuted differently.
        labels: A name for every tensor.
    """

    def __init__(self, spec: SymmetrySpec) -> None:
        self.spec = spec
        self.blocks = tuple(block for name in spec.params for block in spec.blocks_of(name))
        self.labels = tuple(block.label for block in self.blocks)
        self._ids: dict[str, int] = {}
        self.specs: tuple[Spec, ...] = ()
        self.runs: dict[tuple[int, int], int] = {}
        for number, block in enumerate(self.blocks):
            axes = self._axes(block)
            self.specs += (tuple(self._id(block, axis) for axis in axes),)
            for position, axis in enumerate(axes):
                along = spec.owner_axis(block, axis)
                if along is not None:
                    self.runs[number, position] = axes.index(along)

    @staticmethod
    def _axes(block: Block) -> list[int]:
        return [k for k, axis in enumerate(block.axes) if axis.group is not None or axis.size > 1]

    def _id(self, block: Block, position: int) -> int:
        axis = block.axes[position]
        own = f"\0{block.label}\0{position}"
        if axis.group is None or self.spec.owner_axis(block, position) is not None:
            return self._ids.setdefault(own, len(self._ids))
        name = axis.group
        while self.spec.group(name).within is not None and self.spec.run(name) == 1:
            name = self.spec.owners(name)[1]  # a further scaling of the owner's own units
        whole = self.spec.group(name).size == axis.size
        return self._ids.setdefault(name if whole else own, len(self._ids))

    def read(self, *params: Params) -> list[Tensor]:
        """Tensors with one channel for each of several params: weights, gradients.

        Args:
            *params: Qualified name -> [B, *shape]; widths of whole parameters may differ from the spec's.

        Returns:
            Per block [B, *axes, len(params)].

        Raises:
            ValueError: A parameter is missing, or has another number of axes than the block.
        """
        return [torch.stack([self._read(block, each) for each in params], dim=-1) for block in self.blocks]

    def _read(self, block: Block, params: Params) -> Tensor:
        value = params.get(block.param)
        if value is None:
            raise ValueError(
                f"params: got {', '.join(params) or 'none'}, expected also {block.param!r}; give all "
                f"parameters of the spec"
            )
        if block.view or block.slices:
            value = self._sliced(block, value).reshape(value.shape[0], *block.shape)
        if value.ndim != 1 + len(block.axes):
            if math.prod(value.shape[1:]) != math.prod(block.shape):
                raise ValueError(
                    f"params: got shape {tuple(value.shape)} for {block.param!r}, expected networks first "
                    f"and then "
                    f"{block.shape}; stack networks along a new first axis"
                )
            value = value.reshape(value.shape[0], *block.shape)
        axes = self._axes(block)
        return value.reshape(value.shape[0], *(value.shape[1 + axis] for axis in axes))

    @staticmethod
    def _sliced(block: Block, value: Tensor) -> Tensor:
        """The part of [B, *shape] that a block is, a view where possible."""
        if block.view:
            value = value.view(value.shape[0], *block.view)
        return value[(slice(None), *block.index)]

    def write(self, tensors: Sequence[Tensor], like: Params) -> Params:
        """The inverse of :meth:`read` for one channel.

        Args:
            tensors: Per block [B, *axes].
            like: Params of the shapes to return, without gaps: every element is in a block.

        Returns:
            Qualified name -> [B, *shape].
        """
        found: Params = {}
        for block, tensor in zip(self.blocks, tensors, strict=True):
            shape = like[block.param].shape
            if not block.view and not block.slices:
                found[block.param] = tensor.reshape(shape)
                continue
            if block.param not in found:
                found[block.param] = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
            part = self._sliced(block, found[block.param])
            part.copy_(tensor.reshape(part.shape))
        return {name: found.get(name, value) for name, value in like.items()}
