"""Blocks of params as node features or edges, and how their ends are rescaled.

Legend: B networks, n units of a set, o / i units of the written / read set, k fixed positions of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from amortopt.symmetry import Block
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
    """One side of a block: the set of its units, the axes that run over them, what rescales them."""

    node: int
    axes: tuple[int, ...]
    scales: tuple[Scale, ...]


@dataclass(frozen=True)
class NodeBlock:
    """A block with one group axis, or several on one side: features [B, n, k] of a node set."""

    view: BlockView
    end: End
    channels: int

    @property
    def block(self) -> Block:
        return self.view.block

    @property
    def node(self) -> int:
        return self.end.node

    @property
    def ends(self) -> tuple[tuple[int, End], ...]:
        """Dimension of the features, and what is along it."""
        return ((1, self.end),)

    def with_ends(self, end: End) -> NodeBlock:
        """The same with another end."""
        return NodeBlock(self.view, end, self.channels)


@dataclass(frozen=True)
class EdgeBlock:
    """A block with several group axes: features [B, k, o, i] of the edges between two node sets."""

    view: BlockView
    out_end: End
    in_end: End
    channels: int

    @property
    def block(self) -> Block:
        return self.view.block

    @property
    def out(self) -> int:
        return self.out_end.node

    @property
    def into(self) -> int:
        return self.in_end.node

    @property
    def ends(self) -> tuple[tuple[int, End], ...]:
        """Dimensions of the features, and what is along them."""
        return ((2, self.out_end), (3, self.in_end))

    def with_ends(self, out: End, into: End) -> EdgeBlock:
        """The same with other ends."""
        return EdgeBlock(self.view, out, into, self.channels)


@dataclass(frozen=True)
class Factor:
    """A group whose units may be rescaled by q > 0, and a set that has its units.

    Several groups whose scales are met only together have one factor, for the units of all of them together.
    """

    name: str
    node: int


Item: TypeAlias = NodeBlock | EdgeBlock


def scales_of(item: Item) -> tuple[tuple[int, Scale], ...]:
    """What rescales a block's features, with the dimension along which it does."""
    return tuple((dim, scale) for dim, end in item.ends for scale in end.scales)
