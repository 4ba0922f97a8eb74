"""Steps without finite gradients: left out and counted, until there are too many."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from amortopt import load_release
from amortopt.meta.fit import main
from amortopt.meta.one_pass import module as module_file
from amortopt.meta.one_pass.module import OnePassModule
from tests.meta.tiny import fit_args, write_recipe

STEP = OnePassModule.training_step


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


def state(folder: Path) -> dict:
    return torch.load(folder / "tiny" / "last.ckpt", weights_only=True)


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int, value: float = torch.nan, crash: int = -1) -> None:
    """Make the meta-loss not finite in some steps, and crash in another."""
    loss = OnePassModule.meta_loss

    def broken(self: OnePassModule, *args: object) -> torch.Tensor:
        if self.global_step == crash:
            raise RuntimeError("crash")
        return loss(self, *args) * (value if self.global_step in steps else 1.0)  # pyright: ignore

    monkeypatch.setattr(OnePassModule, "meta_loss", broken)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("clip", ["1.0", "null"])
def test_step_without_finite_gradients_changes_nothing_and_is_counted(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, clip: str
) -> None:
    poison(monkeypatch, 2, 3, value=value)
    args = ["--trainer.gradient_clip_val", clip]
    for name, steps in (("before", "2"), ("after", "4"), ("end", "10")):
        main(fit_args(recipe, tmp_path / name, "--trainer.max_steps", steps, "--model.hold", "1", *args))
    before, after, end = (state(tmp_path / name) for name in ("before", "after", "end"))
    weights = [name for name in before["state_dict"] if name.startswith("metanet.")]
    assert all(torch.equal(before["state_dict"][name], after["state_dict"][name]) for name in weights)
    torch.testing.assert_close(
        before["optimizer_states"][0]["state"], after["optimizer_states"][0]["state"], rtol=0, atol=0
    )
    assert all(p.isfinite().all() for p in end["state_dict"].values())
    assert any(not torch.equal(after["state_dict"][name], end["state_dict"][name]) for name in weights)
    assert end["global_step"] == 10
    assert load_release(tmp_path / "end" / "tiny" / "release").results["training"]["skipped_steps"] == 2
    with (tmp_path / "end" / "tiny" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train_loss"]]
    assert [float(row["skipped_steps"]) for row in rows] == [0, 1, 2, 2, 2]
    # A row is the mean of two steps; those of the second row are the skipped ones.
    assert [float(row["train_loss"]) > 0 for row in rows] == [True, False, True, True, True]


def test_resumed_run_goes_on_counting_and_gives_the_same_bits(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as m:
        poison(m, 2, 4, 8)
        main(fit_args(recipe, tmp_path / "whole"))
    with monkeypatch.context() as m, pytest.raises(RuntimeError, match="crash"):
        poison(m, 2, 4, 8, crash=7)
        main(fit_args(recipe, tmp_path / "parts"))
    assert state(tmp_path / "parts")["skipped_steps"] == [2, 1]
    poison(monkeypatch, 2, 4, 8)
    main(fit_args(recipe, tmp_path / "parts", "--ckpt_path", "last"))
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert whole["skipped_steps"] == parts["skipped_steps"] == [3, 0]
    assert all(torch.equal(p, parts["state_dict"][name]) for name, p in whole["state_dict"].items())


def test_too_many_in_a_row_stop_the_run_and_keep_its_state(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_file, "MOST_SKIPPED", 4)
    poison(monkeypatch, 1, 2, 3, 5, 6, 7, 8)
    with pytest.raises(ValueError, match=r"not finite in 4 steps in a row, up to step 9; lower the learning"):
        main(fit_args(recipe, tmp_path))
    assert state(tmp_path)["global_step"] == 5
    assert not (tmp_path / "tiny" / "release").exists()
