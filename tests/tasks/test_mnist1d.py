"""MNIST-1D: the original data, split, standardised and the same everywhere."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch

from amortopt.tasks import Mnist1d
from amortopt.tasks.mnist1d import _GRID, _generate, _parts

SHA256 = "f1258e9ff6f3556680beda3803b7fe26cc880b5ba5d47c6175557cf0f5fb3c36"


def test_mnist1d_sizes_and_types() -> None:
    for which, count in (("train", 3500), ("val", 500), ("test", 1000)):
        part = Mnist1d().split(which)  # type: ignore[arg-type]
        assert part.x.shape == (count, 40) and part.x.dtype == torch.float32
        assert part.y.shape == (count,) and part.y.dtype == torch.int64
        assert part.y.unique().tolist() == list(range(10))


def test_mnist1d_is_the_same_bits_everywhere() -> None:
    digest = hashlib.sha256()
    for which in ("train", "val", "test"):
        part = Mnist1d().split(which)  # type: ignore[arg-type]
        digest.update(part.x.numpy().tobytes())
        digest.update(part.y.numpy().tobytes())
    assert digest.hexdigest() == SHA256


def test_mnist1d_values_are_exact_multiples_of_the_grid() -> None:
    x = Mnist1d().split("train").x.double() / _GRID
    assert torch.equal(x, x.round())


def test_mnist1d_is_the_packages_data_up_to_standardising() -> None:
    from mnist1d.data import get_dataset_args, make_dataset

    state = np.random.get_state(), random.getstate()
    original = make_dataset(get_dataset_args())
    np.random.set_state(state[0])
    random.setstate(state[1])
    test = Mnist1d().split("test")
    np.testing.assert_array_equal(test.y.numpy(), original["y_test"])
    raw = torch.from_numpy(original["x_test"])
    raw = (raw - raw.mean()) / raw.std()
    ours = test.x.double()
    torch.testing.assert_close((ours - ours.mean()) / ours.std(), raw, atol=1e-4, rtol=0)


def test_mnist1d_train_is_standardised() -> None:
    x = Mnist1d().split("train").x.double()
    assert abs(x.mean()) < 1e-6 and abs(x.std(unbiased=False) - 1) < 1e-6


def test_mnist1d_leaves_the_global_random_states_alone() -> None:
    _generate.cache_clear()
    _parts.cache_clear()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    Mnist1d().split("train")
    assert random.getstate() == expected[0]
    np.testing.assert_array_equal(np.random.get_state()[1], expected[1])
    assert torch.equal(torch.get_rng_state(), expected[2])


def test_mnist1d_channel_axis_views_the_same_data() -> None:
    flat, channel = Mnist1d().split("val"), Mnist1d(channel_axis=True).split("val")
    assert channel.x.shape == (500, 1, 40)
    assert torch.equal(channel.x[:, 0], flat.x) and channel.x.data_ptr() == flat.x.data_ptr()
    assert Mnist1d(channel_axis=True).split("val").x is channel.x


def test_mnist1d_parts_share_no_example() -> None:
    parts = [Mnist1d().split(w).x for w in ("train", "val", "test")]  # type: ignore[arg-type]
    assert len(torch.cat(parts).unique(dim=0)) == 5000


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "42"])
def test_mnist1d_seed_is_checked(seed: object) -> None:
    with pytest.raises(ValueError, match="seed"):
        Mnist1d(seed=seed)  # type: ignore[arg-type]
