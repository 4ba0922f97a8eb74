from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from amortopt.zoo import ZooConfig, build_zoo, load_zoo
from amortopt.zoo.command import build_parser

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "zoo").rglob("*.yaml"))


def read(parser: ArgumentParser, recipe: Path) -> ZooConfig:
    parsed = parser.parse_args(["--config", str(recipe)]).as_dict()
    return ZooConfig(**{key: parsed[key] for key in ZooConfig.__dataclass_fields__})


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 2


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_builds_two_networks(recipe: Path, tmp_path: Path) -> None:
    config = replace(read(build_parser(), recipe), count=2, epochs=1)
    build_zoo(config, tmp_path / "z")
    assert len(load_zoo(tmp_path / "z")) == 2


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_opens_with_its_command_and_time(recipe: Path) -> None:
    lines = recipe.read_text().splitlines()
    comment = "\n".join(line for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")])
    assert f"amortopt zoo build --config recipes/zoo/{recipe.name} --out" in comment
    assert "--count" in comment and "cores" in comment
