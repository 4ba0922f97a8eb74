"""Digits: real images, jittered; parts that share no image; the same everywhere."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from amortopt.functional.networks import params_of
from amortopt.tasks import Digits, make_family, make_problem
from amortopt.tasks.digits import _COPIES, _GRID, _generate, base_images, interpolate

SHA256 = "56e833ae2b403bcc5c91eaeaeceecb205416fa7ab19d54e902d0005472e5250e"
PARTS = {"train": 3771, "val": 540, "test": 1080}


def test_digits_sizes_and_types() -> None:
    for which, count in PARTS.items():
        part = Digits().split(which)  # type: ignore[arg-type]
        assert part.x.shape == (count, 1, 16, 16) and part.x.dtype == torch.float32
        assert part.y.shape == (count,) and part.y.dtype == torch.int64
        assert part.y.unique().tolist() == list(range(10))


def test_digits_is_the_same_bits_everywhere() -> None:
    digest = hashlib.sha256()
    for which in PARTS:
        part = Digits().split(which)  # type: ignore[arg-type]
        digest.update(part.x.numpy().tobytes())
        digest.update(part.y.numpy().tobytes())
    assert digest.hexdigest() == SHA256


def test_digits_values_are_exact_multiples_of_the_grid() -> None:
    x = Digits().split("train").x.double() / _GRID
    assert torch.equal(x, x.round())


def test_digits_train_is_standardised() -> None:
    x = Digits().split("train").x.double()
    assert abs(x.mean()) < 1e-6 and abs(x.std(unbiased=False) - 1) < 1e-6


def test_digits_parts_share_no_base_image() -> None:
    bases = list(base_images(1797, 42).values())
    assert sorted(np.concatenate(bases)) == list(range(1797))


def test_digits_copies_show_their_own_base_image() -> None:
    images, labels = load_digits(return_X_y=True)
    for which in PARTS:
        part, base = Digits().split(which), base_images(1797, 42)[which]  # type: ignore[arg-type, index]
        assert part.y.tolist() == labels[base].repeat(_COPIES).tolist()
        # Three copies' mean, shrunk to 8x8, looks like its own base image and unlike the average one.
        copies = part.x[:, 0].unflatten(0, (-1, _COPIES)).mean(1)
        small = torch.nn.functional.interpolate(copies[:, None, 2:14, 2:14], size=(8, 8), mode="area")[:, 0]
        alike = _normalised(small.flatten(1)) @ _normalised(torch.from_numpy(images[base]).float()).T
        assert alike.diagonal().mean() > 0.7 and alike.diagonal().mean() > alike.mean() + 0.2


def _normalised(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows - rows.mean(1, keepdim=True), dim=1)


def test_digits_copies_of_an_image_differ() -> None:
    for which in PARTS:
        x = Digits().split(which).x  # type: ignore[arg-type]
        assert len(x.flatten(1).unique(dim=0)) == len(x)


def test_digits_reads_images_between_their_pixels() -> None:
    image = np.arange(64.0).reshape(1, 8, 8)  # 8 * row + column: linear, so interpolation is exact inside
    rows, columns = np.array([[[0.0, 2.5, 6.75, 7.0]]]), np.array([[[0.0, 3.25, 0.5, 7.0]]])
    np.testing.assert_allclose(interpolate(image, rows, columns), 8 * rows + columns)


def test_digits_reads_paper_outside_an_image() -> None:
    far = np.array([[[-50.0, -1.0, 8.0, 50.0]]])
    inside = np.full_like(far, 3.0)
    assert not interpolate(np.ones((1, 8, 8)), far, inside).any()
    assert not interpolate(np.ones((1, 8, 8)), inside, far).any()
    assert interpolate(np.ones((1, 8, 8)), inside, np.full_like(far, 7.5)).tolist() == [[[0.5] * 4]]


def test_digits_seeds_give_other_data_and_other_parts() -> None:
    a, b = Digits().split("test"), Digits(seed=1).split("test")
    assert not torch.equal(a.y, b.y) and not torch.equal(a.x, b.x)


def test_digits_leaves_the_global_random_states_alone() -> None:
    _generate.cache_clear()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    Digits().split("train")
    assert random.getstate() == expected[0]
    np.testing.assert_array_equal(np.random.get_state()[1], expected[1])
    assert torch.equal(torch.get_rng_state(), expected[2])


def test_digits_is_read_once() -> None:
    assert Digits().split("val").x is make_problem("digits").split("val").x


def test_digits_is_made_again_by_its_configuration() -> None:
    problem = Digits(seed=3)
    assert make_problem(**problem.to_config()) == problem and problem != Digits()


def test_digits_fits_the_small_cnn() -> None:
    family = make_family("cnn", input_shape=Digits().input_shape)
    module = family.build()
    assert sum(p.numel() for p in params_of(module).values()) == 4970
    assert module(Digits().split("val").x[:2]).shape == (2, 10)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "42"])
def test_digits_seed_is_checked(seed: object) -> None:
    with pytest.raises(ValueError, match="seed"):
        Digits(seed=seed)  # type: ignore[arg-type]
