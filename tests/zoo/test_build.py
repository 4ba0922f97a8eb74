from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import Progress

from amortopt.tasks import init_many
from amortopt.zoo import ZooConfig, build, build_zoo, load_zoo
from amortopt.zoo.config import draw_table

CONFIG = ZooConfig(
    family={"name": "mlp", "activation": "tanh", "widths": [40, 8, 10]},
    count=11,
    seed=7,
    epochs=[0, 1, 2],
    batch_size=500,
    shard_size=4,
)


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "z"
    assert build_zoo(CONFIG, folder) == []
    return folder


@pytest.fixture
def zoo_copy(built: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for name, data in shard_bytes(built).items():
        (folder / name).write_bytes(data)
    return folder


def test_build_zoo_gives_the_same_bits_twice(built: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # the global random state has no say
    build_zoo(CONFIG, tmp_path / "again")
    assert shard_bytes(tmp_path / "again") == shard_bytes(built)


def test_build_zoo_gives_the_same_bits_sharded(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    assert build_zoo(CONFIG, folder, shard="2/2") == [1, 3]
    with pytest.raises(FileNotFoundError, match="shards 1, 3 of 3 missing; run the same"):
        load_zoo(folder)
    assert build_zoo(CONFIG, folder, shard="1/2") == []
    assert shard_bytes(folder) == shard_bytes(built)


def test_build_zoo_gives_about_the_same_networks_in_other_shards(built: Path, tmp_path: Path) -> None:
    build_zoo(replace(CONFIG, shard_size=11), tmp_path / "one")
    one, three = load_zoo(tmp_path / "one"), load_zoo(built)
    for name in one.params:
        torch.testing.assert_close(one.params[name], three.params[name], rtol=1e-4, atol=1e-5)


def test_build_zoo_keeps_the_global_random_state(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_zoo(replace(CONFIG, count=2, epochs=[1], input_noise=0.1), tmp_path / "z")
    assert torch.equal(torch.rand(3), expected)


def test_untrained_networks_equal_their_initialisation(built: Path) -> None:
    zoo = load_zoo(built)
    untrained = zoo.select(zoo.table["epochs"] == 0)
    assert len(untrained) < len(zoo)
    start = init_many(zoo.family.build, untrained.table["seed"], untrained.table["init_scale"].tolist())
    assert all(torch.equal(untrained.params[name], start[name]) for name in start)


def test_training_lowers_the_loss(built: Path) -> None:
    zoo = load_zoo(built)
    trained = zoo.table["epochs"] == 2
    assert zoo.table["train_loss"][trained].mean() < zoo.table["train_loss"][zoo.table["epochs"] == 0].mean()


def test_zoo_rebuilds_a_deleted_shard(zoo_copy: Path, built: Path) -> None:
    (zoo_copy / "shard-00002-of-00003.safetensors").unlink()
    (zoo_copy / ".shard-00002-of-00003.safetensors.host-1.tmp").write_bytes(b"half")
    with pytest.raises(FileNotFoundError, match="incomplete: shard 2 of 3 missing"):
        load_zoo(zoo_copy)
    untouched = (zoo_copy / "shard-00001-of-00003.safetensors").stat().st_mtime_ns
    build_zoo(CONFIG, zoo_copy)
    assert shard_bytes(zoo_copy) == shard_bytes(built)  # and the leftover is gone
    assert (zoo_copy / "shard-00001-of-00003.safetensors").stat().st_mtime_ns == untouched


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_damaged_shard_is_refused_and_rebuilt(zoo_copy: Path, built: Path, damage: str) -> None:
    path = zoo_copy / "shard-00003-of-00003.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data[:-100] if damage == "truncate" else data)
    with pytest.raises(ValueError, match=r"shard-00003-of-00003.safetensors was truncated or altered"):
        load_zoo(zoo_copy)
    with pytest.warns(UserWarning, match="building a shard anew"):
        build_zoo(CONFIG, zoo_copy)
    assert shard_bytes(zoo_copy) == shard_bytes(built)


def test_altered_table_is_refused(zoo_copy: Path) -> None:
    path = zoo_copy / "shard-00001-of-00003.json"
    record = json.loads(path.read_text())
    record["table"]["split"] = ["test"] * 4
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"shard-00001-of-00003.json was altered"):
        load_zoo(zoo_copy)


def test_damaged_manifest_is_refused(zoo_copy: Path) -> None:
    (zoo_copy / "zoo.json").write_text('{"format": 1,')
    with pytest.raises(ValueError, match=r"zoo.json is damaged"):
        load_zoo(zoo_copy)


def test_shard_of_another_zoo_is_refused(zoo_copy: Path, tmp_path: Path) -> None:
    build_zoo(replace(CONFIG, seed=8), tmp_path / "other", shard="1/3")
    for suffix in ("json", "safetensors"):
        name = f"shard-00001-of-00003.{suffix}"
        (zoo_copy / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ValueError, match="belongs to a zoo of another recipe"):
        load_zoo(zoo_copy)


def test_other_recipe_is_refused_with_the_differing_keys(zoo_copy: Path) -> None:
    before = shard_bytes(zoo_copy)
    other = replace(CONFIG, l1=1e-3, family=CONFIG.family | {"activation": "relu"})
    with pytest.raises(ValueError, match=r"(?s)family.activation: 'tanh' there, 'relu' asked.*l1: 0.0 there"):
        build_zoo(other, zoo_copy)
    assert shard_bytes(zoo_copy) == before


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="is not empty and holds no zoo"):
        build_zoo(CONFIG, tmp_path)


def test_folder_without_a_zoo_is_refused_by_the_reader(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no zoo"):
        load_zoo(tmp_path)


def test_family_that_does_not_fit_the_problem_is_refused(tmp_path: Path) -> None:
    config = replace(CONFIG, family={"name": "mlp", "widths": [39, 10]})
    with pytest.raises(ValueError, match=r"takes inputs of shape \(39,\)"):
        build_zoo(config, tmp_path / "z")
    assert not (tmp_path / "z").exists()


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b", "1/0"])
def test_bad_shard_is_refused(tmp_path: Path, shard: str) -> None:
    with pytest.raises(ValueError, match="shard: got"):
        build_zoo(CONFIG, tmp_path / "z", shard=shard)


def test_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "z"
    build_zoo(CONFIG, folder, shard="1/3")
    before = shard_bytes(folder)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"shard-00002.*No space left on device.*make room") as caught:
            build_zoo(CONFIG, folder)
    assert caught.value.errno == errno.ENOSPC
    assert shard_bytes(folder) == before
    assert build_zoo(CONFIG, folder) == []


def test_killed_build_is_resumed_to_the_same_bits(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    # The child is slowed down between shards, so that the kill falls into the middle of the work.
    child = (
        "import sys, time; from pathlib import Path\n"
        "import amortopt.zoo.build as b; from amortopt.zoo import ZooConfig\n"
        "write = b.write_shard\n"
        "def slow(folder, manifest, shard, *rest, **notes):\n"
        "    if shard == 2:\n"
        "        (folder / f'.{manifest.stem(2)}.safetensors.here-1.tmp').write_bytes(b'half')\n"
        "        time.sleep(60)\n"
        "    write(folder, manifest, shard, *rest, **notes)\n"
        "b.write_shard = slow\n"
        f"b.build_zoo({CONFIG!r}, Path(sys.argv[1]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", child, str(folder)])
    try:
        deadline = time.monotonic() + 60
        while (
            not list(folder.glob(".shard-00002*")) and process.poll() is None and time.monotonic() < deadline
        ):
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pytest.raises(FileNotFoundError, match="incomplete: shards 2, 3 of 3 missing"):
        load_zoo(folder)
    build_zoo(CONFIG, folder)
    assert shard_bytes(folder) == shard_bytes(built)


def test_progress_of_a_resumed_build_counts_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = []
    monkeypatch.setattr(build, "progress_bar", lambda _: bars.append(Progress(disable=True)) or bars[-1])
    whole = int(draw_table(CONFIG)["epochs"].sum())
    for part, parts in ((1, 3), (1, 1), (1, 1)):
        build_zoo(CONFIG, tmp_path / "z", shard=f"{part}/{parts}")
    shares, descriptions = (
        [(bar.tasks[0].completed, bar.tasks[0].total) for bar in bars],
        bars[1].tasks[0],
    )
    assert shares[1:] == [(whole, whole)] * 2 and 0 < shares[0][1] < whole
    assert descriptions.description == "shard 3/3"


def test_diverged_networks_are_marked_and_left_out(tmp_path: Path) -> None:
    config = replace(CONFIG, count=4, epochs=[0, 3], learning_rate=(1e38, 1e38), weight_decay=1e30)
    build_zoo(config, tmp_path / "z")
    everything = load_zoo(tmp_path / "z", keep_diverged=True)
    diverged = everything.table["epochs"] > 0
    assert 0 < diverged.sum() < 4
    assert np.array_equal(everything.table["finite"], ~diverged)
    assert np.array_equal(load_zoo(tmp_path / "z").table["index"], np.flatnonzero(~diverged))


@pytest.mark.parametrize("device", ["meta", "cuda:77", "nowhere", 7, None])
def test_a_device_that_cannot_be_used_is_refused_before_building(tmp_path: Path, device: Any) -> None:
    with pytest.raises(ValueError, match=r"device: got .*, which PyTorch cannot use here"):
        build_zoo(CONFIG, tmp_path / "zoo", device=device)
    assert not (tmp_path / "zoo").exists()
