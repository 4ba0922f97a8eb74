"""Chains of sines: networks whose own pass is a message along their edges.

In such a network every layer but the last is followed by a sine. What it computes at d inputs, its units can
have in d channels: messages are sums over edges, units send sines. A metanet that starts there reads answers,
and not what chance makes of weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from amortopt.metanets.scalegmn.layout import GraphLayout
from amortopt.symmetry import SymmetrySpec
from amortopt.symmetry.alignment.phases import phases


@dataclass(frozen=True)
class SineChain:
    """A chain of linear layers with biases, a sine after each but the last.

    Attributes:
        input: Set of the input units.
        output: Set of the output units.
        factors: For every set, c where sin(c x) follows; 1 where none does.
    """

    input: int
    output: int
    factors: tuple[float, ...]

    @classmethod
    def of(cls, spec: SymmetrySpec, layout: GraphLayout) -> SineChain:
        """Recognise a chain.

        Raises:
            ValueError: The networks are none.
        """
        written = [block.out for block in layout.edge_blocks]
        read = [block.into for block in layout.edge_blocks]
        biases = sorted(block.node for block in layout.node_blocks)
        half = {group: period for group, (_, period) in phases(spec).items()}
        chain = read[1:] == written[:-1] and len({*read, *written}) == len(read) + 1
        sines = all(layout.nodes[p].group in half for p in written[:-1])
        plain = biases == sorted(written) and all(block.channels == 1 for block in layout.blocks)
        if not (read and chain and sines and plain and layout.nodes[read[0]].known):
            raise ValueError(
                f"spec: got a network with parameters {', '.join(spec.params)}, expected a chain of linear "
                "layers with biases, a sine after each but the last, such as a SIREN"
            )
        factors = [math.pi / half[node.group] if node.group in half else 1.0 for node in layout.nodes]
        return cls(read[0], written[-1], tuple(factors))


def spread(coordinates: int, count: int) -> Tensor:
    """Points evenly over (-1, 1) in every coordinate, [coordinates, count]; always the same."""
    sobol = torch.quasirandom.SobolEngine(coordinates, scramble=True, seed=0)
    return (2 * sobol.draw(count).mT - 1).clamp(-0.999, 0.999)
