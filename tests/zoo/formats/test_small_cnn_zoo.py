"""The Small CNN Zoo: small folders in its format are read as what TensorFlow would compute."""

from __future__ import annotations

import csv
import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amortopt.cli.main import main
from amortopt.functional.networks import apply_many
from amortopt.meta.one_pass.data import ZooDataModule
from amortopt.zoo import Zoo, load_zoo
from amortopt.zoo.formats.small_cnn_zoo import LAYOUT, METRICS, WEIGHTS
from tests.tasks import archives

# The published layout: of every layer the bias first.
SHAPES = {
    "sequential/conv2d/bias:0": (16,),
    "sequential/conv2d/kernel:0": (3, 3, 1, 16),
    "sequential/conv2d_1/bias:0": (16,),
    "sequential/conv2d_1/kernel:0": (3, 3, 16, 16),
    "sequential/conv2d_2/bias:0": (16,),
    "sequential/conv2d_2/kernel:0": (3, 3, 16, 16),
    "sequential/dense/bias:0": (10,),
    "sequential/dense/kernel:0": (16, 10),
}
STEPS = (0, 1, 2, 3, 20, 40, 60, 80, 86)
NETWORKS = 24  # every other one tanh


def write(folder: Path, **columns: list[Any] | None) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Write a zoo of 24 networks in all steps; returns weights and metrics.

    ``columns`` replace columns of the metrics, or remove them (None).
    """
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(NETWORKS * len(STEPS), 4970)).astype(np.float32) / 4
    rows = [
        {
            "config.activation": ("relu", "tanh")[network % 2],
            "config.b_init": "zeros",
            "config.dataset": "cifar10",
            "config.l2reg": 1e-6,
            "config.learning_rate": 0.001 * (network + 1),
            "config.optimizer": "adam",
            "config.random_seed": 42,
            "modeldir": f"/runs/{network}",
            "step": step,
            "test_accuracy": step / 100,
            "test_loss": 2.0 - network / 100,
            "train_accuracy": step / 90,
            "train_loss": 1.0,
        }
        for network in range(NETWORKS)
        for step in STEPS
    ]
    order = rng.permutation(len(rows))
    rows = [rows[i] for i in order]
    for name, values in columns.items():
        for row, value in zip(rows, values or [None] * len(rows), strict=True):
            row.pop(name) if values is None else row.update({name: value})
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / WEIGHTS, weights)
    write_metrics(folder, rows)
    write_layout(folder, SHAPES)
    return weights, rows


def write_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    with gzip.open(folder / METRICS, "wt", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_layout(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    with (folder / LAYOUT).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["varname", "start_idx", "end_idx", "size", "shape"])
        end = 0
        for name, shape in shapes.items():
            start, end = end, end + int(np.prod(shape))
            writer.writerow([name, start, end, end - start, str(shape)])


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("small") / "cifar10"
    return folder, *write(folder)


@pytest.fixture(scope="module")
def folder(content) -> Path:
    return content[0]


def tensorflow_cnn(row: np.ndarray, image: np.ndarray, activation) -> np.ndarray:
    """What Keras computes for one image [H, W, C]: three Conv2D(16, 3, strides=2), global average, Dense."""
    values, end = {}, 0
    for name, shape in SHAPES.items():
        start, end = end, end + int(np.prod(shape))
        values[name.split("/", 1)[1].removesuffix(":0")] = row[start:end].reshape(shape).astype(np.float64)
    for layer in ("conv2d", "conv2d_1", "conv2d_2"):
        kernel, bias = values[f"{layer}/kernel"], values[f"{layer}/bias"]
        height, width = ((size - 3) // 2 + 1 for size in image.shape[:2])  # padding="valid"
        out = np.empty((height, width, len(bias)))
        for i in range(height):
            for j in range(width):
                patch = image[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
                out[i, j] = np.einsum("hwi,hwio->o", patch, kernel) + bias
        image = activation(out)
    return image.mean((0, 1)) @ values["dense/kernel"] + values["dense/bias"]


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_networks_compute_what_tensorflow_computes(content, activation: str) -> None:
    folder, weights, _ = content
    zoo = load_zoo(folder, activation=activation).select(np.arange(3))
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 1))
    function = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}[activation]
    expected = [[tensorflow_cnn(weights[i], image, function) for image in images] for i in zoo.table["index"]]
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    params = {name: p.double() for name, p in zoo.params.items()}
    got = apply_many(zoo.family.build().double(), params, x)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_only_the_last_checkpoint_of_each_network_of_the_activation_is_read(content) -> None:
    folder, _, rows = content
    zoo = load_zoo(folder, activation="tanh")
    assert len(zoo) == 12 and set(zoo.table["epochs"]) == {86}
    chosen = [rows[i] for i in zoo.table["index"]]
    assert {row["config.activation"] for row in chosen} == {"tanh"}
    assert len({row["modeldir"] for row in chosen}) == 12
    for name, key in (("learning_rate", "config.learning_rate"), ("test_loss",) * 2, ("train_accuracy",) * 2):
        assert zoo.table[name].tolist() == [row[key] for row in chosen]
    assert np.isnan(zoo.table["val_loss"]).all() and zoo.table["optimizer"].tolist() == ["adam"] * 12


def test_a_run_that_ended_early_counts_with_its_own_last_checkpoint(content, tmp_path: Path) -> None:
    _, rows = write(tmp_path)
    kept = [i for i, row in enumerate(rows) if row["modeldir"] != "/runs/3" or row["step"] <= 20]
    write_metrics(tmp_path, [rows[i] for i in kept])
    np.save(tmp_path / WEIGHTS, np.load(tmp_path / WEIGHTS)[kept])
    zoo = load_zoo(tmp_path / "tanh")
    assert len(zoo) == 12 and sorted(zoo.table["epochs"]) == [20] + [86] * 11


def test_max_epochs_takes_the_last_checkpoint_up_to_there(folder: Path) -> None:
    assert set(load_zoo(folder, activation="relu", max_epochs=30).table["epochs"]) == {20}
    with pytest.raises(ValueError, match="max_epochs: got None, -1"):
        load_zoo(folder, activation="relu", max_epochs=-1)


def test_checkpoints_are_told_apart_where_modeldir_names_them(folder: Path, tmp_path: Path) -> None:
    _, rows = write(tmp_path)
    write_metrics(
        tmp_path, [row | {"modeldir": f"{row['modeldir']}/permanent_ckpt-{row['step']}"} for row in rows]
    )
    got, expected = load_zoo(tmp_path / "tanh"), load_zoo(folder / "tanh")
    assert got.table["index"].tolist() == expected.table["index"].tolist()
    assert got.table["split"].tolist() == expected.table["split"].tolist()


def test_splits_partition_the_networks_and_hold_for_all_their_checkpoints(content) -> None:
    folder, _, rows = content
    split_of: dict[str, set[str]] = {}
    for epochs in (None, 3):
        parts = [load_zoo(folder / "tanh", split, max_epochs=epochs) for split in ("train", "val", "test")]
        for part, split in zip(parts, ("train", "val", "test"), strict=True):
            assert set(part.table["split"]) == {split}
            for i in part.table["index"]:
                split_of.setdefault(rows[i]["modeldir"], set()).add(split)
    assert len(split_of) == 12 and all(len(splits) == 1 for splits in split_of.values())


def test_problem_and_family_are_those_of_the_zoo(folder: Path) -> None:
    zoo = load_zoo(folder / "relu")
    assert zoo.problem.to_config()["preprocessing"] == "small_cnn_zoo" and zoo.problem.name == "cifar10_gray"
    family = zoo.family.to_config()
    assert family["activation"] == "relu" and family["input_shape"] == [1, 32, 32] and family["padding"] == 0
    assert sum(p[0].numel() for p in zoo.params.values()) == 4970


def test_diverged_networks_are_left_out(folder: Path, tmp_path: Path) -> None:
    weights, _ = write(tmp_path)
    lost = load_zoo(folder / "tanh").table["index"][4]
    weights[lost, 4969] = np.inf
    np.save(tmp_path / WEIGHTS, weights)
    assert lost not in load_zoo(tmp_path / "tanh").table["index"]
    everything = load_zoo(tmp_path / "tanh", keep_diverged=True)
    assert len(everything) == 12 and everything.table["index"][~everything.table["finite"]].tolist() == [lost]


def test_only_the_selected_rows_are_read(tmp_path: Path) -> None:
    _, rows = write(tmp_path)
    many = 20  # times the rows: 4,320 x 4,970 floats, 86 MB, of which 16 rows are wanted
    longer = [row | {"modeldir": f"/{i}{row['modeldir']}"} for i in range(many) for row in rows]
    for row in longer[16 * len(STEPS) :]:
        row["config.activation"] = "relu"
    for row in longer[: 16 * len(STEPS)]:
        row["config.activation"] = "tanh"
    write_metrics(tmp_path, longer)
    np.lib.format.open_memmap(tmp_path / WEIGHTS, "w+", np.float32, (len(longer), 4970)).flush()
    tracemalloc.start()
    try:
        zoo = load_zoo(tmp_path / "tanh")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(zoo) < 200 and peak < 20e6


def test_zoo_data_module_draws_from_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives.write_cifar10(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    data = ZooDataModule(str(folder / "tanh"), networks=2, examples=4)
    data.prepare_data()
    data.load()
    batch = data.draw(0)
    assert batch.examples.x.shape == (4, 1, 32, 32)
    assert apply_many(data.zoo.family.build(), batch.params, batch.examples.x).shape == (2, 4, 10)


def test_fit_trains_on_it(folder: Path, tmp_path: Path) -> None:
    archives.write_cifar10(tmp_path / "data")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
name: small
model:
  problem: {{name: cifar10_gray, root: {tmp_path / "data"}, preprocessing: small_cnn_zoo}}
  family: {{name: cnn, activation: tanh, input_shape: [1, 32, 32], padding: 0}}
  metanet: {{name: scalegmn, width: 8, channels: 2, layers: 1, heads: 2}}
data: {{zoo: {folder / "tanh"}, networks: 2, examples: 8}}
trainer: {{max_steps: 1, accelerator: cpu, devices: 1, enable_progress_bar: false}}
"""
    )
    assert main(["fit", "--config", str(recipe), "--runs", str(tmp_path / "runs")]) == 0
    assert (tmp_path / "runs" / "small" / "release" / "model.safetensors").is_file()


