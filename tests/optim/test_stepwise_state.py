"""Saving, resuming and copying a learned optimizer."""

from __future__ import annotations

import copy
import io
import pickle
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from amortopt import UNFOptimizer
from tests.optim.stepwise import X, any_rule, backward, mlp, optimizer, same, train, weights
from tests.optim.test_stepwise import Gates


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def uneven(model: nn.Module, opt: UNFOptimizer, first: int, steps: int) -> None:
    """Steps some of which lack gradients or are skipped."""
    parameters = list(model.parameters())
    for seed in range(first, first + steps):
        opt.zero_grad()
        backward(model, seed)
        if seed % 3 == 1:
            parameters[0].grad = None
        if seed % 3 == 2:
            assert parameters[1].grad is not None
            parameters[1].grad.fill_(float("nan"))
        opt.step()


@pytest.mark.parametrize("build", [mlp, Gates])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumes_bit_for_bit(build: Any, dtype: torch.dtype) -> None:
    if build is Gates and dtype == torch.bfloat16:
        pytest.skip("LSTMs in bfloat16 are not traced on every version")
    torch.manual_seed(0)
    model = build().to(dtype)
    spec = optimizer(build()).spec
    opt = UNFOptimizer(model, spec=spec, rule=any_rule())
    uneven(model, opt, 0, 5)
    later = copy.deepcopy(model)
    resumed = UNFOptimizer(later, spec=spec, rule=any_rule(), lr=3.0)
    resumed.load_state_dict(through_a_file(opt.state_dict()))
    assert resumed.skipped == opt.skipped > 0
    uneven(model, opt, 5, 6)
    uneven(later, resumed, 5, 6)
    assert same(model, later)
    for p, q in zip(model.parameters(), later.parameters(), strict=True):
        for key, value in opt.state[p].items():
            assert value.dtype == torch.float32
            assert torch.equal(value, resumed.state[q][key])


def test_resuming_goes_on_from_what_was_saved_and_not_from_now() -> None:
    model = mlp()
    opt = optimizer(model)
    train(model, opt, 3)
    saved, start = through_a_file(opt.state_dict()), copy.deepcopy(model.state_dict())
    train(model, opt, 3, first=3)
    end = weights(model)
    model.load_state_dict(start)
    opt.load_state_dict(saved)
    train(model, opt, 3, first=3)
    assert all(torch.equal(value, end[name]) for name, value in weights(model).items())


def test_a_state_dict_from_before_the_first_step_starts_anew() -> None:
    model = mlp()
    opt = optimizer(model)
    fresh, start = copy.deepcopy(opt.state_dict()), copy.deepcopy(model.state_dict())
    train(model, opt, 2)
    end = weights(model)
    model.load_state_dict(start)
    opt.load_state_dict(fresh)
    assert not opt.state
    train(model, opt, 2)
    assert all(torch.equal(value, end[name]) for name, value in weights(model).items())


