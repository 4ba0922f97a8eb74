from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from amortopt.symmetry import align, measure_batch_norms, merge
from tests.symmetry.alignment.test_align import difference, inputs_of, moved_copy, network


@pytest.mark.parametrize("name", ["mlp-tanh", "mlp-relu", "cnn-2d", "lstm", "attention-torch"])
def test_merge_of_one_network_in_several_gauges_is_that_network(name: str) -> None:
    a, x = network(name, 0), inputs_of(name)
    assert difference(merge([a, moved_copy(a, x), a], x), a) < 1e-6


def test_merge_weighs_the_aligned_networks() -> None:
    a, b, x = network("mlp-relu", 0), network("mlp-relu", 1), inputs_of("mlp-relu")
    aligned, merged = align(a, b, x), merge([a, b], x, weights=[3, 1])
    for p, q, m in zip(a.parameters(), aligned.parameters(), merged.parameters(), strict=True):
        torch.testing.assert_close(m, (3 * p + q) / 4)


def batch_normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval()


def test_merge_warns_of_running_statistics() -> None:
    with pytest.warns(UserWarning, match=r"merge: 1 norms have running statistics.*pass inputs="):
        merge([batch_normed(), batch_normed()], torch.randn(5, 4))


def test_merge_measures_running_statistics_on_inputs() -> None:
    batches = [torch.randn(50, 4) for _ in range(3)]
    merged = merge([batch_normed(), batch_normed()], batches[0], inputs=batches)
    values = [merged[0](batch) for batch in batches]
    torch.testing.assert_close(merged[1].running_mean, torch.stack([v.mean(0) for v in values]).mean(0))
    torch.testing.assert_close(merged[1].running_var, torch.stack([v.var(0) for v in values]).mean(0))


def test_measuring_statistics_keeps_mode_momentum_and_parameters() -> None:
    net = batch_normed()
    before = copy.deepcopy(net)
    measure_batch_norms(net, [torch.randn(9, 4)])
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert net[1].momentum == before[1].momentum
    assert all(p.equal(q) for p, q in zip(net.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("inputs", [[], torch.randn(9, 4)])
def test_measuring_statistics_refuses_what_is_no_batches(inputs: object) -> None:
    with pytest.raises(ValueError, match=r"inputs: got (no batch|one Tensor), expected"):
        measure_batch_norms(batch_normed(), inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], []])
def test_merge_refuses_weights_that_are_no_shares(weights: list[float]) -> None:
    a, b = nn.Linear(4, 3), nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"weights: got .* for 2 networks, expected one number per network"):
        merge([a, b], torch.randn(2, 4), weights=weights)


@pytest.mark.parametrize(
    "inputs, message",
    [
        (
            [(torch.randn(5, 4), torch.zeros(5))],
            r"batch 1 .*\[\(5, 4\), \(5,\)\], expected .* without labels",
        ),
        ([[torch.randn(5, 4), torch.zeros(5)]], r"pass \[x for x, y in loader\]"),
        ([torch.randn(5, 4), torch.randn(1, 4)], r"batch 2 .*more than 1 value.*; give batches of several"),
        ([torch.randn(5, 3)], r"batch 1 is no input of Sequential: .*got \[\(5, 3\)\]"),
    ],
)
def test_measuring_statistics_says_which_batch_is_no_input(inputs: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"inputs: .*{message}"):
        measure_batch_norms(batch_normed(), inputs)


@pytest.mark.parametrize(
    "networks, got",
    [(nn.Linear(4, 3), "Linear"), ([], "none"), ([nn.Linear(4, 3), None], "NoneType among"), (3, "int")],
)
def test_merge_refuses_what_is_no_list_of_networks(networks: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"networks: got {got}.*expected a list of nn.Modules"):
        merge(networks, torch.randn(2, 4))


def test_weights_without_values_cannot_be_aligned() -> None:
    with torch.device("meta"):
        b = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"b: got 'weight' on the meta device, expected weights with values"):
        align(nn.Linear(4, 3), b, torch.randn(2, 4))
