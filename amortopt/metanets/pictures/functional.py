"""A functional that looks at what image networks show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.base import Functional, register
from amortopt.metanets.pictures.shown import Shown
from amortopt.symmetry import SymmetrySpec
from amortopt.system.numbers import check_counts
from amortopt.tasks.families import family_from


@register("picture_functional")
class PictureFunctional(Functional):
    """The pictures that networks show, read by a small convolutional network.

    The networks are run on a grid of pixels, so every symmetry is respected, known or not, and all that is
    read is the picture: what [ProbedFunctional][amortopt.metanets.ProbedFunctional] is for any network, with
    what is known of pictures built in.

    Args:
        spec: Symmetry of the family.
        head: What the numbers mean, see [Functional][amortopt.metanets.Functional]; not one about units.
        family: ``name`` of the family of networks and its arguments, as
            [make_family][amortopt.tasks.make_family] takes them; from two coordinates to one grey level.
        side: Pixels along a side of the grid.
        width: Channels of the first convolution; the second has twice as many, the third four times.
        hidden: Units of the hidden layer behind them.
        dropout: Share of the features and hidden units that training drops.

    Raises:
        ValueError: An argument is out of range, or the family is no such one.
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        *,
        head: Mapping[str, Any],
        family: Mapping[str, Any],
        side: int = 20,
        width: int = 16,
        hidden: int = 128,
        dropout: float = 0.3,
    ) -> None:
        made = family_from(family)
        config = {"side": side, "width": width, "hidden": hidden, "dropout": dropout}
        super().__init__(spec, head=head, family=made.to_config(), **config)
        check_counts(width=width, hidden=hidden)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: got {dropout!r}, expected a share in [0, 1)")
        if self.head.units is not None:
            raise ValueError(
                "head.units: got a group, expected none: pictures say nothing of single units; use "
                "scalegmn_functional"
            )
        self.shown = Shown(spec, made, side)
        first, second = nn.Conv2d(1, width, 3, 1, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        third = nn.Conv2d(2 * width, 4 * width, 3, 2, 1)
        self.features = nn.Sequential(first, nn.GELU(), second, nn.GELU(), third, nn.GELU(), nn.Flatten())
        with torch.no_grad():
            count = self.features(torch.zeros(1, 1, side, side)).shape[1]
        self.trunk = nn.Sequential(
            *(nn.Dropout(dropout), nn.Linear(count, hidden), nn.GELU(), nn.Dropout(dropout)),
            nn.Linear(hidden, self.head.raw),
        )

    def standardize(self, params: Params) -> None:
        """Nothing: weights are not read."""

    def raw(self, networks: Sequence[Params]) -> list[Tensor]:
        return [self.trunk(self.features(self.shown(params)[:, None] - 0.5)) for params in networks]
