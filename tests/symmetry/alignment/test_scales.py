from __future__ import annotations

import pytest
import torch

from amortopt.symmetry import act, extract, sample
from amortopt.symmetry.alignment.scales import balancing
from tests.cases import case

NAMES = ["mlp-relu", "cnn-prelu", "residual", "rnn-relu", "resnext", "attention-torch", "llama"]


def params_of(name: str) -> tuple:
    torch.manual_seed(0)
    net = case(name).build()
    spec = extract(net.eval(), case(name).example_input())
    return spec, {n: p.detach().double() for n, p in net.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_balanced_weights_are_the_same_for_all_scales(name: str) -> None:
    spec, params = params_of(name)
    g = sample(spec, generator=torch.Generator().manual_seed(1), batch=None)
    g = type(g)(
        {n: torch.arange(len(p)) for n, p in g.permutations.items()},
        {n: q.abs() for n, q in g.scales.items()},
    )
    moved = act(spec, g, params)
    first, second = (act(spec, balancing(spec, p), p) for p in (params, moved))
    for key in params:
        torch.testing.assert_close(second[key], first[key], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_balanced_weights_have_the_smallest_sum_of_squares(name: str) -> None:
    spec, params = params_of(name)

    def size(p: dict) -> float:
        return sum(float(t.square().sum()) for t in p.values())

    balanced = act(spec, balancing(spec, params), params)
    assert size(balanced) < size(params)
    for seed in range(5):
        g = sample(spec, generator=torch.Generator().manual_seed(seed), low=0.9, high=1.1)
        assert size(act(spec, g, balanced)) > size(balanced)
