"""Augmentation of weights: other networks with the same label, made without fitting any.

Legend: B networks, n units of a first layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.symmetry import SymmetrySpec, act, sample


@dataclass(frozen=True)
class Augmentation:
    r"""What is done to the networks of a training step, anew at every step.

    A change of the inputs :math:`x \mapsto A x + t` of an implicit representation is one of its first layer,
    :math:`W \mapsto W A,\ b \mapsto b + W t`: the picture is rotated, stretched, sheared and moved exactly,
    without a pixel being drawn.

    Args:
        noise: Standard deviation of noise on weights, relative to each parameter's own.
        rotation: Largest angle of a rotation of the inputs, in radians.
        stretch: Largest logarithm of the factor by which an input axis is stretched.
        shear: Largest shear.
        shift: Largest shift of an input, in its own units.
        gauge: Whether networks are moved by random elements of their symmetry; for readers that do not
            respect it.

    Raises:
        ValueError: An amount is negative.
    """

    noise: float = 0.0
    rotation: float = 0.0
    stretch: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    gauge: bool = False

    def __post_init__(self) -> None:
        for name in ("noise", "rotation", "stretch", "shear", "shift"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"augment.{name}: got {getattr(self, name)!r}, expected a number of at least 0"
                )

    @property
    def moves_inputs(self) -> bool:
        """Whether the inputs are changed."""
        return max(self.rotation, self.stretch, self.shear, self.shift) > 0

    def check(self, spec: SymmetrySpec) -> None:
        """Raise a ``ValueError`` if inputs are to be moved and networks have none that are coordinates."""
        if self.moves_inputs and _first_layer(spec) is None:
            raise ValueError(
                "augment: rotation, stretch, shear and shift are for networks whose first operation is a "
                "linear layer with a bias of two inputs, the coordinates of a picture; leave them at 0"
            )

    def __call__(self, params: Params, spec: SymmetrySpec, generator: torch.Generator) -> Params:
        """Other networks [B, ...]; the same ones for a generator in the same state."""
        changed = dict(params)
        first = _first_layer(spec) if self.moves_inputs else None
        if first is not None:
            weight, bias = (params[name] for name in first)
            matrix, shift = self.draw_inputs(len(bias), generator)
            matrix, shift = matrix.to(weight), shift.to(weight)
            changed[first[0]] = weight @ matrix
            changed[first[1]] = bias + (weight @ shift[:, :, None])[..., 0]
        if self.noise:
            for name, value in changed.items():
                drawn = torch.randn(value.shape, generator=generator).to(value)
                changed[name] = value + self.noise * value.std() * drawn
        if self.gauge:
            value = next(iter(changed.values()))
            g = sample(spec, generator=generator, batch=len(value), dtype=value.dtype, device=value.device)
            changed = act(spec, g, changed, batched=True)
        return changed

    def draw_inputs(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Matrices A [B, 2, 2] and shifts t [B, 2]."""

        def uniform(*shape: int) -> Tensor:
            return 2 * torch.rand(count, *shape, generator=generator) - 1

        angle, shear = uniform() * self.rotation, uniform() * self.shear
        stretch = torch.exp(uniform(2) * self.stretch)
        cos, sin = angle.cos(), angle.sin()
        turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        form = torch.diag_embed(stretch)
        form[:, 0, 1] = shear
        return turn @ form, uniform(2) * self.shift


def _first_layer(spec: SymmetrySpec) -> tuple[str, str] | None:
    """Weight and bias of a linear layer that is the first operation and reads two inputs."""
    layer = spec.operations[0] if spec.operations else None
    if layer is None or layer.kind != "linear" or len(layer.params) != 2:
        return None
    (block, *more) = spec.blocks_of(layer.params[0])
    if more or len(block.axes) != 2 or block.shape[1] != 2:
        return None
    return layer.params[0], layer.params[1]
