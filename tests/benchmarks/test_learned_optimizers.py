"""benchmarks/learned_optimizers.py: fair baselines, one start for all, results that one can go on with."""

from __future__ import annotations

import importlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import pytest
import torch

from amortopt import Release, save_release
from amortopt.metanets.update_rule.rule import UpdateRule

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The benchmark's modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        names = ("optimizers", "settings", "training", "tuning", "store", "parts", "tables", "pictures")
        modules = {name: importlib.import_module(f"learned.{name}") for name in names}
        yield SimpleNamespace(run=importlib.import_module("learned_optimizers"), **modules)


@pytest.fixture
def tiny(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Settings, a plan and a horizon of seconds; results go to a folder of the test's own."""
    s = bench.settings
    small = {"name": "mlp", "activation": "relu", "widths": (40, 4, 10)}
    seen = s.Setting("mlp", {"name": "mnist1d"}, small, 8)
    settings = {"mlp": seen, "mlp-16": seen.widened("mlp-16", widths=(40, 6, 10))}
    plan = replace(
        s.QUICK,
        test_seeds=2,
        screen=32,
        stretch=2,
        longer=True,
        baselines=("sgd", "adam", "adamw"),
        decays=(0.01,),
    )
    for module in (bench.run, bench.parts, bench.tables):
        monkeypatch.setattr(module, "SETTINGS", settings)
    for module in (bench.run, bench.tables):
        monkeypatch.setattr(module, "SEEN", (seen,))
    for module in (bench.tables, bench.pictures):
        monkeypatch.setattr(module, "HORIZON", 6)
    for name in ("baseline_parts", "rule_part"):
        made = getattr(bench.parts, name)
        monkeypatch.setattr(bench.run, name, lambda *a, made=made: made(*a, horizon=6))
    monkeypatch.setattr(bench.run, "QUICK", plan)
    monkeypatch.setattr(bench.run.learned_step_cost, "main", lambda args: None)  # times
    monkeypatch.setattr(bench.run, "QUICK_UNSEEN", ("mlp-16",))
    monkeypatch.setattr(bench.run, "RESULTS", tmp_path / "results")
    return SimpleNamespace(**{**vars(bench), "settings": settings, "plan": plan})


def release(folder: Path, net: str) -> str:
    torch.manual_seed(0)
    rule = UpdateRule(net, width=4)  # type: ignore[arg-type]
    made = Release(rule, f"tiny-{net}", recipe="none", seeds={"rule": 0}, results={"loss": 1.0})
    return str(save_release(folder / net, made))


def torch_optimizer(weights: torch.Tensor, config: Any) -> torch.optim.Optimizer:
    rate = config.learning_rate
    if config.optimizer in ("sgd", "nesterov"):
        return torch.optim.SGD([weights], lr=rate, momentum=0.9, nesterov=config.optimizer == "nesterov")
    if config.optimizer == "adam":
        return torch.optim.Adam([weights], lr=rate)
    return torch.optim.AdamW([weights], lr=rate, weight_decay=config.weight_decay)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "adamw"])
def test_optimizer_equals_torch(bench: Any, name: str) -> None:
    o, steps, generator = bench.optimizers, 20, torch.Generator().manual_seed(0)
    configs = [
        o.Config(name, 0.1, "constant", 0.1 if name == "adamw" else 0.0),
        o.Config(name, 0.01, "warmup"),
    ]
    flat = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    targets = torch.randn(steps, 2, 7, generator=generator, dtype=torch.float64)
    stepper = o.HandMade(configs, steps)
    ours, state = flat.clone(), stepper.init(flat)
    for t in range(steps):
        ours, state = stepper.step(ours, ours - targets[t], state, t)
    for b, config in enumerate(configs):
        weights = flat[b].clone().requires_grad_()
        optimizer = torch_optimizer(weights, config)
        factors = o.factors(config.schedule, steps)
        for t in range(steps):
            optimizer.param_groups[0]["lr"] = config.learning_rate * float(factors[t])
            weights.grad = weights.detach() - targets[t, b]
            optimizer.step()
        torch.testing.assert_close(ours[b], weights.detach(), rtol=1e-6, atol=1e-7)


def test_stepper_refuses_mixed_optimizers(bench: Any) -> None:
    o = bench.optimizers
    with pytest.raises(ValueError, match="expected one; make a stepper for each"):
        o.HandMade([o.Config("sgd", 0.1), o.Config("adam", 0.1)], 5)


