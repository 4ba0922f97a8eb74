"""What the learned optimizer refuses, and how it says so."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

from amortopt import UNFOptimizer
from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.symmetry import SymmetrySpec, extract
from amortopt.training.muon import Muon
from tests.optim.stepwise import X, any_rule, backward, mlp, optimizer, weights


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lr": -1}, r"lr: got -1, expected"),
        ({"lr": float("nan")}, r"lr: got nan"),
        ({"lr": "fast"}, r"lr: got 'fast'"),
        ({"weight_decay": -0.1}, r"weight_decay: got -0\.1, expected a finite number >= 0"),
        ({"nonfinite": "ignore"}, r"nonfinite: got 'ignore', expected 'skip' or 'raise'"),
        ({"param_groups": []}, r"param_groups: got list, expected dicts in a list"),
        ({"param_groups": {"params": "0.bias"}}, r"param_groups: got dict, expected dicts in a list"),
        ({"param_groups": ["0.weight"]}, r"got '0\.weight' instead of a dict, expected .*\[\{'params': "),
        ({"param_groups": mlp().parameters()}, r"got a Parameter instead of a dict, expected .*'params'"),
        ({"param_groups": [{"params": 3}]}, r"param_groups: got 3 as 'params'"),
        ({"rule": 3}, r"rule: got int, expected a UNFRule"),
        ({"param_groups": [{"lr": 1.0}]}, r"param_groups: got a group without 'params'"),
        (
            {"param_groups": [{"params": "5.bias"}]},
            r"'5\.bias', which is no parameter of the model.*0\.weight",
        ),
        ({"param_groups": [{"params": [torch.zeros(2)]}]}, r"got Tensor, which is no parameter"),
        ({"param_groups": [{"params": "0.bias", "lr": -1}]}, r"lr: got -1, expected a finite number >= 0"),
        ({"param_groups": [{"params": "0.bias"}, {"params": "0.bias"}]}, r"more than one parameter group"),
        ({"spec": extract(mlp(), X)}, r"example_input, spec: got both, expected one"),
        ({"example_input": None}, r"example_input, spec: got none, expected one"),
        (
            {"example_input": 1e-3},
            r"example_input: got 0\.001, .* for a learning rate pass lr=",
        ),
        ({"example_input": None, "spec": "mlp"}, r"spec: got str, expected a SymmetrySpec"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        UNFOptimizer(mlp(), **{"example_input": X, "rule": any_rule(), **options})


def test_options_of_a_group_added_later_are_checked() -> None:
    opt = optimizer(mlp(), param_groups=[{"params": "0.bias"}])
    with pytest.raises(ValueError, match=r"lr: got -2"):
        opt.add_param_group({"params": "0.weight", "lr": -2})
    assert len(opt.param_groups) == 1


def test_parameters_instead_of_the_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model: got generator, expected the nn\.Module itself"):
        UNFOptimizer(mlp().parameters(), X, rule=any_rule())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Tanh(), r"Tanh has no parameters"),
        (nn.Sequential(nn.LazyLinear(3)), r"'0\.weight' is lazy"),
        (nn.Linear(5, 3, dtype=torch.complex64), r"'weight' is torch\.complex64, expected real"),
        (nn.Linear(5, 3, device="meta"), r"got parameters on meta, expected one device with memory"),
        (
            nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3, device="meta")),
            r"parameters on cpu, meta, expected one",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_models_that_cannot_be_moved_are_refused(model: nn.Module, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        UNFOptimizer(model, X, rule=any_rule())


def wider() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))


def deeper() -> nn.Module:
    return nn.Sequential(*mlp(), nn.Tanh(), nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("of", "match"),
    [
        (wider, r"spec: block '0\.weight' has shape \(6, 5\)"),
        (deeper, r"spec: it is about 6\.weight"),
    ],
)
def test_the_symmetry_of_another_model_is_refused(of: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        UNFOptimizer(mlp(), spec=extract(of(), X), rule=any_rule())


def test_groups_whose_sizes_disagree_are_refused() -> None:
    table = json.loads(extract(mlp(), X).to_json())
    table["groups"][1]["size"] += 1
    with pytest.raises(
        ValueError, match=r"has size 4, expected the size of group .* \(5\); make axis and group"
    ):
        UNFOptimizer(mlp(), spec=SymmetrySpec.from_json(table), rule=any_rule())


def test_a_rule_beside_the_source_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rule: got 'x' beside the source 'unf-small', expected one"):
        UNFOptimizer.from_pretrained("unf-small", mlp(), X, rule="x")


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@pytest.mark.parametrize("key", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, None])
def test_options_are_checked_at_every_step(nonfinite: Any, key: str, value: Any) -> None:
    model = mlp()
    opt = optimizer(model, nonfinite=nonfinite)
    backward(model)
    before = weights(model)
    opt.param_groups[0][key] = value
    with pytest.raises(ValueError, match=rf"{key}: got {value} in parameter group 0, expected a finite"):
        opt.step()
    assert all(torch.equal(p, before[name]) for name, p in weights(model).items()) and not opt.state


def test_sparse_gradients_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Linear(4, 3))
    x = torch.tensor([[0, 1], [2, 3]])
    opt = UNFOptimizer(model, x, rule=any_rule())
    model(x).sum().backward()
    with pytest.raises(ValueError, match=r"got a sparse one for '0\.weight', expected dense.*sparse=False"):
        opt.step()


class Untraceable(nn.Module):
    """Its forward depends on values, which no tracer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.a, self.head = nn.Embedding(9, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(self.embedding(x).mean(1))
        return self.head(torch.tanh(h) if float(h.sum()) > 0 else torch.relu(h))


def test_a_model_that_cannot_be_traced_is_read_tensor_by_tensor_with_a_warning() -> None:
    torch.manual_seed(0)
    model, x = Untraceable(), torch.arange(12).view(6, 2) % 9
    with pytest.warns(
        RuntimeWarning, match=r"could not be traced, so every tensor is read by itself"
    ) as seen:
        opt = UNFOptimizer(model, x, rule=UNFRule(vector_rate=0.1, table_rate=0.1), lr=0.02)
    assert len(str(seen[0].message)) > 150  # it names what could not be followed
    twin = copy.deepcopy(model)
    weights = dict(twin.named_parameters())
    others = [p for name, p in weights.items() if name != "a.weight"]
    by_shape = Muon(
        [
            {"params": [weights["a.weight"]], "muon": True, "lr": 0.02},
            {"params": others, "muon": False, "lr": 0.002, "betas": (0.9, 0.99)},
        ]
    )
    for _ in range(5):
        for net, each in ((model, opt), (twin, by_shape)):
            each.zero_grad()
            nn.functional.cross_entropy(net(x), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
            each.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, weights[name], rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_be_traced_is_refused_if_strict() -> None:
    with pytest.raises(ValueError):
        UNFOptimizer(Untraceable(), torch.zeros(2, 2, dtype=torch.int64), rule=any_rule(), strict=True)
