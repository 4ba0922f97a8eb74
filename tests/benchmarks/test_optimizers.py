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

from amortopt import Release, load_release, save_release
from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.training import Stepper
from benchmarks.harness.store import read_records
from benchmarks.optimizers import (
    cost,
    drawn,
    parts,
    pictures,
    run,
    search,
    settings,
    steppers,
    suite,
    suite_tasks,
    tables,
    training,
    tuning,
)


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
    monkeypatch.setattr(tables, "KNOWN", (seen,))
    for module in (tables, pictures):
        monkeypatch.setattr(module, "HORIZON", 6)
    for name in ("baseline_parts", "rule_parts"):
        monkeypatch.setattr(parts, name, partial(getattr(parts, name), horizon=6))
    monkeypatch.setattr(run, "QUICK", plan)
    monkeypatch.setattr(run, "QUICK_SETTINGS", ("mlp", "mlp-16"))
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    return SimpleNamespace(settings=chosen, plan=plan)


def release(folder: Path, net: str) -> str:
    torch.manual_seed(0)
    rule = UNFRule(net, width=4)  # type: ignore[arg-type]
    made = Release(rule, f"tiny-{net}", recipe="none", seeds={"rule": 0}, results={"loss": 1.0})
    return str(save_release(folder / net, made))


def test_optimizers_stepper_gives_each_network_its_settings() -> None:
    configs = [
        steppers.Config("adamw", 0.1, "warmup", 0.1), steppers.Config("adamw", 0.01, "warmup", 0.01)
    ]  # fmt: skip
    stepper = steppers.stepper_of(configs)
    assert stepper.optimizer == "adamw" and stepper.schedule == "warmup"
    assert stepper.learning_rate.tolist() == [0.1, 0.01] and stepper.weight_decay.tolist() == [0.1, 0.01]


@pytest.mark.parametrize("other", [{"optimizer": "adam"}, {"schedule": "cosine"}])
def test_optimizers_refuse_a_mixed_stepper(other: dict[str, str]) -> None:
    config = steppers.Config("sgd", 0.1)
    with pytest.raises(ValueError, match="expected one optimizer and schedule"):
        steppers.stepper_of([config, replace(config, **other)])


def test_optimizers_learned_rule_steps_as_the_rule_says(tiny: Any) -> None:
    torch.manual_seed(0)
    inner, rule = tiny.settings["mlp"].inner, UNFRule("unf", width=4)
    starts = training.Starts(inner, "test", 2)
    rates = torch.tensor([0.1, 0.02], dtype=torch.float64)
    run = training.train(starts, steppers.Learned(rule, inner.layout, rates, "cosine"), 3)
    flat, draw = inner.layout.pack(starts.params), starts.stream()
    state = rule.init_state(inner.layout, flat)
    for factor in (1.0, 0.75, 0.25):
        part = draw()
        _, grads = inner.losses_and_grads(flat, part.x, part.y)
        with torch.no_grad():
            direction, state = rule(inner.layout, flat, grads, state)
        flat = flat - factor * rates.float().unsqueeze(1) * direction
    torch.testing.assert_close(inner.layout.pack(run.params[3]), flat)


def test_optimizers_candidates_share_starts_and_minibatches(tiny: Any) -> None:
    starts = training.Starts(tiny.settings["mlp"].inner, "test", 2)
    config = steppers.Config("adam", 0.01)
    alone = training.train(starts, steppers.stepper_of([config] * 2), 5)
    several = training.train(starts, steppers.stepper_of([config] * 6), 5, repeats=3)
    torch.testing.assert_close(several.losses, alone.losses.repeat(1, 3))
    for name, p in alone.params[5].items():
        torch.testing.assert_close(several.params[5][name], p.repeat(3, *[1] * (p.ndim - 1)))


def test_optimizers_purposes_have_other_starts(tiny: Any) -> None:
    inner = tiny.settings["mlp"].inner
    test, tuning = (training.Starts(inner, role, 2) for role in ("test", "tuning"))
    assert not any(torch.equal(p, tuning.params[name]) for name, p in test.params.items() if p.any())
    assert not torch.equal(test.stream()().x, tuning.stream()().x)


