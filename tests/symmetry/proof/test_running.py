from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.symmetry import extract
from amortopt.symmetry.inputs import outputs_of
from amortopt.symmetry.proof.running import Runner, relative, worst


class Apply(nn.Module):
    """Any function as a module with one parameter."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.w = function, nn.Parameter(torch.ones(4))

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def outputs(function: Callable[..., Any], *args: Any, training: bool = True) -> list[Tensor]:
    runner = Runner(Apply(function), args or (torch.linspace(-1, 1, 8).reshape(2, 4),))
    first, second = (runner.run({}, training=training)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return first


def mha() -> nn.Module:
    return nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)


@pytest.mark.parametrize(
    "drop",
    [
        lambda x: F.dropout(x, 0.4),
        lambda x: F.dropout1d(x[None], 0.4)[0],
        lambda x: torch.native_dropout(x, 0.4, True)[0],
        lambda x: x * torch.bernoulli(torch.full_like(x, 0.4)) / 0.4,
        lambda x: x * torch.bernoulli(torch.empty_like(x), 0.4) / 0.4,
        lambda x: x + torch.randn_like(x) + torch.randn(4) + torch.normal(x.new_zeros(4), 1.0),
        lambda x: 2 * x * torch.rand_like(x),
        lambda x: x * x.new_empty(4).uniform_(0.5, 1.5) + x.new_empty(4).normal_(0, 2),
        lambda x: x * torch.rand(4, generator=None) * 2,
    ],
)
def test_noise_is_replaced_by_its_expectation(drop: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    (got,) = outputs(lambda _, x: drop(x), x)
    torch.testing.assert_close(got, x.double())


def test_attention_and_recurrence_drop_nothing() -> None:
    x = torch.randn(2, 3, 4)
    torch.manual_seed(0)
    for layer in (nn.TransformerEncoderLayer(4, 2, 8, 0.5, batch_first=True), nn.LSTM(4, 3, 2, dropout=0.5)):
        runner = Runner(layer, x)
        assert worst(runner.run({}, training=True)[0], runner.run({})[0]) < 1e-12


def test_everything_is_computed_in_float64() -> None:
    def function(self: Apply, x: Tensor) -> Tensor:
        h = torch.zeros(2, 4)
        h[:, 1:] = x.float()[:, 1:] * torch.tensor(1 / 3) * torch.arange(1.0, 4.0)
        return (h.half() + self.w / 3).to(torch.bfloat16) @ torch.full((4, 1), 0.1)

    x = torch.randn(2, 4, dtype=torch.float64)
    weights = torch.tensor([0.0, 1, 2, 3]).double() * torch.tensor(1 / 3).double()
    expected = ((x * weights + torch.ones(4).double() / 3) * torch.tensor(0.1).double()).sum(1, keepdim=True)
    (got,) = outputs(function, x)
    assert got.dtype == torch.float64
    assert relative(got, expected) < 1e-7  # the constants themselves are given in float32
    state = Runner(Apply(function), x).run({"w": torch.full((4,), 1 + 1e-12, dtype=torch.float64)})[0][0]
    assert 1e-14 < relative(state, got) < 1e-11


def test_smaller_types_are_kept_when_asked_for() -> None:
    runner = Runner(Apply(lambda self, x: x * self.w), torch.ones(2, 4), dtype=torch.float32)
    assert runner.run({})[0][0].dtype == torch.float32


def test_integers_and_masks_stay_what_they_are() -> None:
    def function(self: Apply, tokens: Tensor, extras: dict[str, Any]) -> Tensor:
        assert tokens.dtype == torch.int64 and extras["mask"].dtype == torch.bool and extras["none"] is None
        return F.one_hot(tokens, 4) * self.w + extras["x"]

    extras = {"mask": torch.ones(2, dtype=torch.bool), "none": None, "x": torch.ones(4)}
    assert outputs(function, torch.tensor([0, 3]), extras)[0].shape == (2, 4)


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


@dataclasses.dataclass
class Out:
    x: Tensor
    more: dict[str, Any]


def test_all_tensors_of_an_output_are_found() -> None:
    one = torch.ones(1)
    assert len(outputs_of(Out(one, {"p": Pair(one, one), "l": [one, None, 3, (one,)]}))) == 5


def test_a_run_leaves_the_module_and_its_inputs_alone() -> None:
    def function(self: Apply, x: Tensor) -> Tensor:
        self.cache = x
        self.count += 1
        self.register_buffer("late", x)
        self.part = nn.Linear(1, 1)
        return x.mul_(2)

    net, x = Apply(function), torch.ones(2, 4, dtype=torch.float64)
    net.register_buffer("count", torch.zeros(()))
    keys = set(net.__dict__)
    _, buffers = Runner(net, x).run({}, training=True)
    assert buffers["count"] == 1 and net.count == 0
    assert set(net.__dict__) == keys and net.training and list(net.state_dict()) == ["w", "count"]
    assert torch.equal(x, torch.ones_like(x))


def test_a_run_that_fails_leaves_the_module_alone() -> None:
    def function(self: Apply, x: Tensor) -> Tensor:
        self.w.data = x
        raise RuntimeError("no")

    net = Apply(function).eval()
    with pytest.raises(RuntimeError, match="no"):
        Runner(net, torch.zeros(2)).run({}, training=True)
    assert not net.training and net.w.dtype == torch.float32 and net.w.shape == (4,)
    assert torch.backends.mha.get_fastpath_enabled()


def test_tied_parameters_move_together() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    runner = Runner(net, torch.randn(2, 3))
    assert list(runner.params) == ["0.weight", "0.bias", "1.bias"]
    (zero,), _ = runner.run({"0.weight": torch.zeros(3, 3, dtype=torch.float64)})
    assert torch.equal(zero, net[1].bias.double().expand(2, 3))


@pytest.mark.parametrize(
    ("got", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([3.0, 4.0], [0.0, 5.0], 10**0.5 / 5),
        ([1e-3], [0.0], 1e-3),
        ([float("inf"), 1.0], [float("inf"), 1.0], 0.0),
        ([float("-inf"), 2.0], [float("inf"), 1.0], float("inf")),
        ([1.0, 2.0, 3.0], [1.0, 2.0], float("inf")),
    ],
)
def test_relative_differences(got: list[float], expected: list[float], error: float) -> None:
    assert relative(torch.tensor(got).double(), torch.tensor(expected).double()) == pytest.approx(error)


def test_differences_of_integers_and_nan_are_noticed() -> None:
    assert relative(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])) == 0.25
    nan, one = torch.tensor([float("nan")]), torch.ones(1)
    assert worst([one, nan, one], [one, one, one]) != worst([one], [one])
    assert worst([nan], [nan]) != worst([nan], [nan])
    assert worst([], []) == 0


def test_nan_on_both_sides_is_no_difference_and_on_one_side_is() -> None:
    nan = torch.nan
    assert relative(torch.tensor([nan, 1.0]), torch.tensor([nan, 1.0])) == 0
    assert relative(torch.tensor([nan, 2.0]), torch.tensor([nan, 1.0])) > 0.5
    assert math.isnan(relative(torch.tensor([nan, 1.0]), torch.tensor([0.0, 1.0])))


def test_a_network_that_refuses_other_weights_notices_a_probe() -> None:
    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            # A standard deviation that vanishes is an error of torch.distributions.
            return self.b(torch.distributions.Normal(torch.zeros(6), F.softplus(self.a(x))).variance)

    torch.manual_seed(0)
    net, x = Checked(), torch.randn(3, 4)
    proof = extract(net, x).verify(net, x, probes=None)
    assert proof.holds
    assert proof.probes > 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is not supported:FutureWarning")
def test_a_scripted_part_is_run() -> None:
    net = nn.Sequential(nn.Linear(4, 6), torch.jit.script(nn.Sequential(nn.ReLU())), nn.Linear(6, 2))
    x = torch.randn(5, 4)
    assert extract(net, x).verify(net, x).holds