def test_zoo_prints_what_it_is(folder: Path) -> None:
    zoo = load_zoo(folder / "tanh")
    assert isinstance(zoo, Zoo) and repr(zoo).endswith("mean test accuracy 0.860)")


@pytest.mark.parametrize("name", [WEIGHTS, METRICS, LAYOUT])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "z")
    (tmp_path / "z" / name).unlink()
    with pytest.raises(ValueError, match=f"{name} missing"):
        load_zoo(tmp_path / "z")


def test_missing_columns_are_named(tmp_path: Path) -> None:
    write(tmp_path, **{"config.activation": None, "step": None})
    with pytest.raises(ValueError, match=r"columns config\.activation, step missing"):
        load_zoo(tmp_path)


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"step": ["many"] * 216}, "column step: could not convert"),
        ({"step": [0.5] * 216}, "column step: expected whole numbers"),
        ({"config.dataset": ["imagenet"] * 216}, "config.dataset imagenet, expected one of cifar10"),
        ({"config.dataset": ["mnist", "cifar10"] * 108}, "config.dataset cifar10, mnist"),
        ({"config.activation": ["swish"] * 216}, "unknown activation 'swish'|activation: got 'swish'"),
    ],
)
def test_metrics_that_make_no_sense_are_refused(tmp_path: Path, columns, message: str) -> None:
    write(tmp_path, **columns)
    with pytest.raises(ValueError, match=message):
        load_zoo(tmp_path, activation=None if "config.activation" in columns else "tanh")


