"""What `amortopt fit` refuses, and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amortopt import load_release
from amortopt.cli.main import main
from amortopt.meta.one_pass.module import OnePassModule
from tests.meta.tiny import error_of, fit_args, write_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("warmup_steps", "warmup_stepz"),
        ("networks", "network"),
        ("max_steps", "max_step"),
        ("save_every", "save_evry"),
        ("layers", "layer"),
        ("activation", "activatoin"),
        ("model", "modle"),
    ],
)
def test_typo_in_a_recipe_is_named(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], right: str, wrong: str
) -> None:
    mistyped = tmp_path / "recipe.yaml"
    mistyped.write_text(recipe.read_text().replace(f"{right}:", f"{wrong}:", 1))
    message = error_of(fit_args(mistyped, tmp_path / "runs"), capsys)
    assert wrong in message or (right == "model" and "model" in message)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "option",
    ["--model.warmup_stepz", "--data.network", "--trainer.max_step", "--save_evry", "--model.metanet.widht"],
)
def test_typo_on_the_command_line_is_named(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    message = error_of(fit_args(recipe, tmp_path / "runs", option, "3"), capsys)
    assert option.split(".")[-1].strip("-") in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "args, words",
    [
        (["--model.lr", "fast"], ["model.lr", "fast"]),
        (["--model.lr", "-1"], ["lr: got -1.0"]),
        (["--data.networks", "0"], ["networks: got 0"]),
        (["--trainer.max_steps", "-1"], ["trainer.max_steps: got -1", "max_time"]),
        (["--trainer.accumulate_grad_batches", "2"], ["accumulate_grad_batches", "data.networks"]),
        (["--data.l1", "[0.0,1.0]"], ["l1: got 0.0 to 1.0"]),
        (["--data.l1_zero", "1.0"], ["l1_zero: got 1.0"]),
        (["--model.passes", "0"], ["passes: got 0"]),
        (["--save_every", "0"], ["save_every: got 0"]),
        (["--name", "../elsewhere"], ["name: got '../elsewhere'"]),
        (["--ckpt_path", "last"], ["ckpt_path: got 'last'", "tiny/last.ckpt"]),
        (["--ckpt_path", "nothing.ckpt"], ["ckpt_path", "nothing.ckpt"]),
    ],
)
def test_wrong_values_are_named_before_anything_is_made(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: list[str]
) -> None:
    message = error_of(fit_args(recipe, tmp_path / "runs", *args), capsys)
    assert all(word in message for word in words), message
    assert not (tmp_path / "runs").exists()


def test_damaged_state_is_refused(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "last.ckpt"
    state.write_bytes(b"cut off")
    message = error_of(fit_args(recipe, tmp_path / "runs", "--ckpt_path", str(state)), capsys)
    assert "ckpt_path" in message and "last.ckpt" in message and "delete it" in message


def test_state_of_an_earlier_run_is_not_overwritten(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny").mkdir()
    state = tmp_path / "tiny" / "last.ckpt"
    state.write_bytes(b"hours of training")
    assert "--ckpt_path last" in error_of(fit_args(recipe, tmp_path), capsys)
    assert state.read_bytes() == b"hours of training"


def test_out_folder_with_other_files_is_refused_before_training(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    message = error_of(fit_args(recipe, tmp_path / "runs", "--out", str(tmp_path)), capsys)
    assert "notes.txt" in message
    assert not (tmp_path / "runs").exists()


def test_recipe_of_the_package_is_known_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    message = error_of(["--config", "mnist1d_mlp_tahn"], capsys)
    assert "mean 'mnist1d_mlp_tanh'?" in message and "unf_small" in message and "mnist1d_cnn_relu," in message
    message = error_of(["--config=mnist1d_mlp_tanh", "--data.networks", "0"], capsys)
    assert message.startswith("networks: got 0")
    assert not list(tmp_path.iterdir())


def test_missing_and_damaged_recipes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config" in error_of([], capsys)
    assert "missing.yaml" in error_of(["--config", str(tmp_path / "missing.yaml")], capsys)
    assert "--config" in error_of(["--config"], capsys)
    damaged = tmp_path / "damaged.yaml"
    damaged.write_text("model: [\n")
    assert "config" in error_of(["--config", str(damaged)], capsys)


def test_zoo_of_another_family_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(fit_args(recipe, tmp_path, "--model.family.activation", "relu"), capsys)
    assert message.startswith("family: ") and "relu" in message and "tanh" in message


def test_zoo_recipe_for_another_family_builds_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--model.family.widths", "[40,7,10]", "--data.zoo", str(tmp_path / "zoo")]
    message = error_of(fit_args(recipe, tmp_path, *args), capsys)
    assert message.startswith("family: the recipe says widths [40, 7, 10], but the recipe ")
    assert "makes widths [40, 6, 10]" in message
    assert not (tmp_path / "zoo").exists()


def test_zoo_recipe_lies_beside_the_recipe(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["--data.zoo", "zoo", "--trainer.max_steps", "1", "--data.zoo_recipe"]
    message = error_of(fit_args(recipe, tmp_path / "one", *args, "none.yaml"), capsys)
    assert message.startswith("zoo_recipe: got 'none.yaml'") and str(recipe.parent) in message
    assert main(["fit", *fit_args(recipe, tmp_path / "two", *args, "zoo.yaml")]) == 0
    release = load_release(tmp_path / "two" / "tiny" / "release")
    assert release.recipe["data"]["zoo_recipe"] == "zoo.yaml"  # pyright: ignore[reportArgumentType]


def test_strengths_that_are_not_drawn_are_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "data.l1" in error_of(fit_args(recipe, tmp_path, "--model.metanet.conditions", "[l1]"), capsys)


def test_what_is_typed_wins_over_the_recipe_wherever_it_stands(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--data.networks", "0", *fit_args(recipe, tmp_path)]
    assert error_of(args, capsys).startswith("networks: got 0")


def test_release_names_the_commit_at_the_start(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = ["at the start"]
    monkeypatch.setattr("amortopt.meta.fit.commit", lambda: head[0])
    monkeypatch.setattr(OnePassModule, "on_train_start", lambda self: head.__setitem__(0, "later"))
    assert main(["fit", *fit_args(recipe, tmp_path, "--trainer.max_steps", "1")]) == 0
    assert head == ["later"]
    assert load_release(tmp_path / "tiny" / "release").commit == "at the start"


@pytest.mark.parametrize(
    ("option", "value", "key"),
    [
        ("--model.metanet.respects", "permutation", "model.metanet.respects"),
        ("--model.metanet.width", "16", "model.metanet.width"),
        ("--model.passes", "2", "model.passes"),
    ],
)
def test_fit_refuses_to_resume_another_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, key: str
) -> None:
    recipe = write_recipe(tmp_path)
    assert main(["fit", *fit_args(recipe, tmp_path, "--trainer.max_steps", "2")]) == 0
    resumed = fit_args(recipe, tmp_path, "--ckpt_path", "last", "--trainer.max_steps", "4", option, value)
    message = error_of(resumed, capsys)
    assert key in message and value in message and "--name" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fit_without_a_gpu_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = fit_args(write_recipe(tmp_path), tmp_path, "--trainer.accelerator", "gpu")
    assert error_of(args, capsys).startswith("trainer: No supported gpu backend found")
