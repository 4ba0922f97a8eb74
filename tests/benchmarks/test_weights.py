"""benchmarks/weights: its predictors, and that it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from amortopt.symmetry import SymmetrySpec, act, extract, sample
from amortopt.zoo.formats.tiny_rnn_zoo import TinyRNNZooConfig, train_networks
from benchmarks.harness.store import Store, read_records
from benchmarks.weights import run
from benchmarks.weights.predictors import Budget, Data, StatNN, predict, train

CONFIG = TinyRNNZooConfig(
    count=40,
    hidden=5,
    terms=2,
    held_out=30,
    steps=(1, 60),
    train_size=(20, 60),
    val_fraction=0.2,
    test_fraction=0.2,
)


@pytest.fixture
def spec() -> SymmetrySpec:
    return extract(CONFIG.family.build(), CONFIG.problem.split("test").x[:4])


@pytest.mark.parametrize("name", ["unf", "statnn", "deep_set"])
def test_weights_predictors_do_not_see_how_units_are_numbered(name: str, spec: SymmetrySpec) -> None:
    params, _ = train_networks(CONFIG, 0, 3)
    params = {key: value.double() for key, value in params.items()}
    element = sample(spec, generator=torch.Generator().manual_seed(0))
    permuted = replace(element, scales={key: torch.ones_like(q) for key, q in element.scales.items()})
    each = [act(spec, permuted, {key: value[b] for key, value in params.items()}) for b in range(3)]
    moved = {key: torch.stack([one[key] for one in each]) for key in params}
    assert not torch.equal(moved["readout.weight"], params["readout.weight"])
    torch.manual_seed(0)
    model = run.MAKERS[name](spec, 8).double().eval()
    got, there = model(moved), model(params)
    torch.testing.assert_close(got, there, rtol=1e-9, atol=1e-12)
    assert there.std() > 1e-6


def test_weights_unf_sees_more_than_what_a_deep_set_sees(spec: SymmetrySpec) -> None:
    params, _ = train_networks(CONFIG, 0, 2)
    params = {key: value.double() for key, value in params.items()}
    shuffled = params | {"gru.weight_hh_l0": params["gru.weight_hh_l0"].flip(2)}  # another function
    torch.manual_seed(0)
    for name, blind in {"unf": False, "statnn": True, "deep_set": True}.items():
        model = run.MAKERS[name](spec, 8).double().eval()
        same = torch.allclose(model(shuffled), model(params), rtol=1e-9, atol=1e-12)
        assert same == blind, name


def test_weights_training_keeps_the_global_random_state_and_repeats(spec: SymmetrySpec) -> None:
    params, table = train_networks(CONFIG, 0, 40)
    data = Data(params, torch.as_tensor(table["success_rate"]).float())
    state = torch.get_rng_state()

    def once() -> torch.Tensor:
        budget = Budget(steps=6, batch=16, checks=2)
        trained = train(
            lambda: StatNN(spec, head=run.RATE, width=8), data, data, budget, learning_rate=0.01, seed=4
        )
        return predict(trained.model, data.params, chunk=7)

    assert torch.equal(once(), once())
    assert torch.equal(state, torch.get_rng_state())


def test_weights_benchmark_runs_and_does_not_measure_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = run.Plan(
        zoo=CONFIG,
        budget=Budget(steps=4, batch=8, checks=2),
        tuning=Budget(steps=2, batch=8, checks=1),
        widths={name: (4,) for name in run.MAKERS},
        seeds=2,
    )
    monkeypatch.setattr(run, "QUICK", plan)
    out, path = tmp_path / "results", tmp_path / "results" / "tiny_rnn_zoo.json"
    command = ["--quick", "--tasks", "tiny-rnn", "--out", str(out), "--zoo", str(tmp_path / "zoo")]
    run.main(command)
    stored = read_records(path, run.BENCHMARK)
    runs = [stored[f"unf/run/{seed}"]["result"]["tau"] for seed in range(2)]
    assert "predicted" in stored["unf/run/0"]["result"] and "predicted" not in stored["unf/run/1"]["result"]
    assert (out / "tiny_rnn_zoo.png").stat().st_size > 10_000
    text = (out / "tiny_rnn_zoo.md").read_text()
    assert all(title in text for title in ("UNF", "StatNN", "Deep Set", "0.8968"))
    assert f"{sum(runs) / 2:.4f}" in text

    monkeypatch.setattr(run, "train", lambda *_, **__: pytest.fail("trained again"))
    run.main(command)
    assert read_records(path, run.BENCHMARK) == stored
    monkeypatch.setattr(run, "train", train)
    Store(path, run.BENCHMARK, quick=True).drop("unf/run/1")
    run.main([*command, "--only", "unf"])
    resumed = read_records(path, run.BENCHMARK)
    assert [resumed[f"unf/run/{seed}"]["result"]["tau"] for seed in range(2)] == runs
