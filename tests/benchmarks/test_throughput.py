"""benchmarks/cost/throughput.py runs, and its reference is a fair one: equivariant and trainable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from amortopt.symmetry import SymmetrySpec, extract
from amortopt.tasks import Family, init_many, make_family
from amortopt.testing import assert_equivariant
from benchmarks.cost import run, throughput, throughput_cases
from benchmarks.cost.edge_list import EdgeListGMN
from benchmarks.harness.store import read_records


@pytest.fixture(params=["mlp", "cnn"])
def family(request: pytest.FixtureRequest) -> Family:
    sizes = (
        {"widths": (5, 4, 3, 2)} if request.param == "mlp" else {"channels": (3, 2), "input_shape": (1, 6, 6)}
    )
    return make_family(request.param, activation="tanh", **sizes)


def spec_of(family: Family) -> SymmetrySpec:
    return extract(family.build(), family.example_input())


def test_edge_list_is_equivariant(family: Family) -> None:
    spec = spec_of(family)
    metanet = EdgeListGMN(spec, width=8, layers=2).double()
    params = {name: p.double() for name, p in init_many(family.build, range(3)).items()}
    assert_equivariant(metanet, spec, params, batched=True, rtol=1e-10)
    changed = metanet(params)
    assert all((changed[name] - p).abs().max() > 1e-9 for name, p in params.items())


def test_edge_list_keeps_networks_apart(family: Family) -> None:
    metanet = EdgeListGMN(spec_of(family), width=8, layers=2).double()
    params = {name: p.double() for name, p in init_many(family.build, range(3)).items()}
    together = metanet(params)
    alone = metanet({name: p[1:2] for name, p in params.items()})
    for name, p in alone.items():
        torch.testing.assert_close(together[name][1:2], p)


def test_edge_list_trains_every_parameter(family: Family) -> None:
    metanet = EdgeListGMN(spec_of(family), width=8, layers=2)
    sum(p.square().sum() for p in metanet(init_many(family.build, range(3))).values()).backward()
    still = [n for n, p in metanet.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


def test_throughput_measures_and_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"name": "mlp", "widths": [5, 4, 3, 10]}
    case = throughput.Case("2 small MLPs", small, 2, 1)
    tiny = throughput.Plan(
        networks=2, examples=8, layers=(1,), latency=(1, 3), reference=(case,), rounds=1, compiled=()
    )
    monkeypatch.setattr(throughput, "FAMILIES", {"small MLP": small})
    monkeypatch.setattr(throughput, "QUICK", tiny)
    run.main(["--quick", "--parts", "throughput", "--out", str(tmp_path)])
    records = read_records(tmp_path / "throughput.json", throughput.BENCHMARK)
    text = (tmp_path / "throughput.md").read_text()
    assert text in capsys.readouterr().out
    assert set(records) == {
        "reference/2 small MLPs", "training/small MLP/1", "latency/small MLP/1", "latency/small MLP/3",
        "variants/small MLP", "mixed widths/8/1",
    }  # fmt: skip
    row = records["reference/2 small MLPs"]["result"]
    for side in throughput.SIDES:
        assert 0 < row[side]["forward_s"] < row[side]["forward_backward_s"]
        assert row[side]["memory_bytes"] >= 0
    assert records["training/small MLP/1"]["result"]["steps_per_second"] > 0
    assert not records["variants/small MLP"]["result"]["failed"]
    mixed = records["mixed widths/8/1"]["result"]
    assert all(mixed[side]["forward_s"] > 0 for side in ("packed", "one by one"))
    assert all(title in text for title in ("2 small MLPs", "small MLP", "ratio", "one by one"))


def test_throughput_leaves_out_a_reference_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(case: object, **request: object) -> object:
        asked.append(request)
        if "growth" in request:
            return {"bytes": 5e8}
        return {side: {"forward_s": 1.0} for side in request["sides"]}

    monkeypatch.setattr(throughput, "ask", answer)
    monkeypatch.setattr(throughput_cases, "available_memory", lambda: 4e9)
    plan = replace(throughput.Plan(), share=0.8)
    large = throughput.reference(throughput.Case("large", {}, 64, 4), plan)
    assert large["left_out"] == {"edge list": {"expected_memory_bytes": 4e9}} and "edge list" not in large
    assert all(request.get("sides") in (None, ["amortopt"]) for request in asked)
    assert "edge list" in throughput.reference(throughput.Case("small", {}, 1, 4), plan)


def test_throughput_says_why_a_measurement_failed() -> None:
    with pytest.raises(RuntimeError, match="unknown family 'no family'"):
        throughput.ask(throughput.Case("none", {"name": "no family"}, 1, 1), growth="edge list")
