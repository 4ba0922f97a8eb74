"""The strip of photographs: what is in it, and in which order pixels are drawn."""

from __future__ import annotations

import pytest
import torch

from amortopt import ScaleGMNOptimizer
from amortopt.cli.demo_pictures import ADAM_RATES, in_order, show_pictures
from amortopt.metanets import Rounds
from amortopt.optim.networks import OutOfFamilyWarning
from amortopt.symmetry import extract
from amortopt.tasks import Family, make_family, make_problem_family
from amortopt.tasks.problem_families.images import photographs, pixel_coordinates

IMAGES = make_problem_family("images", side=8)


def untrained(family: Family, problem: str = "images") -> ScaleGMNOptimizer:
    network = family.build()
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    spec = extract(network, family.example_input())
    config = {"name": problem} | ({"side": 8} if problem == "images" else {})
    metanet = Rounds(spec, shapes=shapes, channels=1, hidden=2, step=0.01)
    return ScaleGMNOptimizer(metanet, family=family, problem=config)


def test_strip_has_a_row_for_the_pass_and_one_for_each_number_of_adam_steps() -> None:
    reader = untrained(make_family("siren", widths=(2, 6, 1)))
    with pytest.warns(OutOfFamilyWarning, match="came out worse"):  # for nothing is learned yet
        table, png = show_pictures(reader, count=3, seed=5)
    assert list(table.columns[0].cells) == [
        "fresh networks",
        "one forward pass",
        *(f"Adam, {steps} steps" for steps in ADAM_RATES),
    ]
    assert all(cell.endswith(" dB") for cell in table.columns[1].cells)
    assert png.startswith(b"\x89PNG")


def test_checkpoint_that_is_not_for_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="is not for pictures"):
        show_pictures(untrained(make_family("mlp", widths=(40, 4, 10)), "curves"), count=2, seed=0)


def test_pixels_in_order_are_the_crop_row_by_row() -> None:
    pixels, _ = IMAGES.draw("test", 0, 2, 64, 64)
    ordered = in_order(pixels, 8)
    assert torch.equal(ordered.x, pixel_coordinates(8).expand(2, 64, 2))
    crop = ordered.y.view(2, 8, 8)[0]
    windows = [p.unfold(0, 8, 1).unfold(1, 8, 1) for p in photographs("test")]
    turned = [t for k in range(4) for t in (crop.rot90(k), crop.rot90(k).flip(0))]
    assert any(bool((w == t).all(-1).all(-1).any()) for w in windows for t in turned)
