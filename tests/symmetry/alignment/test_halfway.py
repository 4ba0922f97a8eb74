"""Scales for the network half-way between two."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from amortopt.symmetry import align, extract, merge
from amortopt.symmetry.alignment.align import state_of
from amortopt.symmetry.alignment.halfway import halfway_scales
from amortopt.symmetry.proof.running import Runner, worst
from tests.symmetry.alignment.test_align import inputs_of, moved_copy, network


def error_halfway(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    """Mean square difference between the average network's answers and the average answer."""
    middle = copy.deepcopy(a)
    with torch.no_grad():
        for m, p, q in zip(middle.parameters(), a.parameters(), b.parameters(), strict=True):
            m.copy_((p + q) / 2)
        return float((middle(x) - (a(x) + b(x)) / 2).square().mean())


@pytest.mark.parametrize("name", ["mlp-relu", "mlp-identity", "cnn-2d", "resnet", "attention-torch"])
def test_fitted_scales_leave_the_function_as_it_is(name: str) -> None:
    a, b, inputs = network(name, 0), network(name, 1), inputs_of(name)
    before = copy.deepcopy([a.state_dict(), b.state_dict()])
    aligned = align(a, b, inputs, halfway=3)
    for net, state in zip((a, b), before, strict=True):
        assert not any(part.training for part in net.modules())
        assert all(value.equal(state[key]) for key, value in net.state_dict().items())
    assert worst(Runner(aligned, inputs).run({})[0], Runner(b, inputs).run({})[0]) < 1e-9


def test_networks_in_float32_stay_so() -> None:
    a, b = (network("resnet", seed).float() for seed in (0, 1))
    aligned = align(a, b, inputs_of("resnet").float(), halfway=1)
    for net in (a, b, aligned):
        assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_fitted_scales_bring_the_average_network_closer_to_the_average_answer() -> None:
    a, b, x = network("mlp-relu", 0), network("mlp-relu", 1), inputs_of("mlp-relu")
    plain, fitted = (error_halfway(a, align(a, b, x, halfway=steps), x) for steps in (0, 100))
    assert fitted < plain / 2


def test_networks_that_are_equal_stay_equal() -> None:
    a, x = network("cnn-2d", 0), inputs_of("cnn-2d")
    aligned = align(a, moved_copy(a, x), x, halfway=3)
    for p, q in zip(aligned.parameters(), a.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


def test_no_number_of_steps_is_worse_than_none() -> None:
    a, b, x = network("mlp-relu", 0), network("mlp-relu", 1), inputs_of("mlp-relu")
    # The first step of Adam is large where the fit is almost done.
    done = align(a, b, x, halfway=400)
    assert error_halfway(a, align(a, done, x, halfway=1), x) <= error_halfway(a, align(a, done, x), x)


def test_scales_of_sign_groups_are_not_fitted() -> None:
    a, b, x = network("mlp-tanh", 0), network("mlp-tanh", 1), inputs_of("mlp-tanh")
    spec = extract(a, x)
    g = halfway_scales(spec, a, x, state_of(a, spec), state_of(b, spec), steps=2)
    assert all(bool((scales == 1).all()) for scales in g.scales.values())


def test_a_merge_takes_fitted_scales() -> None:
    a, b, x = network("mlp-relu", 0), network("mlp-relu", 1), inputs_of("mlp-relu")
    merged, middle = merge([a, b], x, halfway=5), align(a, b, x, halfway=5)
    for m, p, q in zip(merged.parameters(), a.parameters(), middle.parameters(), strict=True):
        torch.testing.assert_close(m, (p + q) / 2)


def test_inputs_that_norms_cannot_measure_are_refused() -> None:
    net, x = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(1, 4)
    with pytest.raises(ValueError, match="halfway: the network does not run"):
        align(net, copy.deepcopy(net), x, halfway=1)


class WithZeros(nn.Module):
    """Runs a layer on zeros that it makes beside hidden units, in the default type."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.state, self.b = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.state(torch.zeros(len(x), 6)) + self.a(x)
        return self.b(h.relu())


def test_a_network_that_makes_constants_in_float32_can_be_fitted() -> None:
    a, b, x = WithZeros(0), WithZeros(1), torch.randn(50, 4)
    plain, fitted = (error_halfway(a, align(a, b, x, halfway=steps), x) for steps in (0, 50))
    assert fitted < plain