def test_schedules_rise_and_fall(bench: Any) -> None:
    constant, cosine, warmup = (bench.optimizers.factors(s, 100) for s in ("constant", "cosine", "warmup"))
    assert bool((constant == 1).all()) and cosine[0] == 1 and float(cosine[-1]) < 0.01
    assert (
        int(warmup.argmax()) in (9, 10)
        and float(warmup[0]) == pytest.approx(0.1)
        and float(warmup[-1]) < 0.01
    )
    assert bool((cosine.diff() < 0).all())


def test_candidates_share_starts_and_minibatches(tiny: Any) -> None:
    starts = tiny.training.Starts(tiny.settings["mlp"].inner, "test", 2)
    config = tiny.optimizers.Config("adam", 0.01)
    alone = tiny.training.train(starts, tiny.optimizers.HandMade([config] * 2, 5), 5)
    several = tiny.training.train(starts, tiny.optimizers.HandMade([config] * 6, 5), 5, repeats=3)
    torch.testing.assert_close(several.losses, alone.losses.repeat(1, 3))
    torch.testing.assert_close(several.flat[5], alone.flat[5].repeat(3, 1))


def test_roles_have_other_starts(tiny: Any) -> None:
    inner = tiny.settings["mlp"].inner
    test, tuning = (tiny.training.Starts(inner, role, 2) for role in ("test", "tuning"))
    assert not torch.equal(test.flat, tuning.flat)
    assert not torch.equal(test.stream()()[0], tuning.stream()()[0])


def test_train_loss_of_a_diverged_network_is_infinite(tiny: Any) -> None:
    inner = tiny.settings["mlp"].inner
    flat = tiny.training.Starts(inner, "test", 2).flat
    flat[1] = math.nan
    for examples in (None, 32):
        good, bad = tiny.training.train_loss(inner, flat, examples).tolist()
        assert math.isfinite(good) and bad == math.inf


