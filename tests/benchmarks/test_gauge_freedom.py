"""benchmarks/gauge_freedom.py: counts agree with the Jacobian, and the README shows what was measured."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        names = ("gauge_freedom", "gauge_networks")
        run, networks = (importlib.import_module(name) for name in names)
        yield SimpleNamespace(run=run, networks=networks)


@pytest.fixture(scope="module")
def results(bench: Any) -> dict[str, Any]:
    return json.loads(bench.run.RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("title", ["MLP, ReLU", "CNN, ReLU", "ResNet, ReLU, batch norm"])
def test_null_directions_are_the_rescalings_and_what_was_counted_by_hand(bench: Any, title: str) -> None:
    (small,) = (small for small in bench.networks.NETWORKS if small.title == title)
    row = bench.run._row(small)
    assert row["explained"] and row["proof"]["holds"]
    assert row["gap"] is None or row["gap"] > 1e6


def test_rescalings_of_a_convolution_are_a_strict_subset_of_those_of_a_dense_layer(bench: Any) -> None:
    theorem = bench.run._theorem()
    conv, dense = theorem["convolutional"], theorem["dense"]
    assert conv["continuous"] == conv["null_directions"] == 3 + 2
    assert dense["continuous"] == dense["null_directions"] == 3 * 6 + 2 * 4
    assert theorem["difference_of_outputs"] < 1e-14
    assert theorem["channel_scales_as_unit_scales"] < 1e-14
    assert theorem["unit_scales_keep_the_function"] < 1e-12
    assert theorem["unit_scales_leave_the_convolutions"] > 0.1


def test_every_stored_row_is_explained(results: dict[str, Any]) -> None:
    assert len(results["networks"]) >= 6
    assert all(row["explained"] and row["proof"]["holds"] for row in results["networks"])
    made_by = results["made_by"]
    assert made_by["commit"] and made_by["hardware"] and made_by["torch"]


def test_readme_shows_the_results_file(bench: Any, results: dict[str, Any]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert bench.run.readme_block(results) in readme


def test_readme_without_marks_is_refused(bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"a\n{bench.run.BEGIN}\nold\n{bench.run.END}\nb\n")
    bench.run.rewrite_readme(path, "new")
    assert path.read_text() == "a\nnew\nb\n"
    with pytest.raises(ValueError, match="lacks the marks"):
        bench.run.rewrite_readme(path, "new")


def test_dense_weights_compute_what_the_convolutions_do(bench: Any) -> None:
    conv, dense = bench.networks.convolutional(), bench.networks.dense()
    dense.load_state_dict(bench.networks.as_dense(dict(conv.named_parameters())))
    x = torch.randn(5, 1, 8)
    torch.testing.assert_close(dense(x.flatten(1)), conv(x))