def test_an_activation_has_to_be_chosen_among_those_there(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"activation: got None, expected one of relu, tanh.*cifar10/tanh"):
        load_zoo(folder)
    with pytest.raises(ValueError, match="activation: got 'gelu', expected one of relu, tanh"):
        load_zoo(folder / "gelu")


@pytest.mark.parametrize("damage", ["short", "header", "fewer rows", "pickle", "integers"])
def test_damaged_weights_are_refused(tmp_path: Path, damage: str) -> None:
    weights, _ = write(tmp_path)
    path = tmp_path / WEIGHTS
    if damage == "fewer rows":
        np.save(path, weights[:-1])
    elif damage == "pickle":
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    elif damage == "integers":
        np.save(path, weights.astype(np.int32))
    else:
        path.write_bytes(path.read_bytes()[: -100 if damage == "short" else 20])
    with pytest.raises(ValueError, match=r"weights\.npy.*(truncated|expected an array of floats)"):
        load_zoo(tmp_path, activation="tanh")


@pytest.mark.parametrize("keep", [0, 5, -40])
def test_damaged_metrics_are_refused(tmp_path: Path, keep: int) -> None:
    write(tmp_path)
    path = tmp_path / METRICS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"metrics\.csv\.gz"):
        load_zoo(tmp_path, activation="tanh")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sequential/dense/bias:0": (11,)}, "lays out 4971 columns, but weights.npy has 4970"),
        ({"sequential/conv2d/bias:0": (10,), "sequential/dense/bias:0": (16,)}, "does not fit Cnn.*0.bias"),
        ({"sequential/dense/kernel:0": (4, 40)}, "does not fit Cnn"),
        ({"sequential/dense/kernel:0": (4, 4, 10)}, r"expected kernels \[K, K, I, O\]"),
        ({"sequential/conv2d_1/kernel:0": (1, 9, 16, 16)}, "of one size"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, tuple[int, ...]], message: str
) -> None:
    write(tmp_path)
    write_layout(tmp_path, SHAPES | change)
    with pytest.raises(ValueError, match=message):
        load_zoo(tmp_path, activation="tanh")


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("16,160", "17,160", "does not add up"),
        ("shape", "form", "columns shape missing"),
        ("kernel:0", "scale:0", "scale:0"),
        (",16,16,", ",sixteen,16,", "sixteen"),
    ],
)
def test_damaged_layouts_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    write(tmp_path)
    path = tmp_path / LAYOUT
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_zoo(tmp_path, activation="tanh")
