"""What image networks show on a grid of pixels.

Legend: B networks, s pixels along a side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import apply_many
from amortopt.symmetry import SymmetrySpec
from amortopt.tasks import Family
from amortopt.tasks.problem_families.images import pixel_coordinates


class Shown(nn.Module):
    """Runs networks from two coordinates to one grey level at every pixel of a square over [-1, 1]².

    Args:
        spec: Symmetry of the family.
        family: Family of the networks.
        side: Pixels s along a side.

    Attributes:
        family: Family of the networks.
        network: One of its networks, which says what to compute.
        grid: Coordinates of all pixels [s², 2], row by row.

    Raises:
        ValueError: ``side`` is out of range, or the family has other inputs, outputs or parameters.
    """

    grid: Tensor

    def __init__(self, spec: SymmetrySpec, family: Family, side: int) -> None:
        super().__init__()
        if not isinstance(side, int) or side < 4:
            raise ValueError(f"side: got {side!r}, expected a whole number of pixels, at least 4")
        self.family = family
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            network = self.family.build().requires_grad_(False)
            outputs = tuple(network(self.family.example_input()).shape[1:])
        if differing := sorted(set(spec.params) ^ {name for name, _ in network.named_parameters()}):
            raise ValueError(
                f"family: got {self.family}, which differs from the spec in {', '.join(differing)}"
            )
        if self.family.input_shape != (2,) or outputs != (1,):
            raise ValueError(
                f"family: got networks from {self.family.input_shape} to {outputs}, expected two coordinates "
                "to one grey level"
            )
        self.side = side
        self._network = (network,)  # in a tuple, because a module would become part of the state
        self.register_buffer("grid", pixel_coordinates(side), persistent=False)

    @property
    def network(self) -> nn.Module:
        return self._network[0]

    def forward(self, params: Params) -> Tensor:
        """Pictures of B networks, [B, s, s]."""
        return apply_many(self.network, params, self.grid).view(-1, self.side, self.side)
