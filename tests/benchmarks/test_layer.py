"""benchmarks/cost/layer.py runs, and keeps the times of a side that it does not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cost import layer, run
from benchmarks.harness.store import read_records


def test_layer_measures_and_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = layer.Plan(spaces=("small",), networks=(1, 2), channels=(2,), rounds=1, passes=1, slow_passes=1)
    small = ([(1, 0), (1,), (2, 1, 3, 4)], {0: 2, 1: 3, 2: 2, 3: 2, 4: 2})
    monkeypatch.setattr(layer, "QUICK", tiny)
    monkeypatch.setitem(layer.SPACES, "small", small)
    path, command = tmp_path / "unf_layer.json", ["--quick", "--parts", "layer", "--out", str(tmp_path)]
    run.main(command)
    assert (tmp_path / "unf_layer.md").read_text() in capsys.readouterr().out
    records = read_records(path, layer.BENCHMARK)
    assert set(records) == {"small/1/2", "small/2/2"}
    for record in records.values():
        assert record["result"]["amortopt"]["cpu_s"] > 0 and record["result"]["ratios"].keys() == {"slow"}

    content, jax = json.loads(path.read_text()), {"wall_s": 1e9, "cpu_s": 1e9}
    earlier = {"jax": jax, "compile_s": 1.0, "version": "1", "error": {"y": 0.0}, "jax_date": "x"}
    content["records"]["small/2/2"]["result"] |= earlier
    path.write_text(json.dumps(content))
    run.main([*command, "--again"])
    first, second = (record["result"] for record in read_records(path, layer.BENCHMARK).values())
    assert "jax" not in first and second["jax"] == jax and second["jax_date"] == "x"
    assert "Ahead of compiled JAX in 1 of 1 cases" in (tmp_path / "unf_layer.md").read_text()
