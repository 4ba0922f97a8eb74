"""What a step of the learned optimizer moves, and by how much."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from amortopt import UNFOptimizer
from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.symmetry import SymmetrySpec, extract
from tests.optim.stepwise import X, Y, any_rule, backward, mlp, optimizer, train, weights


class Gates(nn.Module):
    """A parameter in several blocks: an LSTM's gates."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x.unsqueeze(1))[0][:, 0])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


@pytest.mark.parametrize("build", [mlp, Gates, Tied])
def test_steps_are_those_of_the_rule(build: type[nn.Module]) -> None:
    model, rule = build(), any_rule()
    opt = UNFOptimizer(model, X, rule=rule, lr=0.7, weight_decay=0.1)
    layout = UpdateLayout(extract(model, X), {n: p.shape for n, p in model.named_parameters()})
    flat = layout.pack(weights(model))
    state = rule.init_state(layout, flat)
    for seed in range(4):
        opt.zero_grad()
        backward(model, seed)
        grads = layout.pack({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        opt.step()
        with torch.no_grad():
            update, state = rule(layout, flat, grads, state)
            update[state["second"][0] == 0] = 0.0  # elements that never had a gradient
            flat = flat * (1 - 0.7 * 0.1) - 0.7 * update
        torch.testing.assert_close(layout.pack(weights(model)), flat, rtol=1e-4, atol=1e-5)
        for name, p in model.named_parameters():
            torch.testing.assert_close(
                opt.state[p]["momenta"][0], layout.unpack(state["momenta"])[name][0], rtol=1e-4, atol=1e-6
            )
        assert float(opt.state[p]["step"]) == seed + 1


def test_loss_falls_with_a_fresh_rule() -> None:
    model = mlp()
    opt = optimizer(model, rule=any_rule(), lr=0.1)
    first = backward(model)
    train(model, opt, 150)
    assert backward(model) < 0.8 * first


def test_frozen_and_gradless_parameters_stay_and_the_others_move() -> None:
    model = mlp()
    opt = optimizer(model, weight_decay=0.1)
    before = weights(model)
    model[0].weight.requires_grad_(False)
    backward(model)
    model[0].weight.grad = torch.ones_like(model[0].weight)  # stale: it is frozen
    model[2].bias.grad = None
    opt.step()
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == set(before) - {"0.weight", "2.bias"}
    assert not opt.state[model[0].weight]["momenta"].any()
    model[0].weight.requires_grad_(True)
    train(model, opt, 1)
    assert not torch.equal(model[0].weight, before["0.weight"])


def test_a_step_without_any_gradient_does_nothing() -> None:
    model = mlp()
    opt = optimizer(model, weight_decay=0.1)
    before = weights(model)
    opt.step()
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert not opt.state


def test_groups_have_their_own_rate_and_decay() -> None:
    model = mlp()
    groups = [
        {"params": ["0.weight", model[0].bias], "lr": 0.5, "weight_decay": 0.2},
        {"params": [model[2].weight]},
    ]
    opt = optimizer(model, param_groups=groups, lr=2.0)
    twin = copy.deepcopy(model)
    before = weights(model)
    backward(model)
    # What is in no group has a gradient too, which the rule is not to hear of.
    backward(twin)
    for name, p in twin.named_parameters():
        p.requires_grad_(name in ("0.weight", "0.bias", "2.weight"))
    optimizer(twin, lr=1.0).step()
    opt.step()
    plain = weights(twin)
    for name, value in weights(model).items():
        lr, decay = {"0": (0.5, 0.2), "2": (2.0, 0.0), "4": (0.0, 0.0)}[name[0]]
        if name == "2.bias":
            lr, decay = 0.0, 0.0
        expected = before[name] * (1 - lr * decay) + lr * (plain[name] - before[name])
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_a_group_added_later_moves_from_then_on() -> None:
    model = mlp()
    opt = optimizer(model, param_groups=[{"params": "0.weight"}])
    before = weights(model)
    train(model, opt, 2)
    assert torch.equal(model[4].bias, before["4.bias"])
    opt.add_param_group({"params": [model[4].bias], "lr": 0.5})
    train(model, opt, 1)
    assert not torch.equal(model[4].bias, before["4.bias"])
    assert opt.param_groups[1]["lr"] == 0.5
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))


