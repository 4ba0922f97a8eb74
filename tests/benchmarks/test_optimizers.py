"""benchmarks/optimizers: fair baselines, one start for all, results that one can go on with."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import pytest
import torch

from amortopt import Release, save_release
from amortopt.metanets.update_rule.rule import UpdateRule
from benchmarks.harness.store import read_records
from benchmarks.optimizers import cost, parts, pictures, run, settings, steppers, tables, training, tuning


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Settings, a plan and a horizon of seconds; results go to a temporary folder."""
    small = {"name": "mlp", "activation": "relu", "widths": (40, 4, 10)}
    seen = settings.Setting("mlp", {"name": "mnist1d"}, small, 8)
    chosen = {"mlp": seen, "mlp-16": seen.widened("mlp-16", widths=(40, 6, 10))}
    plan = replace(
        settings.QUICK,
        **{"test_seeds": 2, "screen": 32, "stretch": 2, "longer": True, "decays": (0.01,)},
        baselines=("sgd", "adam", "adamw"),
    )
    for module in (run, tables):
        monkeypatch.setattr(module, "SETTINGS", chosen)
    for module in (run, tables):
        monkeypatch.setattr(module, "SEEN", (seen,))
    for module in (tables, pictures):
        monkeypatch.setattr(module, "HORIZON", 6)
    for name in ("baseline_parts", "rule_part"):
        monkeypatch.setattr(parts, name, partial(getattr(parts, name), horizon=6))
    monkeypatch.setattr(run, "QUICK", plan)
    monkeypatch.setattr(run, "QUICK_UNSEEN", ("mlp-16",))
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    return SimpleNamespace(settings=chosen, plan=plan)


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
def test_optimizers_step_as_those_of_torch(name: str) -> None:
    o, steps, generator = steppers, 20, torch.Generator().manual_seed(0)
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


def test_optimizers_refuse_mixed_optimizers() -> None:
    o = steppers
    with pytest.raises(ValueError, match="expected one; make a stepper for each"):
        o.HandMade([o.Config("sgd", 0.1), o.Config("adam", 0.1)], 5)


def test_optimizers_schedules_rise_and_fall() -> None:
    constant, cosine, warmup = (steppers.factors(s, 100) for s in ("constant", "cosine", "warmup"))
    assert bool((constant == 1).all()) and cosine[0] == 1 and float(cosine[-1]) < 0.01
    assert (
        int(warmup.argmax()) in (9, 10)
        and float(warmup[0]) == pytest.approx(0.1)
        and float(warmup[-1]) < 0.01
    )
    assert bool((cosine.diff() < 0).all())


def test_optimizers_candidates_share_starts_and_minibatches(tiny: Any) -> None:
    starts = training.Starts(tiny.settings["mlp"].inner, "test", 2)
    config = steppers.Config("adam", 0.01)
    alone = training.train(starts, steppers.HandMade([config] * 2, 5), 5)
    several = training.train(starts, steppers.HandMade([config] * 6, 5), 5, repeats=3)
    torch.testing.assert_close(several.losses, alone.losses.repeat(1, 3))
    torch.testing.assert_close(several.flat[5], alone.flat[5].repeat(3, 1))


def test_optimizers_purposes_have_other_starts(tiny: Any) -> None:
    inner = tiny.settings["mlp"].inner
    test, tuning = (training.Starts(inner, role, 2) for role in ("test", "tuning"))
    assert not torch.equal(test.flat, tuning.flat)
    assert not torch.equal(test.stream()()[0], tuning.stream()()[0])


def test_optimizers_train_loss_of_a_diverged_network_is_infinite(tiny: Any) -> None:
    inner = tiny.settings["mlp"].inner
    flat = training.Starts(inner, "test", 2).flat
    flat[1] = math.nan
    for examples in (None, 32):
        good, bad = training.train_loss(inner, flat, examples).tolist()
        assert math.isfinite(good) and bad == math.inf


