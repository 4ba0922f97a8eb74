"""benchmarks/throughput.py runs, and its reference is a fair one: equivariant and trainable."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from amortopt.symmetry import SymmetrySpec, extract
from amortopt.tasks import Family, init_many, make_family
from amortopt.testing import assert_equivariant

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield


@pytest.fixture(params=["mlp", "cnn"])
def family(request: pytest.FixtureRequest) -> Family:
    sizes = (
        {"widths": (5, 4, 3, 2)} if request.param == "mlp" else {"channels": (3, 2), "input_shape": (1, 6, 6)}
    )
    return make_family(request.param, activation="tanh", **sizes)


def spec_of(family: Family) -> SymmetrySpec:
    return extract(family.build(), family.example_input())


def test_edge_list_is_equivariant(benchmarks: None, family: Family) -> None:
    from edge_list import EdgeListGMN

    spec = spec_of(family)
    metanet = EdgeListGMN(spec, width=8, layers=2).double()
    params = {name: p.double() for name, p in init_many(family.build, range(3)).items()}
    assert_equivariant(metanet, spec, params, batched=True, rtol=1e-10)
    changed = metanet(params)
    assert all((changed[name] - p).abs().max() > 1e-9 for name, p in params.items())


def test_edge_list_keeps_networks_apart(benchmarks: None, family: Family) -> None:
    from edge_list import EdgeListGMN

    metanet = EdgeListGMN(spec_of(family), width=8, layers=2).double()
    params = {name: p.double() for name, p in init_many(family.build, range(3)).items()}
    together = metanet(params)
    alone = metanet({name: p[1:2] for name, p in params.items()})
    for name, p in alone.items():
        torch.testing.assert_close(together[name][1:2], p)


def test_edge_list_trains_every_parameter(benchmarks: None, family: Family) -> None:
    from edge_list import EdgeListGMN

    metanet = EdgeListGMN(spec_of(family), width=8, layers=2)
    sum(p.square().sum() for p in metanet(init_many(family.build, range(3))).values()).backward()
    still = [n for n, p in metanet.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


def test_throughput_measures_and_writes_what_it_measured(
    benchmarks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import throughput

    small = {"name": "mlp", "widths": [5, 4, 3, 10]}
    case = throughput.Case("2 small MLPs", small, 2, 1)
    tiny = throughput.Plan(
        networks=2, examples=8, layers=(1,), latency=(1, 3), reference=(case,), rounds=1, compiled=()
    )
    monkeypatch.setattr(throughput, "FAMILIES", {"small MLP": small})
    monkeypatch.setattr(throughput, "QUICK", tiny)
    # The tests' own process keeps its allocator.
    monkeypatch.setattr(throughput, "keep_freed_memory", lambda: False)
    throughput.main(["--quick", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "throughput.json").read_text())
    text = (tmp_path / "throughput.md").read_text()
    assert text in capsys.readouterr().out
    assert results["format"] == throughput.FORMAT
    assert {"commit", "torch", "hardware", "load_average", "allocator"} <= results["made_by"].keys()
    (row,) = results["reference"]
    for side in throughput.SIDES:
        assert 0 < row[side]["forward_s"] < row[side]["forward_backward_s"]
        assert row[side]["memory_bytes"] >= 0
    assert [row["networks"] for row in results["latency"]] == [1, 3]
    assert results["training"][0]["steps_per_second"] > 0
    assert not results["variants"][0]["failed"]
    assert all(title in text for title in ("2 small MLPs", "small MLP", "ratio"))


def test_throughput_leaves_out_a_reference_that_does_not_fit(
    benchmarks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import throughput

    asked = []

    def answer(request: dict) -> object:
        asked.append(request)
        return 5e8 if "growth" in request else {side: {"forward_s": 1.0} for side in request["sides"]}

    monkeypatch.setattr(throughput.cases, "in_process", answer)
    monkeypatch.setattr(throughput.cases, "available_memory", lambda: 4e9)
    plan = replace(throughput.Plan(), share=0.8)
    large = throughput._reference(throughput.Case("large", {}, 64, 4), plan)
    assert large["left_out"] == {"edge list": {"expected_memory_bytes": 4e9}} and "edge list" not in large
    assert all(request.get("sides") in (None, ["amortopt"]) for request in asked)
    assert "edge list" in throughput._reference(throughput.Case("small", {}, 1, 4), plan)


def test_throughput_says_why_a_measurement_failed(benchmarks: None) -> None:
    import throughput_cases

    case = throughput_cases.Case("none", {"name": "no family"}, 1, 1)
    with pytest.raises(RuntimeError, match="unknown family 'no family'"):
        throughput_cases.in_process({"growth": "edge list", "case": case})


def test_throughput_refuses_no_threads(benchmarks: None, capsys: pytest.CaptureFixture[str]) -> None:
    import throughput

    with pytest.raises(SystemExit):
        throughput.main(["--threads", "0"])
    assert "--threads: got 0, expected at least 1" in capsys.readouterr().err
