"""Predictors on a user's networks: any class and width of the family, errors that name the difference."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import amortopt
from amortopt import FamilyMismatchError, OutOfFamilyWarning, Release, save_release
from amortopt.metanets import make
from amortopt.reading import Predictor, load, predict
from amortopt.reading.sizes import measure_sizes
from amortopt.symmetry import act, extract, sample
from amortopt.tasks import init_many, make_family
from tests.releases import make_release

FAMILY = make_family("mlp", activation="tanh", widths=(5, 4, 3))
SPEC = extract(FAMILY.build(), FAMILY.example_input())


class Mine(nn.Module):
    """The family, under other names and with functional calls."""

    def __init__(self, hidden: int = 4) -> None:
        super().__init__()
        self.out, self.inside = nn.Linear(hidden, 3), nn.Linear(5, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.inside(x).tanh())


def _release(head: dict[str, Any], results: dict[str, Any] | None = None) -> Release:
    torch.manual_seed(0)
    functional = make("unf_functional", SPEC, head=head, width=3, layers=1, hidden=4)
    if head["name"] == "classes":
        functional.head.observe(torch.arange(head["count"]))
    return Release(functional, "mine", [{"family": FAMILY.to_config()}], results=results or {})


def test_predictor_reads_any_class_of_the_family() -> None:
    predictor = Predictor(_release({"name": "regression"}))
    mine, plain = Mine(), FAMILY.build()
    weights = mine.inside.weight, mine.inside.bias, mine.out.weight, mine.out.bias
    plain.load_state_dict(dict(zip(("0.weight", "0.bias", "2.weight", "2.bias"), weights, strict=True)))
    one, other = predictor(mine), predictor(plain)
    assert one == other and one.low is None
    assert [p.value for p in predictor([mine, plain])] == pytest.approx([one.value, one.value])


def test_predictor_other_widths_warn() -> None:
    predictor = Predictor(_release({"name": "regression"}))
    with pytest.warns(OutOfFamilyWarning, match="has 7 units, the family 4"):
        many = predictor([Mine(7), Mine()])
    assert len(many) == 2


def test_predictor_interval_stays_in_the_heads_interval() -> None:
    calibration = {"calibration": {"coverage": 0.9, "radius": 0.8, "networks": 50}}
    prediction = Predictor(_release({"name": "regression", "low": 0.0, "high": 1.0}, calibration))(Mine())
    assert prediction.low == 0 and prediction.high == 1 and prediction.coverage == 0.9
    assert "90 % interval 0 to 1" in str(prediction)


def test_predictor_of_classes_lists_those_it_cannot_rule_out() -> None:
    wide = {"calibration": {"coverage": 0.9, "radius": 1.0, "networks": 50}}
    prediction = Predictor(_release({"name": "classes", "count": 3}, wide))(Mine())
    assert sorted(prediction.labels) == [0, 1, 2] and prediction.labels[0] == prediction.label
    narrow = {"calibration": {"coverage": 0.9, "radius": 0.01, "networks": 50}}
    assert len(Predictor(_release({"name": "classes", "count": 3}, narrow))(Mine()).labels) == 1
    assert str(prediction).startswith(f"class {prediction.label} (probability 0.")


def test_predictor_names_the_difference_of_another_family() -> None:
    predictor = Predictor(_release({"name": "regression"}))
    relu = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(FamilyMismatchError, match=r"models\[1\]: .*tanh expected, got relu"):
        predictor([Mine(), relu])


def test_predictor_names_weights_that_are_not_finite() -> None:
    mine = Mine()
    with torch.no_grad():
        mine.out.bias[1] = torch.inf
    with pytest.raises(ValueError, match=r"parameter 'out\.bias' is NaN or infinite"):
        Predictor(_release({"name": "regression"}))(mine)


def test_load_is_for_every_kind_but_rules(tmp_path: Path) -> None:
    folder = save_release(tmp_path / "mine", _release({"name": "regression"}))
    assert isinstance(load(folder), Predictor)
    mine = Mine()
    assert predict(mine, folder) == amortopt.load(folder)(mine)
    metanet = save_release(tmp_path / "metanet", make_release("metanet"))
    assert callable(load(metanet))
    rule = save_release(tmp_path / "rule", make_release("rule"))
    with pytest.raises(ValueError, match="holds an update rule, which steps a model"):
        load(rule)
    with pytest.raises(FamilyMismatchError, match="no shipped predictor is for such networks"):
        predict(nn.Sequential(nn.Linear(3, 2), nn.GELU(), nn.Linear(2, 7)))


@pytest.mark.parametrize("more", [{"outputs": 2}, {"units": "h1"}])
def test_predictor_refuses_heads_without_one_answer(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected classes or one number"):
        Predictor(_release({"name": "regression"} | more))


def test_predictor_warns_of_weights_of_other_sizes_in_every_gauge() -> None:
    torch.manual_seed(0)
    family = make_family("mlp", activation="relu", widths=(5, 4, 3))
    spec = extract(family.build(), family.example_input())
    trained = {name: 3 * p for name, p in init_many(family.build, range(64)).items()}
    functional = make("unf_functional", spec, head={"name": "regression"}, width=3, layers=1, hidden=4)
    results = {"weight_sizes": measure_sizes(spec, trained)}
    predictor = Predictor(Release(functional, "mine", [{"family": family.to_config()}], results=results))

    def network(factor: float) -> nn.Module:
        model = family.build()
        g = sample(spec, generator=torch.Generator().manual_seed(5), low=0.1, high=10.0)
        params = {name: factor * p.detach() for name, p in model.named_parameters()}
        model.load_state_dict(act(spec, g, params))
        return model

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor([network(3.0) for _ in range(8)])
    with pytest.warns(OutOfFamilyWarning, match=r"models\[1\]: '.*' has root mean square .* trained on have"):
        predictor([network(3.0), network(0.3)])
