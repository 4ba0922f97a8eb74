from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from amortopt.functional.networks import apply_many
from amortopt.tasks import ArrayProblem, evaluate_many, register_problem
from amortopt.zoo import Zoo, ZooConfig, build_zoo, load_zoo
from amortopt.zoo.store import Manifest

CONFIG = ZooConfig(
    family={"name": "mlp", "activation": "relu", "widths": [40, 6, 10]},
    count=30,
    epochs=1,
    batch_size=500,
    shard_size=16,
    val_fraction=0.2,
    test_fraction=0.2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "z"
    build_zoo(CONFIG, folder)
    return folder


@pytest.fixture
def zoo(folder: Path) -> Zoo:
    return load_zoo(folder)


def test_load_zoo_gives_params_and_table_of_all_networks(zoo: Zoo) -> None:
    assert len(zoo) == 30
    assert {name: tuple(p.shape) for name, p in zoo.params.items()} == {
        "0.weight": (30, 6, 40),
        "0.bias": (30, 6),
        "2.weight": (30, 10, 6),
        "2.bias": (30, 10),
    }
    assert np.array_equal(zoo.table["index"], np.arange(30))


def test_table_holds_the_accuracy_of_the_params(zoo: Zoo) -> None:
    data = zoo.problem.split("test")
    logits = apply_many(zoo.family.build(), zoo.params, data.x)
    expected = (logits.argmax(-1) == data.y).double().mean(1)
    np.testing.assert_allclose(zoo.table["test_accuracy"], expected, atol=1.5e-3)


def test_splits_partition_the_networks(folder: Path, zoo: Zoo) -> None:
    parts = [load_zoo(folder, split) for split in ("train", "val", "test")]
    assert sorted(np.concatenate([part.table["index"] for part in parts])) == list(range(30))
    for part, split in zip(parts, ("train", "val", "test"), strict=True):
        chosen = zoo.select(split)
        assert torch.equal(chosen.params["2.weight"], part.params["2.weight"])
        assert torch.equal(zoo.params["2.weight"][part.table["index"]], part.params["2.weight"])


def test_select_takes_masks_and_positions(zoo: Zoo) -> None:
    mask = zoo.table["epochs"] == 1
    by_mask, by_position = zoo.select(mask), zoo.select(np.flatnonzero(mask))
    assert len(by_mask) == mask.sum() and torch.equal(by_mask.params["0.bias"], by_position.params["0.bias"])


@pytest.mark.parametrize(
    "which, message",
    [
        ("tset", "expected 'train', 'val' or 'test'"),
        (np.zeros(30, bool), "none"),
        (np.ones(3, bool), "shape"),
    ],
)
def test_select_refuses_what_it_cannot_select(zoo: Zoo, which, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.select(which)


def test_load_zoo_filters_by_epochs(folder: Path) -> None:
    assert set(load_zoo(folder, max_epochs=0).table["epochs"]) == {0}


def test_load_zoo_refuses_an_empty_selection(folder: Path) -> None:
    with pytest.raises(ValueError, match="select none of the 30 networks"):
        load_zoo(folder, max_epochs=-1)


def test_metadata_csv_holds_the_table(folder: Path, zoo: Zoo) -> None:
    rows = list(csv.DictReader((folder / "metadata.csv").read_text().splitlines()))
    assert list(rows[0]) == list(zoo.table) and len(rows) == 30
    assert [float(row["learning_rate"]) for row in rows] == zoo.table["learning_rate"].tolist()
    assert [row["split"] for row in rows] == zoo.table["split"].tolist()


def test_metadata_csv_is_not_needed(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.name != "metadata.csv":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert len(load_zoo(tmp_path)) == 30


def test_zoo_prints_what_it_is(zoo: Zoo) -> None:
    assert repr(zoo).startswith("Zoo(30 networks, problem {'name': 'mnist1d'")


def test_zoo_of_an_earlier_version_is_read_and_completed(folder: Path, zoo: Zoo, tmp_path: Path) -> None:
    """Earlier versions called the problem ``task``."""
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    manifest = json.loads((old / "zoo.json").read_text())
    manifest["config"] = {"task" if k == "problem" else k: v for k, v in manifest["config"].items()}
    (old / "zoo.json").write_text(json.dumps(manifest))
    for path in old.glob("shard-*.json"):
        record = json.loads(path.read_text()) | {
            "recipe_sha256": Manifest(manifest["config"], {}).fingerprint
        }
        path.write_text(json.dumps(record))
    assert load_zoo(old).problem == zoo.problem
    (old / "shard-00002-of-00002.json").unlink()
    assert build_zoo(CONFIG, old) == []
    again = load_zoo(old)
    assert all(torch.equal(again.params[name], p) for name, p in zoo.params.items())


def test_zoo_of_real_targets_holds_their_score(tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 60).unsqueeze(1)

    @register_problem("sine of the zoo test")
    def make() -> ArrayProblem:
        return ArrayProblem((x, torch.sin(3 * x)), test=(x, torch.sin(3 * x)), name="sine of the zoo test")

    family = {"name": "mlp", "widths": [1, 8, 1]}
    build_zoo(ZooConfig(problem={"name": make().name}, family=family, count=4, epochs=[40]), tmp_path / "z")
    zoo = load_zoo(tmp_path / "z")
    loss, score = evaluate_many(zoo.family.build(), zoo.params, make().split("test"), make().objective)
    np.testing.assert_allclose(zoo.table["test_r2"], score, rtol=1e-9)
    np.testing.assert_allclose(zoo.table["test_loss"], loss, rtol=1e-9)
    assert "mean test r2" in repr(zoo) and not any("accuracy" in name for name in zoo.table)
