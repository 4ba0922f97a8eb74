from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from amortopt.cli.zoo import build_parser
from amortopt.zoo import ZooConfig, build_zoo, load_zoo
from tests.tasks import archives

RECIPES = sorted(
    path
    for path in (Path(__file__).parents[2] / "recipes" / "zoo").rglob("*.yaml")
    if not path.stem.startswith("cnn_")  # those are for another command
)
# Problems whose data would have to be downloaded -> what writes a small set in their format.
STAND_INS: dict[str, Callable[[Path], Any]] = {
    "cifar10_gray": archives.write_cifar10,
    "svhn_gray": archives.write_svhn,
    "fashion_mnist": lambda root: archives.write_idx(root, "FashionMNIST", packed=True),
}


def read(parser: ArgumentParser, recipe: Path) -> ZooConfig:
    parsed = parser.parse_args(["--config", str(recipe)]).as_dict()
    return ZooConfig(**{key: parsed[key] for key in ZooConfig.__dataclass_fields__})


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 2


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_builds_two_networks(recipe: Path, tmp_path: Path) -> None:
    config = replace(read(build_parser(), recipe), count=2, epochs=1)
    if config.problem["name"] in STAND_INS:
        assert config.problem["download"] is True
        STAND_INS[config.problem["name"]](tmp_path / "data")
        config = replace(config, problem=config.problem | {"root": str(tmp_path / "data"), "download": False})
    build_zoo(config, tmp_path / "z")
    assert len(load_zoo(tmp_path / "z")) == 2


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_family_has_the_expected_size(recipe: Path) -> None:
    config = read(build_parser(), recipe)
    family, problem = config.make_family(), config.make_problem()
    inputs = math.prod(problem.input_shape)
    expected = 1802 if len(problem.input_shape) == 2 else 4970  # the Small CNN Zoo's shape in 1-D and 2-D
    if family.name == "mlp":
        expected = (inputs + 1) * 32 + 33 * 32 + 33 * 10
    assert family.input_shape == problem.input_shape
    assert sum(p.numel() for p in family.build().parameters()) == expected


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_that_downloads_says_so(recipe: Path) -> None:
    text = recipe.read_text()
    assert ("download: true" in text) == ("The data must be downloaded" in text)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_opens_with_its_command_and_time(recipe: Path) -> None:
    lines = recipe.read_text().splitlines()
    comment = "\n".join(line for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")])
    assert f"amortopt zoo build --config {recipe.stem} --out" in comment
    assert "--count" in comment and "cores" in comment
