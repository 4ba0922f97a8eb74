from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from amortopt import load_release
from amortopt.functional.networks import l1_norm
from amortopt.meta.fit import main
from amortopt.meta.one_pass.module import OnePassModule
from amortopt.metanets import L1Range
from amortopt.optim import ScaleGMNOptimizer
from amortopt.tasks import evaluate_many
from amortopt.zoo import load_zoo

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
    for name, value in release.module.state_dict().items():
        assert torch.equal(value, saved[f"average.{name}"])
    for name, value in release.module.named_parameters():
        assert name.endswith("gate") or not torch.equal(value, saved[f"metanet.{name}"]) or not value.any()
    assert release.name == "tiny"
    assert release.family["widths"] == [40, 6, 10]
    assert release.recipe["data"]["networks"] == 3  # pyright: ignore[reportArgumentType]
    assert release.results["training"]["steps"] == 10
    assert 0 < release.results["after"]["mean_accuracy"] < 1


def test_fit_stopped_by_time_releases_and_prints_it(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(fit_args(recipe, tmp_path, "--trainer.max_steps", "100000", "--trainer.max_time", "00:00:00:02"))
    saved = state(tmp_path)
    assert 0 < saved["global_step"] < 100_000
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 0.005
    assert (tmp_path / "tiny" / "release" / "model.safetensors").is_file()
    assert "stopped by trainer.max_time before step 100000" in capsys.readouterr().out


def test_fit_of_a_recipe_and_seed_gives_the_same_bits(recipe: Path, tmp_path: Path) -> None:
    args = ["--model.metanet.conditions", "[l1]", "--data.l1", "[1e-4,1e-2]"]
    for run, limit in (("one", "null"), ("two", "00:00:10:00")):
        main(fit_args(recipe, tmp_path / run, *args, "--trainer.max_time", limit))
    one, two = (state(tmp_path / run)["state_dict"] for run in ("one", "two"))
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def test_fit_logs_to_csv(recipe: Path, tmp_path: Path) -> None:
    main(fit_args(recipe, tmp_path))
    with (tmp_path / "tiny" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {"train_loss", "rate", "val_loss", "val_accuracy", "val_accuracy_raw", "train_accuracy"}
    assert logged <= rows[0].keys()
    assert sum(bool(row["val_accuracy"]) for row in rows) == 2


def test_fit_logs_each_end_of_the_strengths_and_releases_their_table(recipe: Path, tmp_path: Path) -> None:
    args = ["--model.metanet.conditions", "[l1]", "--data.l1", "[1e-4,1e-2]", "--model.passes", "2"]
    main(fit_args(recipe, tmp_path, *args))
    with (tmp_path / "tiny" / "version_0" / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    for at in ("low", "mid", "high"):
        assert {f"val_objective_l1_{at}", f"val_accuracy_l1_{at}", f"val_cut_l1_{at}"} <= set(columns)
    release = load_release(tmp_path / "tiny" / "release")
    assert release.l1_range == L1Range(1e-4, 1e-2, zero=True) and release.passes == 2
    table = release.results["by l1"]
    assert list(table) == ["0", "0.0001", "0.00032", "0.001", "0.0032", "0.01"]
    assert table["0"]["mean_accuracy"] == release.results["after"]["mean_accuracy"]
    row = table["0.01"]
    assert row["mean_objective"] > row["mean_loss"] and row["mean_l1_cut"] < 1
    assert release.card is not None
    for text in ("| by l1 |", "| 0.00032 |", "trained for 0 and 0.0001 to 0.01", "applied 2 times in a row"):
        assert text in release.card


@pytest.mark.filterwarnings("ignore::amortopt.optim.networks.OutOfFamilyWarning")
def test_fit_release_reproduces_its_own_results(recipe: Path, tmp_path: Path) -> None:
    args = ["--model.metanet.conditions", "[batch,l1]", "--data.l1", "[1e-4,1e-2]", "--model.passes", "2"]
    main(fit_args(recipe, tmp_path, *args))
    opt = ScaleGMNOptimizer.from_pretrained(tmp_path / "tiny" / "release")
    assert opt.problem is not None and opt.family is not None
    zoo = load_zoo(recipe.parent / "zoo", "test")
    train, test = opt.problem.split("train"), opt.problem.split("test")
    new = opt.one_shot_params(zoo.params, batch=(train.x[:1000], train.y[:1000]), l1=1e-2)
    loss, accuracy = evaluate_many(opt.family.build(), new, test, opt.problem.objective)
    row = load_release(tmp_path / "tiny" / "release").results["by l1"]["0.01"]
    assert row["mean_loss"] == pytest.approx(loss.mean().item(), rel=1e-5)
    assert row["mean_accuracy"] == pytest.approx(accuracy.mean().item(), abs=1e-3)
    assert row["mean_l1_cut"] == pytest.approx(
        (1 - l1_norm(new) / l1_norm(zoo.params)).mean().item(), abs=1e-5
    )
    assert row["mean_objective"] == pytest.approx((loss + 1e-2 * l1_norm(new)).mean().item(), rel=1e-5)
