"""benchmarks/symmetry_coverage.py measures, goes on where it was stopped, and reports what was measured."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from amortopt.symmetry import extract

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "symmetry_coverage.json"
QUICK = ["--only", "siren", "--elements", "1", "--probes", "3", "--threads", "1"]


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The benchmark's modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        names = {"run": "symmetry_coverage"} | {
            name: f"_coverage_{name}" for name in ("cases", "measure", "report")
        }
        yield SimpleNamespace(**{key: importlib.import_module(name) for key, name in names.items()})


@pytest.fixture(scope="module")
def folder(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the smallest network."""
    folder = tmp_path_factory.mktemp("coverage")
    bench.run.main([*QUICK, "--out", str(folder)])
    return folder


@pytest.fixture
def records(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "symmetry_coverage.json").read_text())["records"]


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


def test_coverage_goes_on_where_it_was_stopped(
    bench: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.run, "CASES", (bench.cases.case("siren"), bench.cases.case("mlp")))
    asked: list[str] = []
    monkeypatch.setattr(
        bench.run, "measure", lambda each, *_: asked.append(each.name) or {"error": "stopped"}
    )
    arguments = [*QUICK[2:], "--out", str(folder)]
    before = (folder / "symmetry_coverage.json").read_bytes()
    bench.run.main(arguments)
    assert asked == ["mlp"] and "SIREN 2-256x4-3: kept" in capsys.readouterr().out
    # What ended in an error is tried again, and what was asked for by name, and everything after a change.
    bench.run.main(arguments)
    bench.run.main([*arguments, "--only", "siren"])
    assert asked == ["mlp", "mlp", "siren"]
    (folder / "symmetry_coverage.json").write_bytes(before)
    monkeypatch.setattr(bench.run, "code_digest", lambda: "other")
    bench.run.main(arguments)
    assert asked[3:] == ["siren", "mlp"]
    (folder / "symmetry_coverage.json").write_bytes(before)


def test_coverage_keeps_the_stages_before_the_time_limit(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "slow.py"
    program.write_text(
        'import time\nprint(\'{"parameters": 3}\', flush=True)\nprint("noise")\ntime.sleep(60)\n'
    )
    monkeypatch.setattr(bench.run, "PROGRAM", program)
    result = bench.run.measure(bench.cases.case("mlp"), {}, 2.0)
    assert result == {"parameters": 3, "error": "not done after 2 s"}


def test_coverage_records_a_process_that_fails(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "failing.py"
    program.write_text('print(\'{"parameters": 3}\')\nraise SystemExit("out of luck")\n')
    monkeypatch.setattr(bench.run, "PROGRAM", program)
    result = bench.run.measure(bench.cases.case("mlp"), {}, 60.0)
    assert result == {"parameters": 3, "error": "ended with code 1: out of luck"}


def test_coverage_counts_operations_without_a_rule_and_weights_that_stay(bench: Any) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.relu(self.b(self.a(x).cummax(1).values)))

    _, fields = bench.measure.extracted(Odd(), torch.randn(3, 4))
    assert fields["without_rule"] == {"aten.cummax": 1} and "cummax" in fields["messages"][0]
    assert fields["groups"]["positive"] == 1
    # Only the second hidden layer moves: 5 x 6 weights and 5 biases that write to it, 2 x 5 that read it.
    assert fields["moved_share"] == pytest.approx(45 / 77, abs=1e-5)
    assert bench.measure.moved_share(extract(nn.Linear(3, 2), torch.zeros(1, 3))) == 0.0


def test_coverage_tables_have_a_row_per_network_and_mark_what_falls_short(
    bench: Any, records: dict[str, Any]
) -> None:
    records["mlp"] = copy.deepcopy(records["siren"])
    records["mlp"]["result"]["proof"] |= {
        "holds": False,
        "errors": {"eval": 0.5, "training": 1e-12},
        "larger": ["h1 (0): signs, to 1e-16"],
    }
    records["gpt"] = copy.deepcopy(records["siren"])
    records["gpt"]["result"] = {"parameters": 12_000_000, "error": "ValueError: no"}
    text = bench.report.markdown(records)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows[1:]] == [
        "MLP 784-512-512-10", "SIREN 2-256x4-3", "GPT with tied embeddings",
    ]  # fmt: skip
    assert "**5e-01**" in rows[1] and "1 of 3" in rows[1] and "**ValueError**" in rows[3]
    assert "**0** of 1,024" in rows[1] and "0" in rows[2]
    assert "**the proof does not hold**" in text and "could be larger: h1 (0): signs" in text
    block = bench.report.readme_block(records)
    assert block.startswith(bench.report.BEGIN) and block.endswith(bench.report.END)
    assert len({line.count(" | ") for line in block.splitlines() if line.startswith("| ")}) == 1


def test_coverage_results_of_another_format_are_refused(bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "symmetry_coverage.json"
    path.write_text('{"format": 99, "benchmark": "symmetry_coverage"}')
    with pytest.raises(SystemExit, match=r"99.*expected"):
        bench.run.main(["--only", "siren", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="case: got 'resnet', expected one of mlp"):
        bench.run.main(["--only", "resnet", "--out", str(tmp_path / "new")])


def test_coverage_names_are_unique_and_networks_small_where_quick(bench: Any) -> None:
    cases = bench.cases.CASES
    assert len({case.name for case in cases}) == len({case.title for case in cases}) == len(cases)
    for case in cases:
        if case.quick:
            assert sum(p.numel() for p in case.build().parameters()) < 5e6


@pytest.mark.skipif(not RESULTS.is_file(), reason="not measured yet")
def test_readme_coverage_is_that_of_the_results_file(bench: Any) -> None:
    records = bench.run.read_results(RESULTS)
    assert set(records) == {case.name for case in bench.cases.CASES}
    assert bench.report.markdown(records) == RESULTS.with_suffix(".md").read_text(encoding="utf-8")
    block = bench.report.readme_block(records)
    assert block in (ROOT / "README.md").read_text(encoding="utf-8"), (
        "run python benchmarks/symmetry_coverage.py --readme"
    )