def another() -> UNFOptimizer:
    net = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 3))
    return optimizer(net)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (another, r"shape \(4, 5\) for '0\.weight', expected shape \(3, 5\); it is of another model"),
        (
            lambda: optimizer(mlp(), rule=any_rule(seed=1)),
            r"of the update rule \w+…, expected \w+…; load the",
        ),
        (lambda: optimizer(mlp(), rule=any_rule(width=3)), r"of the update rule \w+…, expected"),
        (
            lambda: optimizer(mlp(), param_groups=[{"params": "0.bias"}]),
            r"parameter groups 0\.weight, .*expect",
        ),
        (lambda: torch.optim.Adam(mlp().parameters()), None),
    ],
)
def test_a_state_dict_of_another_optimizer_is_refused(make: Any, match: str | None) -> None:
    model = mlp()
    opt = optimizer(model)
    train(model, opt, 2)
    other, state = make(), opt.state_dict()
    if match is None:
        other, state, match = (
            opt,
            other.state_dict(),
            "got another optimizer's, expected one of a UNFOptimizer",
        )
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=match):
        other.load_state_dict(state)
    assert before["state"].keys() == other.state_dict()["state"].keys()


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("momenta", float("nan"), r"'momenta' of '0\.weight', expected finite numbers"),
        ("second", -1.0, r"'second' of '0\.weight', expected finite numbers >= 0"),
        ("step", -1.0, r"got -1\.0 as 'step'"),
        ("step", 1.5, r"got 1\.5 as 'step'.*expected a whole number"),
        ("step", float("nan"), r"got nan as 'step'"),
        ("momenta", None, r"got no 'momenta' for '0\.weight'"),
        ("lr", float("nan"), r"lr: got nan in parameter group 0"),
        ("lr", None, r"lr: got none in parameter group 0"),
    ],
)
def test_an_altered_state_dict_is_refused(key: str, value: float | None, match: str) -> None:
    model = mlp()
    opt = optimizer(model)
    train(model, opt, 2)
    before = copy.deepcopy(opt.state_dict())
    state = copy.deepcopy(before)
    entry = state["param_groups"][0] if key == "lr" else state["state"][0]
    if value is None:
        del entry[key]
    else:
        entry[key] = value if key == "lr" else torch.full_like(entry[key], value)
    with pytest.raises(ValueError, match=match):
        opt.load_state_dict(state)
    now = opt.state_dict()
    assert now["param_groups"] == before["param_groups"]
    assert torch.equal(now["state"][0]["momenta"], before["state"][0]["momenta"])


@pytest.mark.parametrize("odd", [None, []])
def test_what_is_no_state_dict_is_refused(odd: Any) -> None:
    with pytest.raises(ValueError, match=r"state_dict: got (NoneType|list), expected the dict"):
        optimizer(mlp()).load_state_dict(odd)


