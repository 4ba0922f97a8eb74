"""Problems of ten random stroke glyphs each, as if ten letters were invented and written by many hands.

Legend: P problems, C = 10 classes, N examples, M = P N of them, V = 2 ways to write a glyph, S = 3 strokes,
T points of a stroke.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from amortopt.tasks.digits import Digits
from amortopt.tasks.examples import Examples
from amortopt.tasks.mnist5k import MNIST5k
from amortopt.tasks.objective import CrossEntropy
from amortopt.tasks.problem import Problem, Which
from amortopt.tasks.problem_families.base import GeneratedFamily, register_problem_family

_SIDE, _CLASSES, _WAYS, _STROKES, _STEPS = 16, 10, 2, 3, 24
_CHUNK = 4096
"""Examples whose distances to all pixels are in memory at once, 74 kB each."""


@register_problem_family("glyphs")
class Glyphs(GeneratedFamily):
    """Ten glyphs of one to three strokes per problem, written many times, on [1, 16, 16].

    A stroke is a curve by its direction: a bend, a wave and, sometimes, a corner. Every problem has its own
    hand: how much strokes wobble, slant, size, position, thickness, blur, contrast and background noise, and
    how much these vary from example to example. Real handwriting lies inside what is drawn; it is never drawn
    itself, ``real`` has scikit-learn's digits and 5,000 of MNIST's. Each problem is standardised by two
    scalars.

    Args:
        seed: Seed of all problems.
    """

    objective = CrossEntropy(_CLASSES)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, _SIDE, _SIDE)

    def to_config(self) -> dict[str, Any]:
        return {"name": self.name, "seed": self.seed}

    def real(self) -> dict[str, Problem]:
        return {"digits": Digits(), "mnist_5k": MNIST5k(_SIDE)}

    def block(
        self, which: Which, data: torch.Generator, noise: torch.Generator, train: int, test: int
    ) -> tuple[Examples, Examples]:
        examples = train + test
        skeletons = random_skeletons(self.BLOCK * _CLASSES, data)
        y = torch.rand(self.BLOCK, examples, generator=noise).argsort(-1) % _CLASSES
        glyph = (y + _CLASSES * torch.arange(self.BLOCK)[:, None]).flatten()
        share = 0.5 * torch.rand(len(skeletons), generator=data)  # of the second way to write a glyph
        way = (torch.rand(len(glyph), generator=noise) < share[glyph]).long()
        hand = _Hand(self.BLOCK, examples, data, noise)
        x = written(skeletons.take(glyph, way), hand).view(self.BLOCK, examples, -1)
        x = x - x.mean((1, 2), keepdim=True)
        x = x / x.std((1, 2), keepdim=True)
        drawn = Examples(x.unflatten(2, self.input_shape), y, shared=False)
        return drawn.take(slice(train)), drawn.take(slice(train, None))


@dataclass(frozen=True)
class Skeletons:
    """Strokes by the direction at s in [0, 1]: theta + turn (s - 1/2) + wave sin(2π freq s + phase), + corner
    where s > at.

    Attributes:
        theta: Direction in the middle, radians, [..., S].
        turn: By how much the direction turns from start to end.
        wave: Amplitude of the wave.
        freq: Its periods along the stroke.
        phase: Its phase.
        corner: Jump of the direction.
        at: Where it jumps, in [0, 1].
        length: Of the stroke.
        place: Where along the first stroke a further one lies, in [0, 1].
        middle: Whether it lies there by its middle (1) or its start (0).
        away: How far away from there, [..., S, 2].
        used: Whether there is such a stroke, bool.
    """

    theta: Tensor
    turn: Tensor
    wave: Tensor
    freq: Tensor
    phase: Tensor
    corner: Tensor
    at: Tensor
    length: Tensor
    place: Tensor
    middle: Tensor
    away: Tensor
    used: Tensor

    def __len__(self) -> int:
        return len(self.theta)

    def take(self, glyph: Tensor, way: Tensor) -> Skeletons:
        """One way to write each of some glyphs: positions [M] and ways [M] -> [M, S]."""
        return Skeletons(**{field.name: getattr(self, field.name)[glyph, way] for field in fields(self)})


def random_skeletons(count: int, generator: torch.Generator) -> Skeletons:
    """Glyphs [count, V, S]: lines, arcs, loops, waves and corners; a quarter has two ways to write it."""
    shape = (count, _WAYS, _STROKES)

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(*(size or shape), generator=generator)

    def normal(*size: int) -> Tensor:
        return torch.randn(*(size or shape), generator=generator)

    def either(share: float, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(uniform(0, 1) < share, a, b)

    def signed(x: Tensor) -> Tensor:
        return either(0.5, x, -x)

    arc, loop = math.pi * uniform(0.5, 1.2), math.pi * uniform(1.5, 2.4)
    shrink = torch.tensor([1.0, 0.6, 0.6])  # strokes after the first are shorter
    strokes = (
        1 + (uniform(0, 1, count, _WAYS, 1) > 0.45).int() + (uniform(0, 1, count, _WAYS, 1) > 0.88).int()
    )
    drawn = Skeletons(
        theta=uniform(0, 2 * math.pi),
        turn=signed(either(0.3, 0.25 * normal(), either(0.43, arc, loop))),
        wave=either(0.45, signed(uniform(0.6, 3.8)), 0.2 * normal()),
        freq=1 + (uniform(0, 1) > 0.85).float(),
        phase=uniform(0, 2 * math.pi),
        corner=either(0.35, signed(uniform(1.2, 2.6)), torch.zeros(shape)),
        at=uniform(0.2, 0.8),
        length=uniform(0.5, 2.2) * shrink,
        place=uniform(0, 1),
        middle=(uniform(0, 1) < 0.5).float(),
        away=0.35 * normal(*shape, 2) * (uniform(0, 1) < 0.5)[..., None],
        used=(torch.arange(_STROKES) < strokes).expand(shape),
    )
    same = uniform(0, 1, count) < 0.75

    def first_way(x: Tensor) -> Tensor:
        return torch.where(same.view(-1, *[1] * (x.ndim - 1)), x[:, :1], x)

    return Skeletons(**{field.name: first_way(getattr(drawn, field.name)) for field in fields(drawn)})


class _Hand:
    """Draws numbers that are drawn once per problem, and numbers that vary from example to example."""

    def __init__(self, problems: int, examples: int, data: torch.Generator, noise: torch.Generator) -> None:
        self.problems, self.examples, self.data, self.noise = problems, examples, data, noise

    def per_problem(self, low: float, high: float) -> Tensor:
        """Uniform, [M, 1]."""
        drawn = low + (high - low) * torch.rand(self.problems, 1, generator=self.data)
        return drawn.expand(-1, self.examples).reshape(-1, 1)

    def log_uniform(self, low: float, high: float) -> Tensor:
        """Log-uniform, once per problem, [M, 1]."""
        return self.per_problem(math.log(low), math.log(high)).exp()

    def normal(self, *size: int) -> Tensor:
        """Standard normal, new for every example, [M, *size]."""
        return torch.randn(self.problems * self.examples, *size, generator=self.noise)


def written(glyphs: Skeletons, hand: _Hand) -> Tensor:
    """Write glyphs [M, S] down: ink [M, 256], 1 where it is full, with background noise."""
    used = glyphs.used[:, :, None, None]
    points = strokes_of(glyphs, hand)  # [M, S, T, 2]
    # Into a box of about one around 0. Some problems stretch every glyph to the frame, as cropped images do.
    high = torch.where(used, points, -1e3).amax((1, 2))
    low = torch.where(used, points, 1e3).amin((1, 2))
    extent = (high - low).clamp(min=0.15)
    stretch = hand.per_problem(0, 1) * (hand.per_problem(0, 1) < 0.5)
    size = torch.lerp(1 / extent.amax(-1, keepdim=True).expand(-1, 2), 1 / extent.clamp(min=0.3), stretch)
    points = (points - (high + low)[:, None, None] / 2) * size[:, None, None]
    # Rotation, slant and stretching, by the hand and anew for every example.
    angle = hand.per_problem(0.02, 0.3) * hand.normal(1)
    slant = hand.per_problem(-0.3, 0.3) + hand.per_problem(0.02, 0.35) * hand.normal(1)
    stretch = torch.exp(hand.per_problem(0, 0.25) * hand.normal(2))
    frame = hand.per_problem(0.55, 0.98) * torch.exp(hand.per_problem(0, 0.12) * hand.normal(1))
    shift = hand.per_problem(0, 1.2) * hand.normal(2)
    x, y = points[..., 0], points[..., 1]
    x = x + slant[:, :, None] * y
    cos, sin = angle.cos()[:, :, None], angle.sin()[:, :, None]
    turned = torch.stack([cos * x - sin * y, sin * x + cos * y], -1)
    pixels = turned * (stretch * frame * (_SIDE - 2))[:, None, None] + _SIDE / 2 + shift[:, None, None]
    thickness = hand.log_uniform(0.35, 1.7) * torch.exp(hand.per_problem(0.05, 0.35) * hand.normal(1))
    ink = rendered(torch.where(used, pixels, 1e3), thickness, hand.log_uniform(0.12, 1.1))
    ink = (ink * torch.exp(hand.per_problem(0, 0.3) * hand.normal(1))).clamp(max=1)
    return ink + hand.per_problem(0, 0.12) * hand.normal(_SIDE * _SIDE)


def strokes_of(glyphs: Skeletons, hand: _Hand) -> Tensor:
    """Points of wobbling strokes [M, S, T, 2]; strokes after the first lie on it or near it."""
    wobble = hand.per_problem(0.1, 0.75) * torch.exp(0.3 * hand.normal(1))

    def near(x: Tensor, relative: float, absolute: float) -> Tensor:
        return x * (1 + relative * wobble * hand.normal(_STROKES)) + absolute * wobble * hand.normal(_STROKES)

    s = (torch.arange(_STEPS) + 0.5) / _STEPS
    wave = torch.sin(2 * math.pi * glyphs.freq[..., None] * s + glyphs.phase[..., None])
    direction = (
        near(glyphs.theta, 0, 0.5)[..., None]
        + near(glyphs.turn, 0.3, 0.8)[..., None] * (s - 0.5)
        + near(glyphs.wave, 0.3, 0.6)[..., None] * wave
        + glyphs.corner[..., None] * (s > near(glyphs.at, 0, 0.12)[..., None])
    )
    step = glyphs.length * torch.exp(0.25 * wobble * hand.normal(_STROKES)) / _STEPS
    points = (torch.stack([direction.cos(), direction.sin()], -1) * step[..., None, None]).cumsum(2)
    nearest = near(glyphs.place, 0, 0.12).clamp(0, 0.999).mul(_STEPS).long()
    anchor = points[:, 0].gather(1, nearest[..., None].expand(-1, -1, 2)) + glyphs.away
    anchor = anchor + 0.1 * wobble[..., None] * hand.normal(_STROKES, 2)
    by = torch.where(glyphs.middle[..., None] > 0, points[:, :, _STEPS // 2], points[:, :, 0])
    moved = points + (anchor - by)[:, :, None]
    return torch.cat([points[:, :1], moved[:, 1:]], 1)


def rendered(points: Tensor, thickness: Tensor, blur: Tensor) -> Tensor:
    """Ink of strokes.

    Args:
        points: In pixels [M, S, T, 2].
        thickness: Half the width of a line, in pixels [M, 1].
        blur: Width of its edge, in pixels [M, 1].

    Returns:
        [M, 256], row by row, in [0, 1].
    """
    centre = torch.arange(_SIDE) + 0.5
    grid = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1).view(-1, 2)
    flat = points.flatten(1, 2)
    nearest = []
    for some in flat.split(_CHUNK):
        # |p - q|^2 = |p|^2 - 2 p q + |q|^2, with the smallest over the points q of all strokes
        pixels = grid.expand(len(some), -1, -1)
        square = torch.baddbmm(some.square().sum(-1)[:, None], pixels, some.mT, alpha=-2)  # [m, 256, S T]
        nearest.append(square.amin(-1))
    distance = (torch.cat(nearest) + grid.square().sum(-1)).clamp(min=0).sqrt()
    return torch.sigmoid((thickness - distance) / blur)
