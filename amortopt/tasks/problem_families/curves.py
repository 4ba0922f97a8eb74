"""Problems of ten random curves each, drawn through the transforms of MNIST-1D.

Legend: P problems, C = 10 classes, N examples, M = P N of them, T = 12 points of a template, L = 72 points of
a padded and stretched template.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amortopt.tasks.examples import Examples
from amortopt.tasks.mnist1d import Mnist1d
from amortopt.tasks.objective import CrossEntropy
from amortopt.tasks.problem import Problem, Which
from amortopt.tasks.problem_families.base import GeneratedFamily, register_problem_family

_CLASSES = 10
_POINTS, _LENGTH, _OUT = 12, 72, 40
# The defaults of mnist1d.data.get_dataset_args.
_PADDING, _SCALE, _SHIFT, _CORRELATED, _WHITE, _SHEAR = (36, 60), 0.4, 48, 0.25, 2e-2, 0.75
# Sine coefficients k of mnist1d's ten templates fall as k**-1.5 in the mean; these bounds lie around that.
_SLOPES = (1.0, 2.0)


@register_problem_family("curves")
class Curves(GeneratedFamily):
    """Ten smooth random curves per problem, in place of the ten digits of MNIST-1D.

    Examples are what ``mnist1d.data.make_dataset(template=...)`` makes of a problem's curves: padded,
    stretched, scaled, shifted, sheared, with correlated noise where there is no signal and white noise
    everywhere, 40 samples long. They are equal in distribution and drawn all at once. Each problem is
    standardised by two scalars. The data set MNIST-1D itself is never drawn; ``real`` has it.

    Args:
        seed: Seed of all problems.
        channel_axis: Whether inputs are [1, 40] (for convolutions) instead of [40].
        noise: Factor on the noise, for tests outside of the usual family.
        shift: Largest shift in samples of 72, for tests outside of the usual family.
    """

    objective = CrossEntropy(_CLASSES)

    def __init__(
        self, seed: int = 0, channel_axis: bool = False, noise: float = 1.0, shift: int = _SHIFT
    ) -> None:
        super().__init__(seed)
        if not 0 <= noise < float("inf"):
            raise ValueError(f"noise: got {noise}, expected a finite factor >= 0")
        if not 1 <= shift <= _LENGTH:
            raise ValueError(f"shift: got {shift}, expected a number of samples from 1 to {_LENGTH}")
        self.channel_axis, self.noise, self.shift = channel_axis, noise, shift

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, _OUT) if self.channel_axis else (_OUT,)

    def to_config(self) -> dict[str, Any]:
        fields = ("name", "seed", "channel_axis", "noise", "shift")
        return {field: getattr(self, field) for field in fields}

    def real(self) -> dict[str, Problem]:
        return {"mnist1d": Mnist1d(channel_axis=self.channel_axis)}

    def block(
        self, which: Which, data: torch.Generator, noise: torch.Generator, train: int, test: int
    ) -> tuple[Examples, Examples]:
        examples = train + test
        curves = random_curves(self.BLOCK, data)
        y = torch.rand(self.BLOCK, examples, generator=noise).argsort(-1) % _CLASSES
        chosen = curves.gather(1, y[..., None].expand(-1, -1, _POINTS))
        x = transformed(chosen.flatten(0, 1), noise, self.noise, self.shift).view(self.BLOCK, examples, _OUT)
        x = x - x.mean((1, 2), keepdim=True)
        x = x / x.std((1, 2), correction=0, keepdim=True)
        drawn = Examples(x.unflatten(2, self.input_shape), y, shared=False)
        return drawn.take(slice(train)), drawn.take(slice(train, None))


def random_curves(problems: int, generator: torch.Generator) -> Tensor:
    """Ten curves per problem, which begin and end at 0, [P, C, T].

    Each is a sum of sines whose coefficients fall as k**-slope, with a random slope, scaled to a standard
    deviation of 1/6, as mnist1d scales its templates.
    """
    k = torch.arange(1, _POINTS - 1.0)
    low, high = _SLOPES
    slope = low + (high - low) * torch.rand(problems, _CLASSES, 1, generator=generator)
    coefficients = torch.randn(problems, _CLASSES, len(k), generator=generator) * k**-slope
    curves = coefficients @ torch.sin(k[:, None] * torch.arange(_POINTS) * (torch.pi / (_POINTS - 1)))
    return curves / curves.std(-1, correction=0, keepdim=True) / 6


def transformed(
    templates: Tensor, generator: torch.Generator, noise: float = 1.0, shift: int = _SHIFT
) -> Tensor:
    """One example of each template.

    Args:
        templates: [M, T].
        generator: Source of randomness.
        noise: Factor on both kinds of noise.
        shift: Largest shift, in points of L.

    Returns:
        [M, 40], not standardised.
    """
    count = len(templates)
    uniform = torch.rand(4, count, 1, generator=generator)
    padded = _POINTS + _PADDING[0] + (uniform[0] * (_PADDING[1] - _PADDING[0] + 1)).floor()
    # Sample j of the stretched and rolled signal lies at this place of the padded template [M, L].
    place = (torch.arange(_LENGTH) - (uniform[1] * shift).floor()).remainder(_LENGTH)
    place = place * ((padded - 1) / (_LENGTH - 1))
    left = place.floor().clamp(max=_POINTS).long()
    # mnist1d adds 1e-8 to the template, so that only the padding is exactly zero; it gets correlated noise.
    ends = F.pad(templates + 1e-8, (0, 2))
    a, b = ends.gather(1, left), ends.gather(1, (left + 1).clamp(max=_POINTS + 1))
    signal = (a + (b - a) * (place - left)) * (1 + _SCALE * (uniform[2] - 0.5))
    down, blur, white = _linear_maps()
    correlated = torch.randn(count, _LENGTH, generator=generator) @ (noise * _CORRELATED * blur.mT)
    x = torch.where(place < _POINTS, signal, correlated) @ down.mT
    x = x + noise * (torch.randn(count, _OUT, generator=generator) @ white.mT)
    return x - _SHEAR * (uniform[3] - 0.5) * torch.linspace(-0.5, 0.5, _OUT)


@cache
def _linear_maps() -> tuple[Tensor, Tensor, Tensor]:
    """Subsampling [40, L], Gaussian blur [L, L], and the factor of subsampled white noise [40, 40]."""
    place = torch.linspace(0, _LENGTH - 1, _OUT, dtype=torch.float64)
    down = (1 - (place[:, None] - torch.arange(_LENGTH)).abs()).clamp(min=0)
    # As scipy.ndimage.gaussian_filter: sigma 2, cut at 8, mirrored at the ends.
    offsets = torch.arange(-8, 9)
    weights = torch.exp(-0.5 * (offsets.double() / 2) ** 2)
    blur = torch.zeros(_LENGTH, _LENGTH, dtype=torch.float64)
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        source = torch.arange(_LENGTH) + offset
        source = torch.where(source < 0, -1 - source, source)
        source = torch.where(source >= _LENGTH, 2 * _LENGTH - 1 - source, source)
        blur[torch.arange(_LENGTH), source] += weight
    # White noise on L samples, subsampled, is Gaussian with covariance down down^T.
    white = _WHITE * torch.linalg.cholesky(down @ down.mT)
    return down.float(), blur.float(), white.float()
