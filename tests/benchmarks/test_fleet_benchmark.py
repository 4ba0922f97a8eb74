"""benchmarks/fleet: that it runs, measures what it says and does not measure twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fleet import run
from benchmarks.harness.store import read_records


def test_fleet_runs_and_does_not_measure_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"UNSEEN": 4, "TUNED_ON": 2, "SIZES": (20,), "EPOCHS": (1,), "READ": 40, "JUDGED": 20}
    rows = ("start", "sgd/1", "prototype/1", "pass")
    for name, value in (small | {"ROWS": {key: key for key in rows}}).items():
        monkeypatch.setattr(run, name, value)
    command = ["--quick", "--fleets", "20", "--out", str(tmp_path)]
    run.main(command)
    records = read_records(tmp_path / "fleet.json", run.BENCHMARK)
    result = records["20"]["result"]
    assert set(result["rows"]["20"]) == set(rows)
    assert all(len(row) == 4 for row in result["rows"]["20"].values())
    assert result["training"]["steps"] == 40 and result["seconds"] > 0
    text = (tmp_path / "fleet.md").read_text()
    assert "20 problems: 20 examples" in text and "paired" in text
    monkeypatch.setattr(run, "meta_trained", lambda *_: pytest.fail("trained again"))
    run.main(command)
    assert read_records(tmp_path / "fleet.json", run.BENCHMARK) == records
