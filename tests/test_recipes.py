"""Every recipe parses, builds and runs, and its opening comment shows how."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from amortopt.checkpoints import load_release
from amortopt.cli import main
from amortopt.zoo import load_zoo

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.yaml"))
ZOOS = [path for path in RECIPES if path.startswith("recipes/zoo/")]
FITS = [path for path in RECIPES if path not in ZOOS]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # recipes name other recipes from there


@pytest.fixture(scope="module")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Zoo recipe -> a tiny zoo, built when asked for first."""
    return {path: tmp_path_factory.mktemp("zoos") / Path(path).stem for path in ZOOS}


def tiny_zoo(path: str, zoos: dict[str, Path]) -> Path:
    small = ["--count", "12", "--epochs", "[0,1]", "--val_fraction", "0.2", "--test_fraction", "0.2"]
    if not zoos[path].exists():
        build = ["zoo", "build", "--config", path, "--out", str(zoos[path]), "--progress", "false"]
        assert main([*build, *small]) == 0
    return zoos[path]


def test_there_are_recipes_of_both_kinds() -> None:
    assert ZOOS and FITS


@pytest.mark.parametrize("path", RECIPES)
def test_recipe_opens_with_its_own_command(path: str) -> None:
    text = Path(path).read_text(encoding="utf-8")
    header = text[: re.search(r"^[^#]", text, re.MULTILINE).start()]  # pyright: ignore[reportOptionalMemberAccess]
    commands = [line[1:].split() for line in header.splitlines() if line.startswith("#   ")]
    job = ["amortopt", "zoo", "build"] if path in ZOOS else ["amortopt", "fit"]
    assert commands[0][: len(job) + 2] == [*job, "--config", path]
    assert any("--" in option for command in commands[1:] for option in command), "no override is shown"
    assert all(path in command for command in commands)
    assert "Measured" in header


@pytest.mark.parametrize("path", ZOOS)
def test_zoo_recipe_builds(path: str, zoos: dict[str, Path]) -> None:
    recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    zoo = load_zoo(tiny_zoo(path, zoos))
    assert len(zoo) == 12
    assert zoo.config["family"] == zoo.config["family"] | recipe["family"]


@pytest.mark.parametrize("path", FITS)
def test_fit_recipe_takes_a_step(path: str, zoos: dict[str, Path], tmp_path: Path) -> None:
    recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    zoo = tiny_zoo(recipe["data"]["zoo_recipe"], zoos)
    assert recipe["data"]["zoo"] == f"zoos/{Path(recipe['data']['zoo_recipe']).stem}"
    small = [
        *("--model.metanet.width", "8", "--model.metanet.channels", "2", "--model.metanet.heads", "2"),
        *("--data.networks", "2", "--data.examples", "8", "--trainer.max_steps", "1"),
        *("--trainer.enable_progress_bar", "false", "--data.zoo", str(zoo), "--runs", str(tmp_path)),
    ]
    assert main(["fit", "--config", path, *small]) == 0
    release = load_release(tmp_path / recipe["name"] / "release")
    assert release.name == recipe["name"] == Path(path).stem.replace("_", "-")
    assert release.results["training"]["steps"] == 1
