from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from amortopt.cli.zoo import build_parser
from amortopt.zoo import ZooConfig, build_zoo, load_zoo
from amortopt.zoo.build import starting_networks

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "zoo").glob("mnist1d_mlp_*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_starting_networks_are_drawn_as_the_recipes_say(recipe: Path, tmp_path: Path) -> None:
    parser: ArgumentParser = build_parser()
    parsed = parser.parse_args(["--config", str(recipe)]).as_dict()
    config = ZooConfig(**{key: parsed[key] for key in ZooConfig.__dataclass_fields__})
    build_zoo(replace(config, count=4), tmp_path / "z")
    expected = load_zoo(tmp_path / "z").params
    start = starting_networks(config.problem, config.family, count=4, seed=config.seed)
    for name, p in start.items():
        torch.testing.assert_close(p, expected[name])
    settings = {key: value for key, value in parsed.items() if key in ZooConfig.__dataclass_fields__}
    shorter = starting_networks(
        config.problem, config.family, count=4, seed=config.seed, recipe=settings | {"epochs": 0}
    )
    assert not torch.equal(shorter["0.weight"], start["0.weight"])
    other = starting_networks(config.problem, config.family, count=4, seed=config.seed + 1)
    assert not torch.allclose(start["0.weight"], other["0.weight"])


def test_starting_networks_refuse_unknown_keys() -> None:
    with pytest.raises(ValueError, match="recipe: got rate, expected keys"):
        starting_networks(
            {"name": "mnist1d"}, {"name": "mlp"}, count=1, seed=0, recipe={"rate": 0.1, "epochs": 0}
        )
