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


def _kept_axes(block: Block) -> list[int]:
    return [k for k, axis in enumerate(block.axes) if axis.group is not None or axis.size > 1]
