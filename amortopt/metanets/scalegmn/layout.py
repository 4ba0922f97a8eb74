"""Params as a graph: one node set per neuron group, one dense block of edges per weight between two sets.

Legend: B networks, n units of a set, o / i units of the written / read set, k fixed positions of a block
(kernel positions, flattened positions; 1 for a plain matrix).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.metanets.scalegmn.units import NodeSet, Respects, SetTable, strides
from amortopt.symmetry import SymmetrySpec
from amortopt.symmetry.blocks import BlockView


@dataclass(frozen=True)
class Scale:
    """How a positive factor acts on a set's units: unit (b, n, r) by q_n to the exponent.

    Attributes:
        factor: Name of the factor.
        exponent: Not zero.
        before: Number of b.
        repeat: Number of r.
    """

    factor: str
    exponent: int
    before: int
    repeat: int


@dataclass(frozen=True)
class End:
    """One side of a block: the set of its units, the block's axes along them, what rescales them."""

    node: int
    axes: tuple[int, ...]
    scales: tuple[Scale, ...]


@dataclass(frozen=True)
class GraphBlock:
    """A block of a parameter as features of the graph, with the fixed positions k as channels.

    Attributes:
        view: The block.
        ends: The set whose node features it is, [B, k, n]; or the sets that it writes to and reads from,
            being features of the edges between them, [B, k, o, i].
        channels: Number of fixed positions k.
    """

    view: BlockView
    ends: tuple[End, ...]
    channels: int

    @property
    def node(self) -> int:
        """The set of a block of node features."""
        return self.ends[0].node

    @property
    def out(self) -> int:
        """The set that edges write to."""
        return self.ends[0].node

    @property
    def into(self) -> int:
        """The set that edges read."""
        return self.ends[1].node

    @property
    def scales(self) -> tuple[tuple[int, Scale], ...]:
        """What rescales the features, with the dimension along which it does."""
        return tuple((2 + k, scale) for k, end in enumerate(self.ends) for scale in end.scales)

    @property
    def _unit_axes(self) -> list[int]:
        return [axis for end in self.ends for axis in end.axes]

    def units(self, params: Params) -> list[int]:
        """Units at each end in networks [B, ...]."""
        sizes = self.view.sizes(params[self.view.block.param])
        return [math.prod(sizes[axis] for axis in end.axes) for end in self.ends]

    def read(self, params: Params) -> Tensor:
        """Features [B, k, n] or [B, k, o, i]."""
        value = self.view.read(params[self.view.block.param])
        axes = self._unit_axes
        value = value.movedim([1 + axis for axis in axes], list(range(-len(axes), 0)))
        return value.reshape(len(value), self.channels, *self.units(params))

    def write(self, value: Tensor, params: Params, written: Tensor | None) -> Tensor:
        """The parameter with features written, in addition to other blocks of it that are ``written``."""
        old = params[self.view.block.param]
        sizes, axes = self.view.sizes(old), self._unit_axes
        fixed = [size for axis, size in enumerate(sizes) if axis not in axes]
        value = value.reshape(len(value), *fixed, *[sizes[axis] for axis in axes])
        value = value.movedim(list(range(-len(axes), 0)), [1 + axis for axis in axes])
        return self.view.write(value, old, written)


