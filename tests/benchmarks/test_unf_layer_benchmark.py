"""benchmarks/unf_layer.py runs, and keeps the times of a side that it does not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_unf_layer_benchmark_measures_and_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import unf_layer

    tiny = unf_layer.Plan(
        spaces=("small",), networks=(1, 2), channels=(2,), rounds=1, passes=1, slow_passes=1
    )
    small = ([(1, 0), (1,), (2, 1, 3, 4)], {0: 2, 1: 3, 2: 2, 3: 2, 4: 2})
    monkeypatch.setattr(unf_layer, "QUICK", tiny)
    monkeypatch.setitem(unf_layer.SPACES, "small", small)
    # The tests' own process keeps its allocator.
    monkeypatch.setattr(unf_layer, "keep_freed_memory", lambda: False)
    path = tmp_path / "unf_layer.json"
    unf_layer.main(["--quick", "--out", str(tmp_path)])
    assert (tmp_path / "unf_layer.md").read_text() in capsys.readouterr().out
    results = json.loads(path.read_text())
    assert results["format"] == unf_layer.FORMAT
    assert {"commit", "torch", "hardware", "load_average", "date"} <= results["made_by"].keys()
    assert [row["networks"] for row in results["rows"]] == [1, 2]
    for row in results["rows"]:
        assert row["amortopt"]["cpu_s"] > 0 and row["ratios"].keys() == {"slow"}

    jax = {"wall_s": 1e9, "cpu_s": 1e9}
    results["rows"][1] |= {"jax": jax, "compile_s": 1.0, "version": "1", "error": {"y": 0.0}, "jax_date": "x"}
    path.write_text(json.dumps(results))
    unf_layer.main(["--quick", "--out", str(tmp_path)])
    first, second = json.loads(path.read_text())["rows"]
    assert "jax" not in first and second["jax"] == jax and second["jax_date"] == "x"
    assert "Ahead of compiled JAX in 1 of 1 cases" in (tmp_path / "unf_layer.md").read_text()
