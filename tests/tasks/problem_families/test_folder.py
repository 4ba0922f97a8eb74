"""A user's folder of problems: what is read, and what is refused before anything is."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amortopt.tasks import CrossEntropy, SquaredError
from amortopt.tasks.problem_families import Folder, make_problem_family


def arrays(train: int = 6, test: int = 4, seed: int = 0, classes: int = 3) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        "x_train": draw.normal(size=(train, 5)),
        "y_train": np.arange(train) % classes,
        "x_test": draw.normal(size=(test, 5)),
        "y_test": np.arange(test) % classes,
    }


def folder(path: Path, count: int = 20, **changes: Any) -> Path:
    for k in range(count):
        np.savez(path / f"problem-{k:03}.npz", **arrays(train=6 + k % 3, seed=k))
    if changes:
        broken = arrays() | {key: value for key, value in changes.items() if value is not None}
        for key in [key for key, value in changes.items() if value is None]:
            del broken[key]
        np.savez(path / "problem-007.npz", **broken)
    return path


def test_folder_reads_every_file_once_and_pads(tmp_path: Path) -> None:
    family = Folder(str(folder(tmp_path)))
    counts = [family.count(which) for which in ("train", "val", "test")]
    assert sum(counts) == 20 and min(counts) > 0
    read, judged = family.draw("train", 0, counts[0], 8, 8)
    assert read.x.shape == (counts[0], 8, 5) and read.mask is not None and judged.x.shape[1] == 4
    assert family.objective == CrossEntropy(3) and family.input_shape == (5,)
    assert repr(make_problem_family(**family.to_config())) == repr(family)


def test_files_stay_in_their_part_when_others_are_added(tmp_path: Path) -> None:
    before = Folder(str(folder(tmp_path, 10)))
    after = Folder(str(folder(tmp_path, 30)))
    for which in ("train", "val", "test"):
        assert set(before._items[which]) <= set(after._items[which])


def test_real_targets_mean_squared_error(tmp_path: Path) -> None:
    for k in range(8):
        data = arrays(seed=k)
        np.savez(tmp_path / f"{k}.npz", **data | {key: data[key] / 2 for key in ("y_train", "y_test")})
    family = Folder(str(tmp_path), val=0.0, test=0.0)
    assert family.objective == SquaredError((1,))
    assert family.draw("train", 0, 8, 6, 4)[0].y.dtype == torch.float32
    # One number for each input may be [N, 1] in some files.
    data = arrays(seed=3)
    np.savez(tmp_path / "3.npz", **data | {key: data[key][:, None] / 2 for key in ("y_train", "y_test")})
    assert Folder(str(tmp_path), val=0.0, test=0.0).draw("train", 0, 8, 6, 4)[0].y.shape == (8, 6, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "problem-007.npz: lacks y_test"),
        ({"x_train": np.zeros((6, 4))}, "problem-007.npz: x_train has examples of shape"),
        ({"y_train": np.zeros(5, dtype=int)}, "problem-007.npz: y_train has 5 targets for 6 inputs"),
        ({"y_train": np.zeros(6)}, "problem-007.npz: y_train has the dtype float64"),
        ({"x_train": np.zeros((0, 5)), "y_train": np.zeros(0, dtype=int)}, "at least one example"),
        ({"x_test": np.array([{}] * 4, dtype=object)}, "problem-007.npz: x_test has the dtype object"),
        ({"x_test": np.array(["a"] * 4)}, "expected numbers"),
    ],
)
def test_broken_file_is_named_with_its_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Folder(str(folder(tmp_path, **changes)))


def test_every_part_gets_a_file_where_there_are_few(tmp_path: Path) -> None:
    for k in range(3):
        np.savez(tmp_path / f"{k}.npz", **arrays(seed=k))
    family = Folder(str(tmp_path))
    assert [family.count(which) for which in ("train", "val", "test")] == [1, 1, 1]


def test_header_that_claims_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    file = folder(tmp_path) / "problem-003.npz"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for claimed, message in (((10**9, 5), "more than 2147483648 bytes"), ((10**6, 5), "the file is damaged")):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f8", "fortran_order": False, "shape": claimed}
        )
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, header.getvalue() if name == "x_train.npy" else content)
        with pytest.raises(ValueError, match=rf"problem-003.npz: x_train has .*{message}"):
            Folder(str(tmp_path))


def test_array_of_noise_is_named(tmp_path: Path) -> None:
    file = folder(tmp_path) / "problem-003.npz"
    with zipfile.ZipFile(file, "w") as archive:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{key}.npy", b"no array at all")
    with pytest.raises(ValueError, match=r"problem-003.npz: is no .npz file, or a damaged one"):
        Folder(str(tmp_path))


def test_labels_outside_of_the_classes_are_named(tmp_path: Path) -> None:
    path = str(folder(tmp_path, y_test=np.array([0, 1, -1, 2])))
    with pytest.raises(ValueError, match=r"problem-007.npz: y_test: got labels from -1 to 2"):
        Folder(path, val=0.0, test=0.0).draw("train", 0, 20, 9, 9)
    with pytest.raises(ValueError, match=r"y_train: got labels from 0 to 2 in y, expected .* 0 to 1"):
        Folder(path, CrossEntropy(2).to_config(), val=0.0, test=0.0).draw("train", 0, 20, 9, 9)


def test_numbers_too_large_for_float32_are_named(tmp_path: Path) -> None:
    family = Folder(str(folder(tmp_path, x_test=np.full((4, 5), 1e200))), val=0.0, test=0.0)
    with pytest.raises(ValueError, match=r"problem-007\.npz: x_test has NaN or infinite"):
        family.draw("train", 0, 20, 6, 4)


def test_folder_without_data_is_what_a_checkpoint_knows(tmp_path: Path) -> None:
    config = Folder(str(folder(tmp_path))).to_config()
    del config["path"]
    family = make_problem_family(**config)
    assert family.input_shape == (5,) and family.objective == CrossEntropy(3)
    assert family.count("train") == 0
    with pytest.raises(ValueError, match="has no data: it comes from a checkpoint"):
        family.draw("train", 0, 1, 1, 1)
    with pytest.raises(ValueError, match="objective, input_shape: got None, None"):
        Folder()
    with pytest.raises(ValueError, match=r"input_shape: got \(4,\), but the inputs of the data"):
        Folder(str(tmp_path), input_shape=[4])


def test_truncated_file_is_named(tmp_path: Path) -> None:
    file = folder(tmp_path) / "problem-003.npz"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"problem-003.npz: is no .npz file"):
        Folder(str(tmp_path))


def test_values_that_cannot_be_used_are_named_when_read(tmp_path: Path) -> None:
    family = Folder(str(folder(tmp_path, x_train=np.full((6, 5), np.nan))), val=0.0, test=0.0)
    with pytest.raises(ValueError, match=r"problem-007\.npz: x_train has NaN"):
        family.draw("train", 0, 20, 6, 4)


def test_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.npz files"):
        Folder(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder"):
        Folder(str(tmp_path / "nowhere"))