def test_hooks_of_the_user_see_and_change_state_dicts() -> None:
    model = mlp()
    opt = optimizer(model)
    train(model, opt, 2)
    seen = []

    def rename(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        seen.append(set(state))
        return {**state, "amortopt": {**state["amortopt"], "skipped": 7}}

    opt.register_load_state_dict_pre_hook(rename)
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert seen == [{"state", "param_groups", "amortopt"}] and opt.skipped == 7


def test_step_hooks_run() -> None:
    model = mlp()
    opt = optimizer(model)
    seen = []
    opt.register_step_pre_hook(lambda *_: seen.append("before"))
    opt.register_step_post_hook(lambda *_: seen.append("after"))
    train(model, opt, 2)
    assert seen == ["before", "after"] * 2


@pytest.mark.parametrize("build", [mlp, Gates])
def test_copies_of_model_and_optimizer_stay_tied(build: Any) -> None:
    torch.manual_seed(0)
    model = build()
    opt = optimizer(model)
    uneven(model, opt, 0, 3)
    twin, own = copy.deepcopy((model, opt))
    before = weights(model)
    uneven(twin, own, 3, 4)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert not same(model, twin)
    uneven(model, opt, 3, 4)
    assert same(model, twin)


def test_pickling_keeps_model_and_optimizer_tied() -> None:
    model = mlp()
    opt = optimizer(model, weight_decay=0.1, nonfinite="raise")
    train(model, opt, 3)
    twin, own = pickle.loads(pickle.dumps((model, opt)))
    train(model, opt, 3, first=3)
    train(twin, own, 3, first=3)
    assert same(model, twin)
    assert own.nonfinite == "raise" and own.param_groups[0]["weight_decay"] == 0.1


def test_a_copy_of_the_optimizer_alone_has_its_own_state() -> None:
    model = mlp()
    opt = optimizer(model)
    train(model, opt, 2)
    saved = copy.deepcopy(opt)
    state = copy.deepcopy(opt.state_dict()["state"])
    train(model, opt, 2)
    for i, entry in saved.state_dict()["state"].items():
        assert all(torch.equal(value, state[i][key]) for key, value in entry.items())


def test_state_of_a_parameter_is_what_the_next_step_reads() -> None:
    model, twin = mlp(), mlp()
    opt, own = optimizer(model), optimizer(twin)
    train(model, opt, 2), train(twin, own, 2)
    opt.state[model[0].weight]["momenta"].mul_(3)
    train(model, opt, 1), train(twin, own, 1)
    assert not same(model, twin)


def retrained(model: nn.Module, opt: UNFOptimizer, change: Callable[[UNFOptimizer], object]) -> bool:
    """Whether a step after ``change`` is that of a fresh optimizer."""
    train(model, opt, 3)
    twin = copy.deepcopy(model)
    change(opt)
    train(model, opt, 1)
    train(twin, optimizer(twin), 1)
    return same(model, twin)


def test_state_that_is_cleared_or_assigned_starts_anew() -> None:
    def assign(opt: UNFOptimizer) -> None:
        opt.state = defaultdict(dict)

    model = mlp()
    assert retrained(model, optimizer(model), lambda opt: opt.state.clear())
    model = mlp()
    assert retrained(model, optimizer(model), assign)


def test_state_reference_taken_before_the_first_step_stays_the_state() -> None:
    model = mlp()
    opt = optimizer(model)
    state = opt.state
    train(model, opt, 1)
    assert state is opt.state and set(state) == set(model.parameters())


class Recurrent(nn.Module):
    """Its weights are several blocks, whose state lies in another order than the rule's."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x.unsqueeze(1).expand(-1, 2, -1))[0][:, -1])


@pytest.mark.parametrize("build", [mlp, Recurrent])
def test_state_edited_in_place_or_assigned_per_parameter_is_what_the_next_step_reads(
    build: type[nn.Module],
) -> None:
    model = build()
    opt = UNFOptimizer(model, X, rule=any_rule())
    train(model, opt, 3)
    with torch.no_grad():
        for p in model.parameters():
            opt.state[p]["momenta"].mul_(0.5)
            opt.state[p]["second"] = opt.state[p]["second"] * 2
    twin = copy.deepcopy(model)
    resumed = UNFOptimizer(twin, X, rule=any_rule())
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    train(model, opt, 1), train(twin, resumed, 1)
    assert same(model, twin)


def test_state_of_another_shape_is_refused() -> None:
    model = mlp()
    opt = optimizer(model)
    train(model, opt, 1)
    opt.state[model.get_parameter("0.bias")]["second"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"state\['0\.bias'\]\['second'\]: got shape \(3,\), expected"):
        train(model, opt, 1)


def test_load_hooks_see_the_state_that_was_loaded() -> None:
    model = mlp().to(torch.bfloat16)
    opt = UNFOptimizer(model, X.bfloat16(), rule=any_rule())
    train(model, opt, 2)
    other = UNFOptimizer(copy.deepcopy(model), X.bfloat16(), rule=any_rule())
    seen: list[torch.dtype] = []
    other.register_load_state_dict_post_hook(
        lambda o: seen.extend({entry["momenta"].dtype for entry in o.state.values()})
    )
    other.load_state_dict(opt.state_dict())
    assert seen == [torch.float32]


def test_state_dict_goes_through_distributed_checkpoint() -> None:
    model = mlp()
    opt = optimizer(model)
    train(model, opt, 3)
    saved = copy.deepcopy(get_optimizer_state_dict(model, opt))
    twin = copy.deepcopy(model)
    resumed = optimizer(twin)
    set_optimizer_state_dict(twin, resumed, saved)
    train(model, opt, 2), train(twin, resumed, 2)
    assert same(model, twin)


def test_state_dict_with_numbers_for_tensors_is_read() -> None:
    model = mlp()
    opt = optimizer(model)
    train(model, opt, 2)
    saved = copy.deepcopy(opt.state_dict())
    for entry in saved["state"].values():
        entry["step"] = float(entry["step"])
        entry["second"] = entry["second"].tolist()
    twin = copy.deepcopy(model)
    resumed = optimizer(twin)
    resumed.load_state_dict(saved)
    train(model, opt, 1), train(twin, resumed, 1)
    assert same(model, twin)
