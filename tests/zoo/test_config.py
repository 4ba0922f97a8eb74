from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from amortopt.zoo import ZooConfig
from amortopt.zoo.config import draw_split, draw_table

CONFIG = ZooConfig(count=2000, seed=1, epochs=4, val_fraction=0.2, test_fraction=0.1)


def test_draw_table_stays_in_the_ranges_and_fills_them() -> None:
    table = draw_table(CONFIG)
    for name, (low, high) in (("learning_rate", CONFIG.learning_rate), ("init_scale", CONFIG.init_scale)):
        logs = np.log(table[name] / low) / np.log(high / low)
        assert 0 <= logs.min() < 0.01 and 0.99 < logs.max() <= 1
        assert abs(logs.mean() - 0.5) < 0.03  # log-uniform, not uniform
    assert np.bincount(table["epochs"]).min() > 0.15 * 2000 and set(table["epochs"]) == {0, 1, 2, 3, 4}
    assert len(set(table["seed"])) == 2000


def test_draw_table_of_a_part_is_the_part_of_the_table() -> None:
    whole, part = draw_table(CONFIG), draw_table(CONFIG, 700, 750)
    longer = draw_table(replace(CONFIG, count=3000), 700, 750)
    for name in whole:
        assert np.array_equal(whole[name][700:750], part[name])
        assert np.array_equal(part[name], longer[name])


def test_draw_table_depends_on_the_zoo_seed() -> None:
    one, other = draw_table(CONFIG), draw_table(replace(CONFIG, seed=2))
    assert not set(one["seed"]) & set(other["seed"])


def test_draw_table_draws_epochs_from_a_list() -> None:
    table = draw_table(replace(CONFIG, epochs=[0, 7, 50]))
    assert set(table["epochs"]) == {0, 7, 50}


@pytest.mark.parametrize("count", [50, 333, 2000])
def test_draw_split_keeps_the_fractions_at_any_count(count: int) -> None:
    split = draw_split(CONFIG, np.arange(count))
    for name, fraction in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        assert abs((split == name).sum() - fraction * count) <= 3


@pytest.mark.parametrize(
    "change, named",
    [
        ({"count": 0}, "count: got 0"),
        ({"learning_rate": (0.1, 0.01)}, "learning_rate: got"),
        ({"init_scale": (0.0, 1.0)}, "init_scale: got"),
        ({"epochs": -1}, "epochs: got -1"),
        ({"epochs": []}, "epochs: got"),
        ({"momentum": 1.0}, "momentum: got 1.0"),
        ({"l1": float("nan")}, "l1: got nan"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "val_fraction"),
        ({"problem": {"seed": 3}}, "problem: got"),
    ],
)
def test_zoo_config_names_a_bad_value(change, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ZooConfig(**change)


def test_zoo_config_names_a_typo_in_the_family() -> None:
    with pytest.raises(ValueError, match=r"family: .*wdiths"):
        ZooConfig(family={"name": "mlp", "wdiths": [40, 10]}).make_family()


def test_zoo_config_fills_in_defaults_before_comparing() -> None:
    short = ZooConfig(family={"name": "mlp"}).to_dict()
    long = ZooConfig(family={"name": "mlp", "activation": "tanh", "widths": [40, 32, 32, 10]}).to_dict()
    assert short == long
