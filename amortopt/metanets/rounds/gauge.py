"""Slots and scales of networks: how weights that are learned once are written into any network."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.scalegmn.encoder import Encoded, GraphEncoder, Networks
from amortopt.metanets.scalegmn.slots import SlotAssignment
from amortopt.metanets.scalegmn.units import Respects
from amortopt.symmetry import SymmetrySpec


@dataclass(frozen=True)
class Gauge:
    """Where the units of B networks of one architecture stand.

    Attributes:
        encoder: What has read them.
        read: The networks, with their canonical factors.
        encoded: Their signed slots.
    """

    encoder: GraphEncoder
    read: Networks
    encoded: Encoded

    def write(self, slots: Params) -> Params:
        r"""Weights between slots -> weights of the networks, :math:`q_o\,S_o^\top M\,S_i\,q_i^{-1}`.

        With as many units as slots this is the network of weights M with its units reordered, flipped and
        rescaled, so it computes the same function.

        Args:
            slots: Params in the family's shapes, [B, ...], their units in the order of slots.

        Returns:
            Params of the networks' names and shapes; what no block covers is as it was.
        """
        wiring, signed = self.encoded.wiring, self.encoded.signed
        one = {p: slots_of.new_ones(len(slots_of), 1) for p, slots_of in signed.items()}

        def at(node: int, like: Tensor) -> tuple[Tensor | None, Tensor]:
            if node in signed:
                return signed[node].to(like), one[node].to(like)
            return None, like.new_ones(wiring.lengths[node], 1)

        layout = self.encoder.layout
        nodes, edges = [], []
        for block in layout.node_blocks:
            value = block.read(slots)  # [B, k, R]
            nodes.append(wiring.at_slots(block.node, at(block.node, value), value.mT))
        for block in layout.edge_blocks:
            value = block.read(slots)  # [B, C, R, S]
            table = value.transpose(1, 2)
            edges.append(wiring.between(block, at(block.out, value), table, at(block.into, value)))
        (values,) = self.encoder.split(wiring, nodes, edges)
        return self.encoder.write(self.read, values, [1.0] * len(values))


class SlotGauge(nn.Module):
    """Finds the gauge of networks by one layer of random, fixed messages.

    Units are told apart by their weights alone, and nothing has to be learned for that: it decides only which
    unit takes which slot, and any order serves as well as another. Units that it cannot tell apart, such as
    equal ones, or those of a middle layer of a network without biases, stay in their order and keep their
    signs: the function that comes out is the same in any.

    Args:
        spec: Symmetry of the family.
        respects: ``"scale"``, or ``"permutation"`` for the ablation without scales.
        width: Node channels.
    """

    def __init__(self, spec: SymmetrySpec, respects: Respects = "scale", width: int = 16) -> None:
        super().__init__()
        self.encoder = GraphEncoder(
            spec, width=width, channels=4, layers=1, heads=1, respects=respects, backward=True
        ).requires_grad_(False)
        for module in self.encoder.modules():
            if isinstance(module, SlotAssignment):
                module.hard = True

    def writes_all(self, names: Collection[str]) -> bool:
        """Whether writing replaces all of these params, so that what was written computes the same."""
        layout = self.encoder.layout
        return not layout.fixed and {block.view.block.param for block in layout.blocks} == set(names)

    @torch.no_grad()
    def forward(self, params: Params) -> Gauge:
        """The gauge of B networks of one architecture, [B, ...]."""
        read = self.encoder.read({name: p.detach() for name, p in params.items()})
        return Gauge(self.encoder, read, self.encoder([read]))