def test_optimizers_train_loss_of_a_diverged_network_is_infinite(tiny: Any) -> None:
    inner = tiny.settings["mlp"].inner
    params = training.Starts(inner, "test", 2).params
    for p in params.values():
        p[1] = math.nan
    for examples in (None, 32):
        good, bad = training.train_loss(inner, params, examples).tolist()
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
    chosen = ["--parts", "baselines", "rules", "cost"]
    command = ["--quick", "--out", str(tmp_path / "out"), "--rules", rule, "--rivals", rival, *chosen]
    run.main(command)
    path = tmp_path / "out" / "learned_optimizers.json"
    first = read_records(path, run.BENCHMARK)
    assert set(first) == {
        *(f"baseline/mlp/6/{name}" for name in ("sgd", "adam", "adamw")),
        *(f"baseline/{at}/{name}" for at in ("mlp/24", "mlp-16/6") for name in ("sgd", "adam")),
        *(
            f"rule/{name}/{at}"
            for name in ("muon", "tiny-unf")
            for at in ("mlp/6", "mlp/24", "mlp/96", "mlp-16/6")
        ),
        *(f"rule/tiny-mlp/{label}/6" for label in ("mlp", "mlp-16")),
        "cost/small",
    }
    assert first["cost/small"]["result"]["seconds"]["adam"] > 0 and first["cost/small"]["result"]["ratio"] > 0
    for how in ("default", "default_falling"):
        assert set(first["rule/tiny-unf/mlp/24"]["result"][how]) == {"24"}
    # A rule that has learned nothing is Muon: so far this one is.
    found, muon = (first[f"rule/{name}/mlp/6"]["result"]["final"]["6"] for name in ("tiny-unf", "muon"))
    assert found == pytest.approx(muon, abs=1e-3)
    assert {"commit", "hardware", "seconds"} <= set(first["rule/tiny-unf/mlp/6"]["made"])
    run.main(command)
    assert read_records(path, run.BENCHMARK) == first

    # Another rule: its baselines are there already.
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / path.name).write_text(path.read_text())
    run.main(["--quick", "--out", str(tmp_path / "other"), "--rules", rival, "--only", "mlp", *chosen])
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


def test_optimizers_suite_runs_everyone_on_networks_of_other_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "QUICK_STEPS", 4)
    monkeypatch.setattr(suite, "GRIDS", {"adam": (0.003, 0.01)})
    monkeypatch.setattr(suite, "RULE_GRID", (0.01, 0.03))
    rule = release(tmp_path, "unf")
    out = str(tmp_path / "out")
    run.main(["--quick", "--out", out, "--rules", rule, "--parts", "suite", "--only", "sets", "logistic"])
    records = read_records(tmp_path / "out" / "learned_optimizers.json", run.BENCHMARK)
    optimizers, tasks = ("adam", "muon", "muon/falling", "tiny-unf"), ("sets", "logistic")
    assert set(records) == {f"suite/{task}/4/{name}" for task in tasks for name in optimizers}
    result = records["suite/sets/4/adam"]["result"]
    assert result["rate"] in (0.003, 0.01) and len(result["tuned"]["train"]) == 1
    assert all(value is not None for value in (*result["tried"], *result["default"]["held_out"]))
    text = (tmp_path / "out" / "learned_optimizers.md").read_text()
    assert "Held-out loss on networks of other kinds" in text and "sets, 4" in text
    for how in ("best of four rates, cosine", "default rate, constant", "default rate, cosine"):
        assert f"UNF (`tiny-unf`), {how}" in text and f"Muon and Adam, {how}" in text
    assert "of 2" in text.partition("the rule is ahead")[2]


def test_optimizers_search_measures_candidates_beside_muon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "STEPS", 30)
    run.main(["--quick", "--out", str(tmp_path), "--parts", "search"])
    records = read_records(tmp_path / "learned_optimizers.json", run.BENCHMARK)
    chosen = search.CANDIDATES[10]
    assert set(records) == {f"search/3/{title}" for title in (search.MUON, chosen.title)}
    shipped = load_release("unf-small", "rule").module.config
    assert {key: shipped[key] for key in chosen.numbers} == {
        key: list(value) if isinstance(value, tuple) else value for key, value in chosen.numbers.items()
    }
    text = (tmp_path / "learned_optimizers.md").read_text()
    assert f"| {chosen.title} |" in text and f"| {search.MUON} | +0.000 |" in text


