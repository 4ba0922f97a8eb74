"""Draws of functionals follow seed and step alone; targets that teach nothing are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from amortopt.meta.functional.data import NetworksDataModule
from amortopt.metanets import Classes, Head, Regression
from amortopt.symmetry import extract
from amortopt.tasks import init_many
from amortopt.zoo import Zoo

FAMILY = {"name": "mlp", "activation": "tanh", "widths": [40, 6, 10]}
COUNT = 24


def _data(values: Any, seed: int = 0, **options: Any) -> NetworksDataModule:
    data = NetworksDataModule("nowhere", label="label", networks=5, seed=seed, **options)
    config = {"problem": {"name": "mnist1d"}, "family": FAMILY}
    split = np.array(["train"] * 16 + ["val"] * 4 + ["test"] * 4)
    zoo = Zoo({}, {"index": np.arange(COUNT), "label": np.asarray(values), "split": split}, config)
    params = init_many(zoo.family.build, range(COUNT))
    data._zoo = Zoo(params, zoo.table, config)
    return data


def _drawn(data: NetworksDataModule, step: int) -> torch.Tensor:
    spec = extract(data.family.build(), data.family.example_input())
    return data.draw(step, spec).params["0.weight"]


def test_draws_are_a_function_of_seed_and_step() -> None:
    values = np.linspace(0, 1, COUNT)
    first, again, other = (_data(values, seed, augment={"noise": 0.1}) for seed in (0, 0, 1))
    for data in (first, again, other):
        data.prepare(Regression())
    _drawn(again, 7)
    for step in (0, 3, 9):
        assert torch.equal(_drawn(first, step), _drawn(again, step))
        assert not torch.equal(_drawn(first, step), _drawn(other, step))


def test_draws_take_every_network_once_before_any_again() -> None:
    data = _data(np.arange(COUNT) / COUNT)
    data.prepare(Regression())
    spec = extract(data.family.build(), data.family.example_input())
    labels = torch.cat([data.draw(step, spec).labels for step in range(16)])  # 80 = 5 epochs of 16
    for epoch in labels.split(16):
        assert len(epoch.unique()) == 16


@pytest.mark.parametrize(
    ("values", "head", "message"),
    [
        ([0, 1] * 8 + [0, 1, 2, 1] + [0] * 4, Classes(3), r"val networks have the classes \[2\], which no"),
        ([0, 1] * 8 + [0, 1, 0, 1] + [2] * 4, Classes(3), r"test networks have the classes \[2\], which no"),
        ([1] * 24, Classes(3), "column 'label' is 1 for all 16 train networks"),
        ([0.5] * 16 + [0.1] * 8, Regression(), "column 'label' is 0.5 for all 16 train networks"),
        ([0, 5] * 12, Classes(3), "labels: got 0 to 5, expected 0 to 2: the head has 3 classes"),
        ([0.1, 0.9] * 8 + [2.0] * 8, Regression(low=0, high=1), "targets: got 2 to 2, expected numbers in"),
        ([0.1, np.nan] * 12, Regression(), "column 'label' is missing or not finite for"),
    ],
)
def test_targets_are_checked_before_training(values: list[float], head: Head, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _data(values).prepare(head)
