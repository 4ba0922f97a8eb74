"""Params as a graph: one node set per neuron group, one dense block of edges per weight between two groups.

Legend: B networks, n units of a group, o / i units of the written / read group, k fixed positions of a block
(kernel positions, flattened positions; 1 for a plain matrix).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.symmetry import Axis, Block, NeuronGroup, SymmetrySpec

Symmetry: TypeAlias = Literal["scale", "permutation"]
"""Whether the scalings of a spec are respected, or only its permutations (the ablation)."""


@dataclass(frozen=True)
class NodeSet:
    """The units of one neuron group.

    Attributes:
        group: Name of the group.
        size: Units in the family's own networks.
        permutable: Whether units have no identity of their own; otherwise a unit is known by its index.
        positive: Whether a unit may be rescaled by q > 0.
        odd: Whether a unit may change its sign.
    """

    group: str
    size: int
    permutable: bool
    positive: bool
    odd: bool


@dataclass(frozen=True)
class NodeBlock:
    """A parameter with one group axis: features [B, n, k] of a node set."""

    block: Block
    node: int
    axis: Axis
    channels: int


@dataclass(frozen=True)
class EdgeBlock:
    """A parameter with two group axes: features [B, k, o, i] of the edges between two node sets."""

    block: Block
    out: int
    into: int
    out_axis: Axis
    in_axis: Axis
    channels: int


@dataclass(frozen=True)
class GraphLayout:
    """How the params of a spec become a graph. Holds no tensors.

    Attributes:
        nodes: One node set per neuron group, in the spec's order.
        node_blocks: Parameters that are node features.
        edge_blocks: Parameters that are edges, in execution order.
        fixed: Names of parameters that no node or edge can carry, in whole or in some slice (no group axis at
            all); metanets leave that as it is.
    """

    nodes: tuple[NodeSet, ...]
    node_blocks: tuple[NodeBlock, ...]
    edge_blocks: tuple[EdgeBlock, ...]
    fixed: tuple[str, ...]

    @classmethod
    def from_spec(cls, spec: SymmetrySpec, symmetry: Symmetry = "scale") -> GraphLayout:
        """Lay out a spec's params.

        Args:
            spec: Symmetry of the base networks.
            symmetry: ``"permutation"`` treats every group as if nothing could be rescaled.

        Returns:
            The layout.

        Raises:
            ValueError: If a block has more than two group axes, or only follows a group that changes sign.
        """
        nodes = tuple(_node_set(group, symmetry) for group in spec.groups)
        index = {node.group: position for position, node in enumerate(nodes)}
        node_blocks: list[NodeBlock] = []
        edge_blocks: list[EdgeBlock] = []
        fixed: list[str] = []
        for block in spec.blocks:
            axes = [axis for axis in block.axes if axis.group is not None]
            channels = math.prod(axis.size for axis in block.axes if axis.group is None)
            if len(axes) > 2:
                raise ValueError(
                    f"spec: block {block.label!r} has {len(axes)} group axes, expected at most two; metanets "
                    "cannot read it"
                )
            if len(axes) == 0:
                fixed.append(block.param)
            elif len(axes) == 1:
                node_blocks.append(NodeBlock(block, index[_group(axes[0])], axes[0], channels))
            else:
                # The axis that writes is the output; two that do not differ keep their order.
                reverse = axes[1].exponent > axes[0].exponent
                out_axis, in_axis = (axes[1], axes[0]) if reverse else (axes[0], axes[1])
                edge_blocks.append(
                    EdgeBlock(
                        block, index[_group(out_axis)], index[_group(in_axis)], out_axis, in_axis, channels
                    )
                )
            for axis in axes:
                if axis.exponent == 0 and nodes[index[_group(axis)]].odd:
                    raise ValueError(
                        f"spec: block {block.label!r} does not change sign with group {axis.group!r}; "
                        "metanets cannot read such a block yet, use symmetry='permutation'"
                    )
        return cls(nodes, tuple(node_blocks), tuple(edge_blocks), tuple(dict.fromkeys(fixed)))

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
            shape = _view_shape(block, params[block.param])
            targets = (
                [(item.axis, item.node)]
                if isinstance(item, NodeBlock)
                else [(item.out_axis, item.out), (item.in_axis, item.into)]
            )
            found += [(block.label, node, shape[_position(block, axis)]) for axis, node in targets]
        return found

    def read_node(self, item: NodeBlock, params: Params) -> Tensor:
        """Node features [B, n, k] of one block."""
        value = _view(item.block, params[item.block.param])
        moved = value.movedim(1 + _position(item.block, item.axis), 1)
        return moved.reshape(*moved.shape[:2], item.channels)

    def read_edge(self, item: EdgeBlock, params: Params) -> Tensor:
        """Edge features [B, k, o, i] of one block."""
        value = _view(item.block, params[item.block.param])
        axes = (1 + _position(item.block, item.out_axis), 1 + _position(item.block, item.in_axis))
        moved = value.movedim(axes, (-2, -1))
        return moved.reshape(moved.shape[0], item.channels, *moved.shape[-2:])

    def write(self, params: Params, nodes: list[Tensor], edges: list[Tensor]) -> Params:
        """Params from the features of all blocks, the inverse of reading them.

        Args:
            params: The networks that the graph was read from: shapes, and the params that stay as they are.
            nodes: [B, n, k] for every node block.
            edges: [B, k, o, i] for every edge block.

        Returns:
            New params in the order of ``params``.
        """
        slices: dict[str, list[tuple[int, Tensor]]] = {}
        for item, value in zip(self.node_blocks, nodes, strict=True):
            shape = _view_shape(item.block, params[item.block.param])
            axis = _position(item.block, item.axis)
            rest = [size for position, size in enumerate(shape) if position != axis]
            moved = value.reshape(value.shape[0], shape[axis], *rest).movedim(1, 1 + axis)
            slices.setdefault(item.block.param, []).append((item.block.start, moved.flatten(1)))
        for item, value in zip(self.edge_blocks, edges, strict=True):
            shape = _view_shape(item.block, params[item.block.param])
            out, into = _position(item.block, item.out_axis), _position(item.block, item.in_axis)
            rest = [size for position, size in enumerate(shape) if position not in (out, into)]
            moved = value.reshape(value.shape[0], *rest, *value.shape[-2:]).movedim(
                (-2, -1), (1 + out, 1 + into)
            )
            slices.setdefault(item.block.param, []).append((item.block.start, moved.flatten(1)))
        written = dict(params)
        for name, parts in slices.items():
            written[name] = _assembled(params[name], sorted(parts, key=lambda pair: pair[0]))
        return written


def _assembled(own: Tensor, parts: list[tuple[int, Tensor]]) -> Tensor:
    """The parameter from its slices [B, *], each with its first index; rows in no slice stay."""
    row = own[0, 0].numel()
    pieces, position = [], 0
    for start, part in parts:
        pieces += [own[:, position:start].flatten(1), part]
        position = start + part.shape[1] // row
    pieces.append(own[:, position:].flatten(1))
    return torch.cat(pieces, 1).view(own.shape)


def _node_set(group: NeuronGroup, symmetry: Symmetry) -> NodeSet:
    scaled = symmetry == "scale"
    return NodeSet(
        group.name,
        group.size,
        group.permutable,
        positive=scaled and group.kind in ("positive", "free"),
        odd=scaled and group.kind in ("sign", "free"),
    )


def _group(axis: Axis) -> str:
    if axis.group is None:
        raise AssertionError("a fixed axis has no group")
    return axis.group


def _position(block: Block, axis: Axis) -> int:
    # By identity: a recurrent weight has two equal axes.
    return next(position for position, other in enumerate(block.axes) if other is axis)


def _view_shape(block: Block, value: Tensor) -> tuple[int, ...]:
    """Shape of the block's view in this network, whose group axes may be wider than the family's."""
    lengths = list(value.shape[1:])
    if lengths:
        lengths[0] = (lengths[0] if block.stop is None else block.stop) - block.start
    for runs in _runs(block.axes, len(lengths)):
        shape = [_run_shape(run, length) for run, length in zip(runs, lengths, strict=True)]
        if None not in shape:
            return tuple(size for part in shape if part is not None for size in part)
    raise ValueError(
        f"params: {block.label!r} has shape {tuple(value.shape[1:])} per network, expected one that can be "
        f"viewed as {'x'.join(map(str, block.shape))} up to the number of units; give a network of the family"
    )


def _runs(axes: tuple[Axis, ...], dimensions: int) -> Iterator[list[tuple[Axis, ...]]]:
    """Every way to spread the axes over the parameter's dimensions, each a run of neighbouring axes."""
    if dimensions == 0:
        return
    for cuts in combinations(range(1, len(axes)), dimensions - 1):
        yield [axes[start:stop] for start, stop in pairwise((0, *cuts, len(axes)))]


def _run_shape(run: tuple[Axis, ...], length: int) -> list[int] | None:
    """Sizes of the axes that share a dimension of this length; None if they cannot."""
    fixed = math.prod(axis.size for axis in run if axis.group is None)
    groups = sum(axis.group is not None for axis in run)
    if groups > 1:
        family = [axis.size for axis in run]
        return family if math.prod(family) == length else None
    if length % fixed or (groups == 0 and length != fixed):
        return None
    return [axis.size if axis.group is None else length // fixed for axis in run]


def _view(block: Block, value: Tensor) -> Tensor:
    stop = value.shape[1] if block.stop is None and value.ndim > 1 else block.stop
    part = value[:, block.start : stop] if value.ndim > 1 else value
    return part.reshape(value.shape[0], *_view_shape(block, value))