@dataclass(frozen=True)
class GraphLayout:
    """How the params of a spec become a graph. Holds no tensors.

    Attributes:
        nodes: One node set per neuron group, in the spec's order, without groups that only rescale another
            group's units by q > 0; then the sets derived from them (see units.py).
        positive: What may be rescaled by q > 0, in the spec's order: name of the group -> set that has its
            units.
        node_blocks: Blocks that are node features.
        edge_blocks: Blocks that are edges, in execution order.
        fixed: Names of parameters that no node or edge can carry, in whole or in some slice (no group axis at
            all); metanets leave that as it is.
    """

    nodes: tuple[NodeSet, ...]
    positive: dict[str, int]
    node_blocks: tuple[GraphBlock, ...]
    edge_blocks: tuple[GraphBlock, ...]
    fixed: tuple[str, ...]

    @classmethod
    def from_spec(cls, spec: SymmetrySpec, respects: Respects = "scale") -> GraphLayout:
        """Lay out a spec's params, without buffers; ``"permutation"`` as if nothing could be rescaled."""
        sets = SetTable(spec, respects)
        views = [BlockView.of(spec, block) for block in spec.blocks if not block.buffer]
        pairs = {_groups(view, side) for view in views for side in _sides(spec, view) if len(side) > 1}
        blocks: list[GraphBlock] = []
        fixed: dict[str, None] = {}
        for view in views:
            ends = []
            for side in _sides(spec, view, pairs):
                axes = [view.axes[position] for position in side]
                scales = tuple(
                    Scale(name, exponent, before, after * axis.size // spec.group(name).size)
                    for axis, (before, after) in zip(axes, strides(axes), strict=True)
                    for name, exponent in axis.scales
                    if name in sets.positive
                )
                ends.append(End(sets.of_axes(axes), tuple(side), scales))
            if ends:
                channels = math.prod(axis.size for axis in view.axes if axis.group is None)
                blocks.append(GraphBlock(view, tuple(ends), channels))
            else:
                fixed[view.block.param] = None
        used = {end.node for block in blocks for end in block.ends}
        return cls(
            sets.sided(used),
            {name: sets.of_group(spec.units_of(name)) for name in sets.positive},
            tuple(block for block in blocks if len(block.ends) == 1),
            tuple(block for block in blocks if len(block.ends) == 2),
            tuple(fixed),
        )

    @property
    def blocks(self) -> tuple[GraphBlock, ...]:
        """Blocks of node features, then those of edges."""
        return (*self.node_blocks, *self.edge_blocks)

    def sizes(self, params: Params) -> tuple[int, ...]:
        """Units of every node set in networks [B, ...], read from the shapes of their params.

        Raises:
            ValueError: A name is missing, two params disagree about a group, or a group has another number of
                units than in the family although these are known by their index.
        """
        sizes: dict[int, int] = {}
        batch: torch.Size | None = None
        for block in self.blocks:
            name = block.view.block.param
            if name not in params:
                raise ValueError(
                    f"params: got {list(params)}, expected {name!r} among them; rename them to the "
                    "family's names"
                )
            lead = params[name].shape[:1]
            if batch not in (None, lead):
                raise ValueError(
                    f"params: {name!r} has {[*lead]} networks along its first axis, expected {[*batch]}; "
                    "give tensors [B, ...] for every name"
                )
            batch = lead
            for end, count in zip(block.ends, block.units(params), strict=True):
                if sizes.setdefault(end.node, count) != count:
                    raise ValueError(
                        f"params: {block.view.block.label!r} has {count} units of group "
                        f"{self.nodes[end.node].group!r}, expected {sizes[end.node]} as in the params before "
                        "it; give the params of one network architecture"
                    )
        shared = {part.node for node in self.nodes for part in node.parts}
        for p, node in enumerate(self.nodes):
            fixed = node.parts or p in shared or not node.permutable
            if sizes.setdefault(p, node.size) != node.size and fixed:
                why = "other groups or blocks are about the same units"
                if not node.permutable:
                    why = "its units are known by their index"
                raise ValueError(
                    f"params: got {sizes[p]} units in group {node.group!r}, expected {node.size}; {why}, "
                    "so their number cannot change"
                )
        return tuple(sizes[p] for p in range(len(self.nodes)))

    def write(self, params: Params, features: Sequence[Tensor]) -> Params:
        """New params, in the order of ``params``, from the features of all blocks; the inverse of reading.

        Args:
            params: The networks that the graph was read from: shapes, and the params that stay as they are.
            features: For every block.
        """
        written: Params = {}
        for block, value in zip(self.blocks, features, strict=True):
            name = block.view.block.param
            written[name] = block.write(value, params, written.get(name))
        return {name: written.get(name, old) for name, old in params.items()}


def _sides(
    spec: SymmetrySpec, view: BlockView, pairs: Collection[tuple[str | None, ...]] = ()
) -> list[list[int]]:
    """Positions of the axes with a group: what is written and what is read, or all if that is one thing.

    Pairs of groups in ``pairs`` are one thing: other blocks write to, or read, units of both together.
    """
    order = [group.name for group in spec.groups]
    groups = [position for position, axis in enumerate(view.axes) if axis.group is not None]
    groups.sort(key=lambda position: order.index(view.axes[position].group or ""))
    power = {p: sum(exponent for _, exponent in view.axes[p].scales) for p in groups}
    # Units of an owner that a run axis is along are written or read with that axis.
    power |= {run.along: power[run.axis] for run in view.runs if not run.merged and not power[run.along]}
    if len(groups) < 2:
        return [groups] if groups else []
    if len(groups) == 2:
        if _groups(view, groups) in pairs and power[groups[0]] * power[groups[1]] >= 0:
            return [groups]
        # The axis that writes more is the output; axes that do not differ keep their order.
        groups.sort(key=lambda position: (-power[position], position))
        return [groups[:1], groups[1:]]
    into = [position for position in groups if power[position] < 0] or groups[-1:]
    out = [position for position in groups if position not in into] or into[:1]
    return [out, [position for position in into if position not in out]]


def _groups(view: BlockView, side: Sequence[int]) -> tuple[str | None, ...]:
    return tuple(view.axes[position].group for position in side)
