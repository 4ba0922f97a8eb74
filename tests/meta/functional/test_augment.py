"""Augmentations: what they do to functions, and that a seed repeats them."""

from __future__ import annotations

import pytest
import torch

from amortopt.functional.networks import apply_many
from amortopt.meta.functional.augment import Augmentation
from amortopt.symmetry import extract
from amortopt.tasks import init_many, make_family

FAMILY = make_family("siren", widths=(2, 6, 5, 1), w0=3.0)
SPEC = extract(FAMILY.build(), FAMILY.example_input())
PARAMS = {name: p.double() for name, p in init_many(FAMILY.build, range(3)).items()}
X = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_augmentation_of_inputs_moves_the_picture_exactly() -> None:
    augment = Augmentation(rotation=0.5, stretch=0.2, shear=0.3, shift=0.4)
    moved = augment(PARAMS, SPEC, _generator())
    matrix, shift = (value.double() for value in augment.draw_inputs(3, _generator()))
    x = X @ matrix.mT + shift[:, None]  # A x + t, per network
    expected = apply_many(FAMILY.build().double(), PARAMS, x, shared=False)
    torch.testing.assert_close(apply_many(FAMILY.build().double(), moved, X), expected, rtol=1e-9, atol=1e-9)
    assert float((moved["0.weight"] - PARAMS["0.weight"]).abs().max()) > 0.01


def test_augmentation_by_the_gauge_keeps_the_function_and_changes_the_weights() -> None:
    moved = Augmentation(gauge=True)(PARAMS, SPEC, _generator())
    module = FAMILY.build().double()
    torch.testing.assert_close(
        apply_many(module, moved, X), apply_many(module, PARAMS, X), rtol=1e-9, atol=1e-9
    )
    assert not torch.equal(moved["2.weight"], PARAMS["2.weight"])


def test_augmentation_noise_is_relative_to_each_parameter() -> None:
    params = {"0.weight": PARAMS["0.weight"], "2.weight": 1000 * PARAMS["2.weight"]}
    moved = Augmentation(noise=0.1)(params, SPEC, _generator())
    for name, value in params.items():
        assert float((moved[name] - value).std() / value.std()) == pytest.approx(0.1, rel=0.3)


def test_augmentation_repeats_with_its_generator_and_by_default_does_nothing() -> None:
    augment = Augmentation(noise=0.1, rotation=0.5, gauge=True)
    first, second = (augment(PARAMS, SPEC, _generator()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    same = Augmentation()(PARAMS, SPEC, _generator())
    assert all(same[name] is PARAMS[name] for name in PARAMS)


def test_augmentation_refuses() -> None:
    with pytest.raises(ValueError, match=r"augment\.noise: got -0\.1"):
        Augmentation(noise=-0.1)
    family = make_family("mlp", widths=(40, 6, 10))
    with pytest.raises(ValueError, match="two inputs, the coordinates of a picture"):
        Augmentation(shift=0.1).check(extract(family.build(), family.example_input()))
    Augmentation(shift=0.1).check(SPEC)
