"""Glyphs: what is drawn looks written."""

from __future__ import annotations

import pytest
import torch

from amortopt.tasks.problem_families import Glyphs
from amortopt.tasks.problem_families.glyphs import rendered


def test_rendered_line_is_dark_along_its_points_only() -> None:
    along = torch.linspace(2.5, 13.5, 24)
    points = torch.stack([along, torch.full_like(along, 8.5)], -1).view(1, 1, 24, 2)
    ink = rendered(points, torch.tensor([[0.7]]), torch.tensor([[0.05]])).view(16, 16)
    assert bool((ink[8, 2:14] > 0.9).all())
    assert float(ink[:7].max()) < 1e-3 and float(ink[10:].max()) < 1e-3


def test_examples_of_one_glyph_are_more_alike_than_those_of_two() -> None:
    read, _ = Glyphs(seed=2).draw("train", 0, 16, 400, 1)
    x = torch.nn.functional.avg_pool2d(read.x.flatten(0, 1), 4).view(16, 400, -1)
    within, between = [], []
    for images, y in zip(x, read.y, strict=True):
        means = torch.stack([images[y == c].mean(0) for c in range(10)])
        within.append((images - means[y]).square().mean())
        between.append((means - means.mean(0)).square().mean())
    assert float(torch.stack(between).mean()) > 0.2 * float(torch.stack(within).mean())


def test_hands_differ_between_problems() -> None:
    read, _ = Glyphs().draw("train", 0, 16, 200, 1)
    ink = (read.x > 1).float().mean((1, 2, 3, 4))
    assert float(ink.max()) > 1.5 * float(ink.min())


@pytest.mark.parametrize("name", ["digits", "mnist_5k"])
def test_real_digits_have_the_shape_of_glyphs(name: str) -> None:
    digits = Glyphs().real()[name]
    assert digits.input_shape == Glyphs().input_shape
    assert digits.objective == Glyphs.objective
