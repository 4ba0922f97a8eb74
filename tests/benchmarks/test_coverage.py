"""benchmarks/symmetry/coverage.py measures, goes on where it was stopped, and reports what was measured."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from amortopt.symmetry import extract
from benchmarks.harness.store import committed, read_records
from benchmarks.symmetry import coverage, coverage_measure, coverage_tables, run
from benchmarks.symmetry.coverage_cases import CASES, case_named

FILE = "symmetry_coverage.json"
QUICK = ["--only", "siren", "--parts", "coverage", "--elements", "1", "--probes", "3", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the smallest network."""
    folder = tmp_path_factory.mktemp("coverage")
    run.main([*QUICK, "--out", str(folder)])
    return folder


@pytest.fixture
def records(folder: Path) -> dict[str, Any]:
    return read_records(folder / FILE, coverage.BENCHMARK)


def test_coverage_records_what_was_found_and_what_it_cost(records: dict[str, Any]) -> None:
    result = records["siren"]["result"]
    assert result["groups"] == {"positive": 0, "sign": 4, "free": 0, "none": 0}
    assert result["gauge"]["sign_bits"] == 4 * 256 and result["gauge"]["continuous"] == 0
    assert result["moved_share"] == pytest.approx(1 - 3 / result["parameters"], abs=1e-6)
    assert not result["without_rule"] and 0 < result["extract_seconds"] < 600
    assert 0 < result["start_bytes"] <= result["extract_peak_bytes"] <= result["proof"]["peak_bytes"]
    proof = result["proof"]
    assert proof["holds"] and set(proof["errors"]) == {"eval", "training"} and proof["probes"] == 3
    assert set(records["siren"]["made"]) >= {"commit", "hardware", "versions", "date", "seconds"}


def test_coverage_goes_on_where_it_was_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = tuple(map(case_named, ("siren", "mlp")))
    monkeypatch.setattr(coverage, "CASES", cases)
    asked: list[str] = []
    monkeypatch.setattr(
        coverage, "in_process", lambda _, request, **__: asked.append(request["case"]) or {"error": "stopped"}
    )
    arguments = [*QUICK[2:], "--out", str(folder)]
    before = (folder / FILE).read_bytes()
    run.main(arguments)
    assert asked == ["mlp"]
    # What ended in an error is tried again, and what was asked for by name, and everything after a change.
    run.main(arguments)
    run.main([*arguments, "--only", "siren"])
    assert asked == ["mlp", "mlp", "siren"]
    (folder / FILE).write_bytes(before)
    monkeypatch.setattr(coverage, "code_digest", lambda: "other")
    run.main(arguments)
    assert asked[3:] == ["siren", "mlp"]
    (folder / FILE).write_bytes(before)


def test_coverage_counts_operations_without_a_rule_and_weights_that_stay() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.relu(self.b(torch.renorm(self.a(x), 2, 1, 1.0))))

    _, fields = coverage_measure.extracted(Odd(), torch.randn(3, 4))
    assert fields["without_rule"] == {"aten.renorm": 1} and "renorm" in fields["messages"][0]
    assert fields["groups"]["positive"] == 1
    # Only the second hidden layer moves: 5 x 6 weights and 5 biases that write to it, 2 x 5 that read it.
    assert fields["moved_share"] == pytest.approx(45 / 77, abs=1e-5)
    # The first does not, with its 4 x 6 weights and 6 biases; what is left are the biases of the outputs.
    ((origin, held),) = fields["unmoved"]["held"].items()
    assert origin.startswith("a.weight") and held == pytest.approx(30 / 77, abs=1e-5)
    assert fields["unmoved"]["tied"] == pytest.approx(2 / 77, abs=1e-5) and not fields["unmoved"]["unused"]
    assert coverage_measure.moved_share(extract(nn.Linear(3, 2), torch.zeros(1, 3))) == 0.0


def test_coverage_tables_have_a_row_per_network_and_mark_what_falls_short(records: dict[str, Any]) -> None:
    records["mlp"] = copy.deepcopy(records["siren"])
    records["mlp"]["result"]["proof"] |= {
        "holds": False,
        "errors": {"eval": 0.5, "training": 1e-12},
        "larger": ["h1 (0): signs, to 1e-16"],
    }
    records["gpt"] = copy.deepcopy(records["siren"])
    records["gpt"]["result"] = {"parameters": 12_000_000, "error": "ValueError: no"}
    text = coverage_tables.markdown(records)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows[1:]] == [
        "MLP 784-512-512-10", "SIREN 2-256x4-3", "GPT with tied embeddings",
    ]  # fmt: skip
    assert "**5e-01**" in rows[1] and "1 of 3" in rows[1] and "**ValueError**" in rows[3]
    assert "**0** of 1,024" in rows[1] and "0" in rows[2]
    assert "**the proof does not hold**" in text and "could be larger: h1 (0): signs" in text


def test_coverage_names_are_unique_and_networks_small_where_quick() -> None:
    cases = CASES
    assert len({case.name for case in cases}) == len({case.title for case in cases}) == len(cases)
    for case in cases:
        if case.quick:
            assert sum(p.numel() for p in case.build().parameters()) < 5e6


def test_coverage_committed_results_are_of_every_case_and_hold() -> None:
    records = committed(coverage.BENCHMARK)
    assert set(records) == {case.name for case in CASES}
    assert all(record["result"]["proof"]["holds"] for record in records.values())