def test_optimizers_drawn_tasks_are_the_same_for_all_and_by_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawn, "KINDS", ("regression", "siren", "mlp"))
    run.main(["--quick", "--out", str(tmp_path / "out"), "--parts", "drawn"])
    records = read_records(tmp_path / "out" / "learned_optimizers.json", run.BENCHMARK)
    shown = [candidate.title for candidate in (drawn.ADAMW, drawn.MUON, drawn.SHIPPED)]
    assert set(records) == {f"drawn/3/{title}" for title in shown}
    assert len({tuple(record["result"]) for record in records.values()}) == 1
    text = (tmp_path / "out" / "learned_optimizers.md").read_text()
    assert "| `unf-small`, 0.04 cosine |" in text
    assert "| AdamW, 0.001 constant | 0: +0.00" in text
    shipped = load_release("unf-small", "rule").module.config
    assert {key: shipped[key] for key in drawn.NUMBERS} == {
        key: list(value) if isinstance(value, tuple) else value for key, value in drawn.NUMBERS.items()
    }


def test_optimizers_compare_networks_with_the_rule_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawn, "KINDS", ("regression", "siren", "mlp"))
    options = ["--parts", "learned", "--rivals", release(tmp_path, "deepset"), release(tmp_path, "unf")]
    run.main(["--quick", "--out", str(tmp_path / "out"), *options])
    records = read_records(tmp_path / "out" / "learned_optimizers.json", run.BENCHMARK)
    assert set(records) == {f"learned/3/{name}" for name in ("none", "tiny-deepset", "tiny-unf")}
    losses = {key: record["result"]["tasks"] for key, record in records.items()}
    assert len({tuple(tasks) for tasks in losses.values()}) == 1
    fresh, other, none = (losses[f"learned/3/{name}"] for name in ("tiny-deepset", "tiny-unf", "none"))
    assert str(fresh) == str(other) != str(none)  # fresh networks add nothing to their rule, which is Muon
    text = (tmp_path / "out" / "learned_optimizers.md").read_text()
    assert "| Deep Set | 1 |" in text and "| UNF | 1 |" in text and "| per-parameter MLP |" not in text


def test_optimizers_ratios_are_cut_and_tiny_losses_are_equal() -> None:
    ratios = drawn.log_ratios([1.0, 1e-9, 100.0, math.inf, 2.0], [2.0, 1e-8, 1.0, 1.0, math.inf])
    assert ratios == pytest.approx([-math.log(2), 0.0, drawn.CLIP, drawn.CLIP, -drawn.CLIP])


@pytest.mark.parametrize("seed", range(11))
def test_optimizers_drawn_tasks_have_steps_of_a_length_from_their_weights(seed: int) -> None:
    task = drawn.draw_task(seed)
    again = drawn.DrawnStarts(drawn.draw_task(seed)).params
    starts = drawn.DrawnStarts(task).params
    assert all(torch.equal(starts[name], again[name]) for name in starts)
    stepper = drawn.SHIPPED.stepper(task.inner, (0.02, 0.04), "cosine")
    trained = drawn.train(drawn.DrawnStarts(task), stepper, 2, repeats=2).params[2]
    for name, start in starts.items():
        short, long = (trained[name] - start).flatten(1).norm(dim=1)
        assert 0 < short < long


@pytest.mark.slow
@pytest.mark.parametrize("name", list(suite_tasks.TASKS))
def test_optimizers_suite_tasks_take_a_step(name: str) -> None:
    task = suite_tasks.TASKS[name]
    found = suite.train(task, "muon", parts.muon(), 0.01, 2, 0, falling=True)
    assert found["train"] is not None and found["held_out"] is not None and found["worst"] < 3


def test_optimizers_table_marks_the_lowest_and_divergence(tiny: Any) -> None:
    lines = [
        tables.Line("sgd", "SGD", "baseline", {("mlp", 6): [1.0, 1.1]}),
        tables.Line("x", "UNF", "main", {("mlp", 6): [0.5, 0.7]}),
        tables.Line("y", "Deep Set", "rival", {("mlp", 6): [0.5, None]}),
    ]
    text = tables.loss_table(lines, "known")
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


def test_optimizers_a_rule_called_as_a_hand_made_optimizer_is_the_rule(tiny: Any) -> None:
    inner, rule = tiny.settings["mlp"].inner, UNFRule("none")
    stepper = steppers.stepper_of([steppers.Config("muon", 0.1)], {"muon": rule}, inner.layout)
    assert isinstance(stepper, steppers.Learned) and stepper.rule is rule
    assert isinstance(steppers.stepper_of([steppers.Config("muon", 0.1)]), Stepper)
