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
from amortopt.metanets.scalegmn.graph.blocks import EdgeBlock, End, Factor, Item, NodeBlock, Scale
from amortopt.metanets.scalegmn.graph.factors import Told, joined, tellers
from amortopt.metanets.scalegmn.graph.sets import NodeSet, SetTable, Symmetry, strides
from amortopt.symmetry import SymmetrySpec
from amortopt.symmetry.blocks import BlockView


@dataclass(frozen=True)
class GraphLayout:
    """How the params of a spec become a graph. Holds no tensors.

    Attributes:
        nodes: One node set per neuron group, in the spec's order, without groups that only rescale another
            group's units by q > 0; then the sets derived from them (see sets.py).
        factors: What may be rescaled by q > 0, in the spec's order.
        told: Which blocks tell the factors of a network, in the order in which they can be found.
        node_blocks: Parameters that are node features.
        edge_blocks: Parameters that are edges, in execution order.
        fixed: Names of parameters that no node or edge can carry, in whole or in some slice (no group axis at
            all); metanets leave that as it is.
    """

    nodes: tuple[NodeSet, ...]
    factors: tuple[Factor, ...]
    told: tuple[Told, ...]
    node_blocks: tuple[NodeBlock, ...]
    edge_blocks: tuple[EdgeBlock, ...]
    fixed: tuple[str, ...]

    @classmethod
    def from_spec(cls, spec: SymmetrySpec, symmetry: Symmetry = "scale") -> GraphLayout:
        """Lay out a spec's params. Buffers are left out.

        Args:
            spec: Symmetry of the base networks.
            symmetry: ``"permutation"`` treats every group as if nothing could be rescaled.

        Returns:
            The layout.
        """
        sets = SetTable(spec, symmetry)
        views = [BlockView.of(spec, block) for block in spec.blocks if not block.buffer]
        pairs = {_groups(view, side) for view in views for side in _sides(spec, view) if len(side) > 1}
        items: list[Item] = []
        fixed: dict[str, None] = {}
        for view in views:
            channels = math.prod(axis.size for axis in view.axes if axis.group is None)
            match [_end(sets, view, side) for side in _sides(spec, view, pairs)]:
                case []:
                    fixed[view.block.param] = None
                case [end]:
                    items.append(NodeBlock(view, end, channels))
                case [out, into]:
                    items.append(EdgeBlock(view, out, into, channels))
        factors, items = joined(
            [Factor(name, sets.of_group(sets.units(name))) for name in sets.positive], items
        )
        nodes = tuple(item for item in items if isinstance(item, NodeBlock))
        edges = tuple(item for item in items if isinstance(item, EdgeBlock))
        used = {end.node for item in items for _, end in item.ends}
        return cls(sets.sided(used), factors, tellers(factors, (*nodes, *edges)), nodes, edges, tuple(fixed))

    def sizes(self, params: Params) -> tuple[int, ...]:
        """Units of every node set in the given networks, read from the shapes of their params.

        Args:
            params: Tensors [B, ...].

        Returns:
            One number per node set.

        Raises:
            ValueError: If a name is missing, or two params disagree about a group.
        """
        sizes: list[int | None] = [None] * len(self.nodes)
        for label, node, count in self._sizes_by_block(params):
            if sizes[node] not in (None, count):
                raise ValueError(
                    f"params: {label!r} has {count} units of group {self.nodes[node].group!r}, expected "
                    f"{sizes[node]} as in the params before it; give the params of one network architecture"
                )
            sizes[node] = count
        return tuple(
            node.size if size is None else size for size, node in zip(sizes, self.nodes, strict=True)
        )

    def _sizes_by_block(self, params: Params) -> list[tuple[str, int, int]]:
        found = []
        batch: torch.Size | None = None
        for item in (*self.node_blocks, *self.edge_blocks):
            block = item.block
            if block.param not in params:
                raise ValueError(
                    f"params: got {list(params)}, expected {block.param!r} among them; rename them to the "
                    "family's names"
                )
            lead = params[block.param].shape[:1]
            if batch not in (None, lead):
                raise ValueError(
                    f"params: {block.param!r} has {[*lead]} networks along its first axis, expected "
                    f"{[*batch]}; give tensors [B, ...] for every name"
                )
            batch = lead
            shape = item.view.sizes(params[block.param])
            found += [
                (block.label, end.node, math.prod([shape[axis] for axis in end.axes])) for _, end in item.ends
            ]
        return found

    def read(self, item: Item, params: Params) -> Tensor:
        """Features of one block."""
        return self.read_node(item, params) if isinstance(item, NodeBlock) else self.read_edge(item, params)

    def read_node(self, item: NodeBlock, params: Params) -> Tensor:
        """Node features [B, n, k] of one block."""
        value = item.view.read(params[item.block.param])
        axes = item.end.axes
        moved = value.movedim([1 + axis for axis in axes], list(range(1, 1 + len(axes))))
        return moved.reshape(moved.shape[0], -1, item.channels)

    def read_edge(self, item: EdgeBlock, params: Params) -> Tensor:
        """Edge features [B, k, o, i] of one block."""
        value = item.view.read(params[item.block.param])
        out, into = item.out_end.axes, item.in_end.axes
        moved = value.movedim([1 + axis for axis in (*out, *into)], list(range(-len(out) - len(into), 0)))
        units = math.prod(moved.shape[-len(into) :])
        return moved.reshape(moved.shape[0], item.channels, -1, units)

    def write(self, params: Params, nodes: list[Tensor], edges: list[Tensor]) -> Params:
        """Params from the features of all blocks, the inverse of reading them.

        Args:
            params: The networks that the graph was read from: shapes, and the params that stay as they are.
            nodes: [B, n, k] for every node block.
            edges: [B, k, o, i] for every edge block.

        Returns:
            New params in the order of ``params``.
        """
        written: Params = {}
        # The units' axes come last; in a node block's features they come first.
        items = [(b, x.mT) for b, x in zip(self.node_blocks, nodes, strict=True)]
        items += [(b, x) for b, x in zip(self.edge_blocks, edges, strict=True)]
        for item, value in items:
            name = item.block.param
            own = params[name]
            written[name] = item.view.write(_unflattened(item, value, own), own, written.get(name))
        return {name: written.get(name, own) for name, own in params.items()}


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


def _end(sets: SetTable, view: BlockView, positions: Sequence[int]) -> End:
    """The end of a block along some of its axes."""
    axes = [view.axes[position] for position in positions]
    scales = [
        Scale(name, exponent, before, after * axis.size // sets.spec.group(name).size)
        for axis, (before, after) in zip(axes, strides(axes), strict=True)
        for name, exponent in axis.scales
        if name in sets.positive
    ]
    return End(sets.of_axes(axes), tuple(positions), tuple(scales))


def _unflattened(item: Item, value: Tensor, own: Tensor) -> Tensor:
    """Features [B, k, *units] -> the block's axes in their own order."""
    sizes = item.view.sizes(own)
    units = [axis for _, end in item.ends for axis in end.axes]
    rest = [size for position, size in enumerate(sizes) if position not in units]
    value = value.reshape(value.shape[0], *rest, *[sizes[axis] for axis in units])
    return value.movedim(list(range(-len(units), 0)), [1 + axis for axis in units])