def test_grid_grows_until_the_best_is_inside(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(
        self: Any, configs: Any, starts: Any
    ) -> Any:  # best at 1.78: 5 quarter-decades above the start
        return {c: [abs(math.log10(c.learning_rate) - 0.25)] for c in configs}

    monkeypatch.setattr(tiny.tuning.Tuner, "_losses", losses)
    plan = replace(tiny.plan, fine=True)
    tuned = tiny.tuning.Tuner(tiny.settings["mlp"], 3, plan).tune("sgd")
    tried = sorted(config.learning_rate for config in tuned.tried)
    assert tuned.best.learning_rate == 1.78 and tuned.loss == pytest.approx(0, abs=1e-3)
    assert tried[0] < 1.78 < tried[-1] and {1.0, 3.16} <= set(tried)


def test_diverging_candidates_lead_to_smaller_rates(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(self: Any, configs: Any, starts: Any) -> Any:
        return {c: [math.inf if c.learning_rate > 2e-3 else 2e-3 - c.learning_rate] for c in configs}

    monkeypatch.setattr(tiny.tuning.Tuner, "_losses", losses)
    tuned = tiny.tuning.Tuner(tiny.settings["mlp"], 3, tiny.plan).tune("sgd")
    assert tuned.best.learning_rate == 0.001


def test_a_lucky_candidate_loses_the_final(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(self: Any, configs: Any, starts: Any) -> Any:
        lucky = {c: 0.0 if c.learning_rate == 0.1 else 1.0 for c in configs}
        return {c: [loss if starts is self.starts else 5 - 4 * loss] * 2 for c, loss in lucky.items()}

    monkeypatch.setattr(tiny.tuning.Tuner, "_losses", losses)
    plan = replace(tiny.plan, finalists=2, final_seeds=2)
    assert tiny.tuning.Tuner(tiny.settings["mlp"], 3, plan).tune("sgd").best.learning_rate != 0.1


def test_run_measures_and_goes_on(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule, rival = release(tmp_path, "unf"), release(tmp_path, "mlp")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "learned_step_cost.md").write_text("# Cost\n\n| network | ratio |\n| big | 7x |\n")
    command = ["--quick", "--out", str(tmp_path / "out"), "--rules", rule, "--rivals", rival]
    tiny.run.main(command)
    path = tmp_path / "out" / "learned_optimizers.json"
    first = json.loads(path.read_text())["records"]
    assert set(first) == {
        *(f"baseline/mlp/6/{name}" for name in ("sgd", "adam", "adamw")),
        *(f"baseline/{at}/{name}" for at in ("mlp/24", "mlp-16/6") for name in ("sgd", "adam")),
        *(f"rule/tiny-{net}/{label}" for net in ("unf", "mlp") for label in ("mlp", "mlp-16")),
    }
    assert set(first["rule/tiny-unf/mlp"]["result"]["final"]) == {"6", "24"}
    assert {"commit", "hardware", "seconds"} <= set(first["rule/tiny-unf/mlp"]["made"])
    tiny.run.main(command)
    assert json.loads(path.read_text())["records"] == first

    # Another rule: its baselines are there already.
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / path.name).write_text(path.read_text())
    tiny.run.main(["--quick", "--out", str(tmp_path / "other"), "--rules", rival, "--only", "mlp"])
    second = json.loads((tmp_path / "other" / path.name).read_text())["records"]
    assert second["baseline/mlp/6/adam"] == first["baseline/mlp/6/adam"]

    text = (tmp_path / "out" / "learned_optimizers.md").read_text()
    assert (
        "UNF (`tiny-unf`)" in text and "per-parameter MLP (`tiny-mlp`)" in text and "same meta-budget" in text
    )
    assert "| big | 7x |" in text and "batch 8" in text
    block = tiny.tables.readme_block(first, quick=True).splitlines()
    assert (block[0], block[-1]) == (tiny.tables.BEGIN, tiny.tables.END)
    for suffix in ("", "_longer", "_unseen"):
        png = (tmp_path / "out" / f"learned_optimizers{suffix}.png").read_bytes()
        assert matplotlib.image.imread(io.BytesIO(png)).std() > 0.01


def test_changed_plan_is_measured_anew(tiny: Any, tmp_path: Path) -> None:
    store = tiny.store.Store(tmp_path / "r.json", quick=True)
    store.measure("a", {"plan": tiny.plan}, lambda: 1.0)
    again = tiny.store.Store(tmp_path / "r.json", quick=True)
    assert again.have("a", {"plan": tiny.plan})
    assert not again.have("a", {"plan": replace(tiny.plan, screen=1)})
    with pytest.raises(ValueError, match="pass another --out"):
        tiny.store.Store(tmp_path / "r.json")


def test_table_marks_the_lowest_and_divergence(tiny: Any) -> None:
    lines = [
        tiny.tables.Line("sgd", "SGD", "baseline", {("mlp", 6): [1.0, 1.1]}),
        tiny.tables.Line("x", "UNF", "main", {("mlp", 6): [0.5, 0.7]}),
        tiny.tables.Line("y", "NFN", "rival", {("mlp", 6): [0.5, None]}),
    ]
    text = tiny.tables.table(lines, "seen")
    assert "**0.600 ±" in text and "**1.050" not in text and "diverges" in text
    assert "-0.450" in tiny.tables.verdicts(lines)[0]


@pytest.mark.parametrize(
    ("command", "match"),
    [
        (["--only", "nothing"], "expected some of mlp"),
        (["--parts", "rules", "--rules"], "expected at least one; pass --rules"),
        (["--readme"], "holds no results"),
        (["--rules", "no-such-rule"], "no-such-rule"),
    ],
)
def test_bad_command_is_explained(tiny: Any, tmp_path: Path, command: list[str], match: str) -> None:
    with pytest.raises(SystemExit, match=match):
        tiny.run.main(["--quick", "--out", str(tmp_path / "bad"), *command])


def test_store_keeps_what_another_process_measured(bench: Any, tmp_path: Path) -> None:
    first, second = (bench.store.Store(tmp_path / "r.json") for _ in range(2))
    first.measure("a", {"x": 1}, lambda: 1)
    second.measure("b", {"x": 2}, lambda: 2)
    first.measure("c", {"x": 3}, lambda: 3)
    assert set(bench.store.Store(tmp_path / "r.json").records) == {"a", "b", "c"}


def test_readme_shows_the_results_file(bench: Any) -> None:
    folder = ROOT / "benchmarks" / "results"
    store = bench.store.Store(folder / bench.store.FILE)
    block = bench.tables.readme_block(store.records, bench.run.step_cost(store), quick=False)
    assert block in (ROOT / "README.md").read_text(encoding="utf-8")