def test_low_precision_parameters_are_rounded_and_their_state_is_not() -> None:
    model = mlp().to(torch.bfloat16)
    precise = copy.deepcopy(model).float()
    opt = UNFOptimizer(model, X.bfloat16(), rule=any_rule(), weight_decay=0.1)
    twin = UNFOptimizer(precise, X, rule=any_rule(), weight_decay=0.1)
    backward(model)
    for p, q in zip(model.parameters(), precise.parameters(), strict=True):
        assert p.grad is not None
        q.grad = p.grad.float()
    opt.step(), twin.step()
    for p, q in zip(model.parameters(), precise.parameters(), strict=True):
        assert p.dtype == torch.bfloat16
        assert torch.equal(p, q.bfloat16())
        assert opt.state[p]["momenta"].dtype == torch.float32


def test_double_parameters_keep_their_digits() -> None:
    model = mlp().double()
    with torch.no_grad():
        model[0].weight.add_(1e-12)
    opt = UNFOptimizer(model, X.double(), rule=any_rule(), lr=1e-30)
    before = weights(model)
    backward(model)
    opt.step()
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_channels_last_weights_move_as_others_do() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3))
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = torch.randn(6, 3, 5, 5)
    for net in (model, last):
        opt = UNFOptimizer(net, x, rule=any_rule())
        nn.functional.cross_entropy(net(x), Y).backward()
        opt.step()
    for p, q in zip(model.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e25])
def test_steps_that_are_not_finite_are_skipped_and_counted(broken: float) -> None:
    model = mlp()
    opt = optimizer(model, weight_decay=0.1)
    train(model, opt, 2)
    before, state = weights(model), copy.deepcopy(opt.state_dict())
    backward(model)
    assert model[0].weight.grad is not None
    model[0].weight.grad[1, 2] = broken
    opt.step()
    assert opt.skipped == 1
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    for i, entry in opt.state_dict()["state"].items():
        assert all(torch.equal(value, state["state"][i][key]) for key, value in entry.items())
    train(model, opt, 1)
    assert opt.skipped == 1
    assert not torch.equal(model[0].weight, before["0.weight"])


def test_steps_that_are_not_finite_raise_if_asked_to() -> None:
    model = mlp()
    opt = optimizer(model, nonfinite="raise")
    backward(model)
    assert model[2].bias.grad is not None
    model[2].bias.grad[0] = float("nan")
    before = weights(model)
    with pytest.raises(ValueError, match=r"NaN or infinite values in the gradient of '2\.bias'.*clip"):
        opt.step()
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert opt.skipped == 0


def test_updates_that_are_not_finite_move_nothing() -> None:
    rule = any_rule()
    with torch.no_grad():
        rule.block_out.fill_(float("nan"))
    model = mlp()
    before = weights(model)
    backward(model)
    opt = optimizer(model, rule=rule)
    opt.step()
    assert opt.skipped == 1
    opt.nonfinite = "raise"
    with pytest.raises(ValueError, match=r"update: got NaN or infinite values"):
        opt.step()
    far = optimizer(model, lr=1e300)
    far.step()
    assert far.skipped == 1
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_weights_that_are_not_finite_are_named_and_warned_about_once() -> None:
    model = mlp()
    backward(model)
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    opt = optimizer(model)
    with pytest.warns(RuntimeWarning, match="no step can be taken from there") as seen:
        opt.step()
        opt.step()
    assert opt.skipped == 2 and len(seen) == 1
    with pytest.raises(ValueError, match=r"weights: got NaN or infinite values in the weight '2\.weight'"):
        optimizer(model, nonfinite="raise").step()


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = mlp(), nn.Parameter(torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.net(x)


def test_a_parameter_without_axes_is_moved() -> None:
    model = Scaled()
    opt = optimizer(model)
    train(model, opt, 2)
    assert float(model.scale.detach()) != 1.0 and opt.state[model.scale]["momenta"].shape == (3,)


def test_a_closure_is_called_once_with_gradients_and_may_return_nothing() -> None:
    model = mlp()
    opt = optimizer(model)
    calls = []

    def closure() -> torch.Tensor:
        opt.zero_grad()
        calls.append(torch.is_grad_enabled())
        return backward(model)

    def silent() -> None:
        closure()

    before = weights(model)
    loss = opt.step(closure)
    assert loss is not None and float(loss) > 0 and calls == [True]
    between = weights(model)
    assert opt.step(silent) is None and len(calls) == 2
    assert not torch.equal(between["0.weight"], before["0.weight"])
    assert not torch.equal(model[0].weight, between["0.weight"])


def test_the_rule_that_was_given_is_not_touched() -> None:
    rule = any_rule().double()
    rule.block_out.requires_grad_(True)
    model = mlp()
    opt = UNFOptimizer(model, X, rule=rule)
    with torch.no_grad():
        rule.block_out.fill_(50.0)
    train(model, opt, 1)
    assert rule.block_out.dtype == torch.float64 and rule.block_out.requires_grad
    assert all(bool(p.abs().max() < 10) for p in model.parameters())


def test_float64_as_the_default_changes_nothing() -> None:
    def trained() -> list[torch.Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).float()
        x = torch.ones(2, 4, dtype=torch.float32)
        opt = UNFOptimizer(net, x, rule=UNFRule(width=4).float())
        for p in net.parameters():
            p.data.fill_(0.5)
            p.grad = torch.full_like(p, 0.1)
        opt.step()
        assert opt.skipped == 0
        return [p.detach().clone() for p in net.parameters()]

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = trained()
    finally:
        torch.set_default_dtype(default)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in found)


