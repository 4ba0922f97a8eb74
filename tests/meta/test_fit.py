from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from amortopt.checkpoints import load_release
from amortopt.meta.cli import main
from amortopt.meta.module import OnePassModule

from .tiny import fit_args, write_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


def state(folder: Path) -> dict:
    return torch.load(folder / "tiny" / "last.ckpt", weights_only=True)


def test_fit_resumed_after_a_crash_gives_the_same_bits(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(fit_args(recipe, tmp_path / "whole"))
    step = OnePassModule.training_step

    def crash(self: OnePassModule, batch: object, batch_idx: int) -> torch.Tensor:
        if self.global_step == 7:
            raise RuntimeError("crash")
        return step(self, batch, batch_idx)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as m, pytest.raises(RuntimeError, match="crash"):
        m.setattr(OnePassModule, "training_step", crash)
        main(fit_args(recipe, tmp_path / "parts"))
    assert state(tmp_path / "parts")["global_step"] == 5
    main(fit_args(recipe, tmp_path / "parts", "--ckpt_path", "last"))

    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert whole["global_step"] == parts["global_step"] == 10
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name]), name
    torch.testing.assert_close(
        whole["optimizer_states"][0]["state"], parts["optimizer_states"][0]["state"], rtol=0, atol=0
    )


def test_fit_release_holds_the_average_and_what_made_it(recipe: Path, tmp_path: Path) -> None:
    main(fit_args(recipe, tmp_path, "--out", str(tmp_path / "out")))
    release, saved = load_release(tmp_path / "out"), state(tmp_path)["state_dict"]
    for name, value in release.metanet.state_dict().items():
        assert torch.equal(value, saved[f"average.{name}"])
        assert name.endswith("gate") or not torch.equal(value, saved[f"metanet.{name}"]) or not value.any()
    assert release.name == "tiny"
    assert release.family["widths"] == [40, 6, 10]
    assert release.recipe["data"]["networks"] == 3  # pyright: ignore[reportArgumentType]
    assert release.results["training"]["steps"] == 10
    assert 0 < release.results["after"]["mean_accuracy"] < 1


def test_fit_stops_in_time_and_decays_the_rates(recipe: Path, tmp_path: Path) -> None:
    main(fit_args(recipe, tmp_path, "--trainer.max_steps", "-1", "--trainer.max_time", "00:00:00:02"))
    saved = state(tmp_path)
    factor = saved["optimizer_states"][0]["param_groups"][0]["lr"] / 0.02
    assert saved["global_step"] > 10
    assert 0.02 <= factor < 0.5
    assert (tmp_path / "tiny" / "release" / "model.safetensors").is_file()


def test_fit_logs_to_csv(recipe: Path, tmp_path: Path) -> None:
    main(fit_args(recipe, tmp_path))
    with (tmp_path / "tiny" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {"train_loss", "rate", "val_loss", "val_accuracy", "val_accuracy_raw", "train_accuracy"}
    assert logged <= rows[0].keys()
    assert sum(bool(row["val_accuracy"]) for row in rows) == 2