def test_optimizers_grid_grows_until_the_best_is_inside(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(
        self: Any, configs: Any, starts: Any
    ) -> Any:  # best at 1.78: 5 quarter-decades above the start
        return {c: [abs(math.log10(c.learning_rate) - 0.25)] for c in configs}

    monkeypatch.setattr(tuning.Tuner, "_losses", losses)
    plan = replace(tiny.plan, fine=True)
    tuned = tuning.Tuner(tiny.settings["mlp"], 3, plan).tune("sgd")
    tried = sorted(config.learning_rate for config in tuned.tried)
    assert tuned.best.learning_rate == 1.78 and tuned.loss == pytest.approx(0, abs=1e-3)
    assert tried[0] < 1.78 < tried[-1] and {1.0, 3.16} <= set(tried)


def test_optimizers_diverging_candidates_lead_to_smaller_rates(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(self: Any, configs: Any, starts: Any) -> Any:
        return {c: [math.inf if c.learning_rate > 2e-3 else 2e-3 - c.learning_rate] for c in configs}

    monkeypatch.setattr(tuning.Tuner, "_losses", losses)
    tuned = tuning.Tuner(tiny.settings["mlp"], 3, tiny.plan).tune("sgd")
    assert tuned.best.learning_rate == 0.001


def test_optimizers_lucky_candidate_loses_the_final(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(self: Any, configs: Any, starts: Any) -> Any:
        lucky = {c: 0.0 if c.learning_rate == 0.1 else 1.0 for c in configs}
        return {c: [loss if starts is self.starts else 5 - 4 * loss] * 2 for c, loss in lucky.items()}

    monkeypatch.setattr(tuning.Tuner, "_losses", losses)
    plan = replace(tiny.plan, finalists=2, final_seeds=2)
    assert tuning.Tuner(tiny.settings["mlp"], 3, plan).tune("sgd").best.learning_rate != 0.1


def test_optimizers_benchmark_measures_and_goes_on(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, rival = release(tmp_path, "unf"), release(tmp_path, "mlp")
    monkeypatch.setattr(cost, "CASES", (cost.Case("small", (4, 3, 2), 8),))
    monkeypatch.setattr(cost, "QUICK_SECONDS", 0.01)
    command = ["--quick", "--out", str(tmp_path / "out"), "--rules", rule, "--rivals", rival]
    run.main(command)
    path = tmp_path / "out" / "learned_optimizers.json"
    first = read_records(path, run.BENCHMARK)
    assert set(first) == {
        *(f"baseline/mlp/6/{name}" for name in ("sgd", "adam", "adamw")),
        *(f"baseline/{at}/{name}" for at in ("mlp/24", "mlp-16/6") for name in ("sgd", "adam")),
        *(f"rule/tiny-{net}/{label}" for net in ("unf", "mlp") for label in ("mlp", "mlp-16")),
        "cost/small",
    }
    assert first["cost/small"]["result"]["seconds"]["adam"] > 0 and first["cost/small"]["result"]["ratio"] > 0
    assert set(first["rule/tiny-unf/mlp"]["result"]["final"]) == {"6", "24"}
    assert {"commit", "hardware", "seconds"} <= set(first["rule/tiny-unf/mlp"]["made"])
    run.main(command)
    assert read_records(path, run.BENCHMARK) == first

    # Another rule: its baselines are there already.
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / path.name).write_text(path.read_text())
    run.main(["--quick", "--out", str(tmp_path / "other"), "--rules", rival, "--only", "mlp"])
    second = read_records(tmp_path / "other" / path.name, run.BENCHMARK)
    assert second["baseline/mlp/6/adam"] == first["baseline/mlp/6/adam"]

    text = (tmp_path / "out" / "learned_optimizers.md").read_text()
    assert (
        "UNF (`tiny-unf`)" in text and "per-parameter MLP (`tiny-mlp`)" in text and "same meta-budget" in text
    )
    assert "| small | 23 |" in text and "batch 8" in text
    assert "| small | 23 |" in tables.block(first, quick=True)
    for suffix in ("", "_longer", "_unseen"):
        png = (tmp_path / "out" / f"learned_optimizers{suffix}.png").read_bytes()
        assert matplotlib.image.imread(io.BytesIO(png)).std() > 0.01


def test_optimizers_table_marks_the_lowest_and_divergence(tiny: Any) -> None:
    lines = [
        tables.Line("sgd", "SGD", "baseline", {("mlp", 6): [1.0, 1.1]}),
        tables.Line("x", "UNF", "main", {("mlp", 6): [0.5, 0.7]}),
        tables.Line("y", "NFN", "rival", {("mlp", 6): [0.5, None]}),
    ]
    text = tables.loss_table(lines, "seen")
    assert "**0.600 ±" in text and "**1.050" not in text and "diverges" in text
    assert "-0.450" in tables.verdicts(lines)[0]


@pytest.mark.parametrize(
    ("command", "match"),
    [
        (["--parts", "rules", "--rules"], "expected at least one; pass --rules"),
        (["--report"], "holds no results"),
        (["--rules", "no-such-rule"], "no-such-rule"),
    ],
)
def test_optimizers_bad_command_is_explained(
    tiny: Any, tmp_path: Path, command: list[str], match: str
) -> None:
    with pytest.raises(SystemExit, match=match):
        run.main(["--quick", "--out", str(tmp_path / "bad"), *command])