def test_elements_whose_gradient_is_always_zero_stay() -> None:
    model = mlp()
    mask = (torch.arange(16) % 2).view(4, 4).float()
    model.get_parameter("2.weight").register_hook(lambda g: g * mask)
    before = weights(model)["2.weight"]
    train(model, optimizer(model), 5)
    moved = model.get_parameter("2.weight").detach() != before
    assert torch.equal(moved, mask.bool())


class Odd(nn.Module):
    """Parameters that an optimizer is not to move: without elements, an infinite mask, integers."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.empty = nn.Linear(5, 3), nn.Parameter(torch.empty(0))
        self.mask = nn.Parameter(torch.full((6, 6), float("-inf")).triu(1), requires_grad=False)
        self.codes = nn.Parameter(torch.arange(4), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = len(x)
        return self.net((x @ x.t() + self.mask[:n, :n]).softmax(-1) @ x)


def test_parameters_without_elements_infinite_or_integer_outside_of_groups_are_let_be() -> None:
    torch.manual_seed(0)
    model = Odd()
    groups = [{"params": [*model.net.parameters(), model.empty]}]
    opt = UNFOptimizer(model, spec=SymmetrySpec((), ()), rule=any_rule(), param_groups=groups)
    before = weights(model)
    train(model, opt, 3)
    assert opt.skipped == 0
    assert not torch.equal(model.net.weight, before["net.weight"])
    assert torch.equal(model.mask, before["mask"]) and torch.equal(model.codes, before["codes"])
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert len(opt.state) == 3


class Quantized(nn.Module):
    """Frozen integer weights that the network computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 4)
        self.codes = nn.Parameter(torch.arange(12).view(3, 4), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.net(x)) @ self.codes.float().t()


def test_frozen_integers_that_the_model_uses_stay() -> None:
    torch.manual_seed(0)
    model = Quantized()
    opt = UNFOptimizer(model, X, rule=any_rule())
    before = weights(model)["net.weight"]
    nn.functional.cross_entropy(model(X), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    opt.step()
    assert opt.skipped == 0 and not torch.equal(model.net.weight, before)
    assert torch.equal(model.codes, torch.arange(12).view(3, 4))


def test_state_entries_of_other_tools_are_kept_by_steps_and_state_dicts() -> None:
    model = mlp()
    opt = optimizer(model)
    opt.state[model.get_parameter("0.bias")]["ema"] = torch.ones(4)
    train(model, opt, 2)
    twin = copy.deepcopy(model)
    resumed = optimizer(twin)
    resumed.load_state_dict(opt.state_dict())
    assert torch.equal(resumed.state[twin.get_parameter("0.bias")]["ema"], torch.ones(4))


def test_five_skipped_steps_in_a_row_are_warned_about_once() -> None:
    model = mlp()
    opt = optimizer(model)
    with pytest.warns(RuntimeWarning, match=r"5 steps in a row skipped; gradients: got NaN") as seen:
        for _ in range(12):
            opt.zero_grad()
            backward(model)
            model.get_parameter("0.weight").grad.fill_(float("nan"))  # pyright: ignore
            opt.step()
    assert len(seen) == 1 and opt.skipped == 12


def test_a_rate_of_zero_moves_nothing_and_counts_the_step() -> None:
    model = mlp()
    opt = optimizer(model, lr=0.0, weight_decay=0.1)
    before = weights(model)
    train(model, opt, 2)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert float(opt.state[model.get_parameter("0.bias")]["step"]) == 2


def test_named_parameters_keep_their_names_and_are_not_mixed_with_others() -> None:
    model = mlp()
    named = list(model.named_parameters())
    opt = optimizer(model, param_groups=[{"params": named}])
    assert opt.param_groups[0]["param_names"] == [name for name, _ in named]
    with pytest.raises(ValueError, match="with/without names"):
        optimizer(model, param_groups=[{"params": [named[0], named[1][1]]}])
    with pytest.raises(TypeError, match="got a set as 'params', expected a list"):
        optimizer(model, param_groups=[{"params": set(model.parameters())}])
