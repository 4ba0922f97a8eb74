"""benchmarks/symmetry/gauge.py: counts agree with the Jacobian."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness.store import committed
from benchmarks.symmetry import gauge, gauge_networks


@pytest.mark.parametrize("title", ["MLP, ReLU", "CNN, ReLU", "ResNet, ReLU, batch norm"])
def test_gauge_null_directions_are_the_rescalings_and_what_was_counted_by_hand(title: str) -> None:
    (small,) = (small for small in gauge_networks.NETWORKS if small.title == title)
    row = gauge.count(small)
    assert row["explained"] and row["proof"]["holds"]
    assert row["gap"] > 1e6


def test_gauge_rescalings_of_a_convolution_are_a_strict_subset_of_those_of_a_dense_layer() -> None:
    theorem = gauge.theorem()
    conv, dense = theorem["convolutional"], theorem["dense"]
    assert conv["continuous"] == conv["null_directions"] == 3 + 2
    assert dense["continuous"] == dense["null_directions"] == 3 * 6 + 2 * 4
    assert theorem["difference_of_outputs"] < 1e-14
    assert theorem["channel_scales_as_unit_scales"] < 1e-14
    assert theorem["unit_scales_keep_the_function"] < 1e-12
    assert theorem["unit_scales_leave_the_convolutions"] > 0.1


def test_gauge_every_committed_row_is_explained() -> None:
    records = committed(gauge.BENCHMARK)
    rows = [record["result"] for key, record in records.items() if key.startswith("network/")]
    assert len(rows) == len(gauge_networks.NETWORKS)
    assert all(row["explained"] and row["proof"]["holds"] for row in rows)


def test_gauge_dense_weights_compute_what_the_convolutions_do() -> None:
    conv, dense = gauge_networks.convolutional(), gauge_networks.dense()
    dense.load_state_dict(gauge_networks.as_dense(dict(conv.named_parameters())))
    x = torch.randn(5, 1, 8)
    torch.testing.assert_close(dense(x.flatten(1)), conv(x))
