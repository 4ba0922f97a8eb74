"""An editor of what image networks show: pictures are read, edited, and drawn by a pass of rounds.

Legend: B networks, s pixels along a side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import params_of
from amortopt.metanets.base import Metanet, check_params, register
from amortopt.metanets.conditions import Conditions
from amortopt.metanets.pictures.shown import Shown
from amortopt.metanets.rounds import Rounds
from amortopt.symmetry import SymmetrySpec
from amortopt.system.numbers import check_counts
from amortopt.tasks import Examples, loss_and_grad_many, make_objective
from amortopt.tasks.families import family_from

_NONE = Conditions()


@register("picture_editor")
class PictureEditor(Metanet):
    r"""Weights to weights by way of the picture that a network shows.

    The networks are run on a grid of pixels, a small convolutional network maps their pictures to the wanted
    ones, and R gradients of the squared error to these, each turned into a step by learned maps (see
    [Rounds][amortopt.metanets.Rounds]), lead from a learned prototype to weights that show them. These are
    written into the order and signs of the given network's units. So the edit is equivariant, but all that
    the result has from the given network is this and its picture: what lies between the pixels is lost. An
    editor that changes the given weights is [ScaleGMNEditor][amortopt.metanets.ScaleGMNEditor].

    Args:
        spec: Symmetry of the family.
        family: ``name`` of the family of networks and its arguments, as
            [make_family][amortopt.tasks.make_family] takes them; from two coordinates to one grey level.
        side: Pixels s along a side of the grid.
        rounds: Gradients R of a pass.
        channels: Channels through which all weights see all gradients.
        hidden: Rows and columns of a channel.
        step: Size of steps before training, in units of plain gradient steps.
        width: Channels of the convolutional network.

    Raises:
        ValueError: An argument is out of range, or the family is no such one.
    """

    readable = frozenset()

    def __init__(
        self,
        spec: SymmetrySpec,
        *,
        family: Mapping[str, Any],
        side: int = 28,
        rounds: int = 4,
        channels: int = 8,
        hidden: int = 32,
        step: float = 0.1,
        width: int = 16,
    ) -> None:
        made = family_from(family)
        sizes = {"rounds": rounds, "channels": channels, "hidden": hidden, "step": step}
        super().__init__(spec, family=made.to_config(), side=side, width=width, **sizes)
        check_counts(width=width)
        self.shown = Shown(spec, made, side)
        self.map = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU()),
            nn.Conv2d(width, 1, 3, padding=1),
        )
        prototype = params_of(self.shown.network)
        self.draw = Rounds(
            spec,
            shapes={name: tuple(p.shape) for name, p in prototype.items()},
            scales=made.scales(),
            most_examples=side**2,
            **sizes,
        )
        self.draw.start_from(prototype)  # a fresh network: its frequencies matter

    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        """Those of the pass; the convolutional network has none."""
        return self.draw.param_roles()

    @torch.no_grad()
    def standardize(self, params: Params) -> None:
        """Bring gradients at the prototype to about unit size; once, before training.

        Args:
            params: Params [B, ...], such as those of the training networks; the first 64 are read.
        """
        self.draw.calibrate(self._conditions(self.shown({name: p[:64] for name, p in params.items()})))

    def forward(self, params: Params, conditions: Conditions = _NONE) -> Params:
        """Edit B networks of one architecture.

        Raises:
            ValueError: A condition was given, or the networks are not of the family.
        """
        check_params(self, params)
        conditions.check(self.conditions, len(next(iter(params.values()))))
        return self.edit(params)[0]

    def edit(self, params: Params) -> tuple[Params, Tensor]:
        """Edited networks, and the pictures [B, s, s] that they were to show.

        Both should come near to what is wanted: training lowers the sum of the two squared errors.
        """
        shown = self.shown(params)
        pictures = shown + self.map(shown[:, None] - 0.5)[:, 0]
        return self.draw(params, self._conditions(pictures)), pictures

    def _conditions(self, pictures: Tensor) -> Conditions:
        """Gradients of the squared error to pictures [B, s, s]."""
        wanted = pictures.flatten(1)[..., None]
        examples = Examples(self.shown.grid.expand(len(wanted), -1, -1), wanted, shared=False)
        objective = make_objective("squared_error")

        def gradient(at: Params) -> Params:
            again = torch.is_grad_enabled() and any(p.requires_grad for p in at.values())
            return loss_and_grad_many(self.shown.network, at, examples, objective, create_graph=again)[1]

        count = wanted.new_full((len(wanted),), float(wanted.shape[1]))
        return Conditions(gradient=gradient, examples=count)
