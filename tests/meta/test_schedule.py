from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from amortopt.meta.schedule import param_groups, rate_factor, update_average
from amortopt.training.muon import Muon
from tests.meta.tiny import tiny_module

RATES = {
    "lr": 0.3,
    "prototype_lr": 0.4,
    "scalar_lr": 0.2,
    "correction_lr": 0.1,
    "weight_decay": 0.5,
    "prototype_decay": 0.7,
}


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize(
    "config", [{}, {"conditions": ["batch", "l1"]}, {"respects": "permutation"}], ids=str
)
def test_param_groups_hold_every_parameter_once(activation: str, config: dict) -> None:
    metanet = tiny_module(activation, **config).metanet
    groups = param_groups(metanet, **RATES)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in metanet.parameters())
    Muon(groups)  # takes the shapes


def test_param_groups_give_each_parameter_its_rate_and_decay() -> None:
    metanet = tiny_module().metanet
    names = {id(p): name for name, p in metanet.named_parameters()}
    for group in param_groups(metanet, **RATES):
        assert group["lr"] == group["rate"]
        for p in group["params"]:
            name = names[id(p)]
            if not name.startswith("readout"):
                expected = (0.3, 0.5) if group["muon"] else (0.2, 0.0)
            elif "prototype" in name:
                expected = (0.4, 0.7) if group["muon"] else (0.2, 0.0)
            else:
                expected = (0.1, 0.0)
            assert (group["lr"], group["weight_decay"]) == expected, name


def test_rate_rises_stays_and_falls() -> None:
    total, warmup, hold = 200, 10, 0.5
    factors = [rate_factor(s, s / total, warmup_steps=warmup, hold=hold) for s in range(total + 1)]
    pairs = list(pairwise(factors))
    assert all(0 < f <= 1 for f in factors[:-1])
    assert all(a < b for a, b in pairs[: warmup - 1])
    assert all(f == 1 for f in factors[warmup - 1 : total // 2 + 1])
    assert all(a > b for a, b in pairs[total // 2 :])
    assert factors[150] == pytest.approx(0.5) and factors[-1] == 0


def test_rate_without_warmup_and_without_decay_is_constant() -> None:
    for progress in (0.0, 0.5, 1.0):
        assert rate_factor(0, progress, warmup_steps=0, hold=1.0) == 1


def test_average_equals_slow_reference() -> None:
    module = nn.Linear(3, 2)
    average = copy.deepcopy(module).requires_grad_(False)
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    for step in range(1, 40):
        with torch.no_grad():
            for p in module.parameters():
                p.add_(torch.randn_like(p))
        keep = min(0.8, (step + 1) / (step + 10))
        for name, p in module.named_parameters():
            expected[name] = keep * expected[name] + (1 - keep) * p.detach()
        update_average(average, module, step, 0.8)
    for name, p in average.named_parameters():
        torch.testing.assert_close(p, expected[name])


def test_average_of_what_does_not_move_is_itself() -> None:
    module = nn.Linear(3, 2)
    average = copy.deepcopy(module)
    for step in range(1, 20):
        update_average(average, module, step, 0.998)
    assert torch.equal(average.weight, module.weight)
