"""Meta-training of an update rule: it learns, resumes bit-exactly, releases, and refuses what is wrong."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from amortopt import load_release
from amortopt.meta.fit import main
from amortopt.meta.rule.module import UpdateRuleModule
from amortopt.meta.rule.truncated import Estimate
from tests.meta.tiny import error_of

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "rule": {"net": "unf", "width": 4, "depth": 1},
        "inner": [
            {
                "problem": {"name": "mnist1d"},
                "family": {"name": "mlp", "activation": "tanh", "widths": [40, width, 10]},
                "batch": 4,
                "networks": 2,
            }
            for width in (3, 4)
        ],
        "estimator": {"name": "truncated", "truncation": 2},
        "horizon": 6,
        "first_horizon": 2,
        "warmup_steps": 2,
        "val_networks": 1,
    },
    "trainer": {
        "max_steps": 10,
        "val_check_interval": 4,
        "log_every_n_steps": 2,
        "accelerator": "cpu",
        "devices": 1,
        "enable_progress_bar": False,
    },
    "save_every": 5,
}
PES = ["--model.estimator", "{name: pes, truncation: 2, sigma: 0.01}"]
WHOLE = ["--model.estimator", "{name: whole, sigma: 0.1}", "--model.shortest", "2"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def fit_args(recipe: Path, runs: Path, *more: str) -> list[str]:
    return ["--config", str(recipe), "--runs", str(runs), *more]


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "tiny" / "last.ckpt", weights_only=True)


def module(**changed: Any) -> UpdateRuleModule:
    torch.manual_seed(0)
    return UpdateRuleModule(**(TINY["model"] | changed))


@pytest.mark.parametrize(
    "more", [[], [*PES, "--model.together", "true"], WHOLE], ids=["truncated", "pes", "whole"]
)
def test_run_resumed_after_a_crash_gives_the_same_bits(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    main(fit_args(recipe, tmp_path / "whole", *more))
    step = UpdateRuleModule.training_step

    def crash(self: UpdateRuleModule, batch: Any, batch_idx: int) -> None:
        if self.global_step == 7:
            raise RuntimeError("crash")
        step(self, batch, batch_idx)

    with monkeypatch.context() as m, pytest.raises(RuntimeError, match="crash"):
        m.setattr(UpdateRuleModule, "training_step", crash)
        main(fit_args(recipe, tmp_path / "parts", *more))
    assert state(tmp_path / "parts")["global_step"] == 5
    main(fit_args(recipe, tmp_path / "parts", "--ckpt_path", "last", *more))
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert whole["global_step"] == parts["global_step"] == 10
    for key in ("state_dict", "inner_runs"):
        torch.testing.assert_close(whole[key], parts[key], rtol=0, atol=0)
    torch.testing.assert_close(
        whole["optimizer_states"][0]["state"], parts["optimizer_states"][0]["state"], rtol=0, atol=0
    )


def test_release_holds_the_average_and_what_was_measured(recipe: Path, tmp_path: Path) -> None:
    main(fit_args(recipe, tmp_path))
    release, saved = load_release(tmp_path / "tiny" / "release"), state(tmp_path)["state_dict"]
    for name, value in release.module.state_dict().items():
        assert torch.equal(value, saved[f"average.{name}"]), name
    assert release.results["training"]["steps"] == 10
    assert release.results["horizon"] == 6
    assert set(release.results["problems"]) == {"mnist1d_mlp_1", "mnist1d_mlp_2"}


def test_logs_hold_every_problem(recipe: Path, tmp_path: Path) -> None:
    main(fit_args(recipe, tmp_path))
    with (tmp_path / "tiny" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("train_loss", "val_loss", "val_final"):
        for problem in ("mnist1d_mlp_1", "mnist1d_mlp_2"):
            assert [row for row in rows if row[f"{name}/{problem}"]]
    horizons = [float(row["horizon"]) for row in rows if row["horizon"]]
    assert horizons[0] == 2 and horizons[-1] == 6


def test_training_lowers_the_losses(recipe: Path, tmp_path: Path) -> None:
    more = ["--model.lr", "0.03", "--model.horizon", "10", "--model.val_networks", "16"]
    more += ["--trainer.val_check_interval", "60"]
    before, after = (
        main(fit_args(recipe, tmp_path, *more, "--trainer.max_steps", steps, "--name", f"tiny-{steps}"))
        or load_release(tmp_path / f"tiny-{steps}" / "release").results["problems"]
        for steps in ("1", "60")
    )
    for problem, losses in before.items():
        assert after[problem]["final_loss"] < losses["final_loss"] - 0.01, (before, after)


def test_gradient_that_is_not_finite_is_left_out(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = UpdateRuleModule._add

    def spoilt(self: UpdateRuleModule, k: int, estimate: Any) -> int:
        if self.global_step == 3:
            estimate.grads[0].fill_(float("nan"))
        return add(self, k, estimate)

    monkeypatch.setattr(UpdateRuleModule, "_add", spoilt)
    main(fit_args(recipe, tmp_path))
    saved = state(tmp_path)
    assert saved["skipped_steps"] == [1, 0] and saved["global_step"] == 10
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_state_of_another_rule_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(fit_args(recipe, tmp_path, "--trainer.max_steps", "2"))
    resumed = fit_args(recipe, tmp_path, "--ckpt_path", "last", "--model.rule.net", "mlp")
    message = error_of(resumed, capsys)
    assert "model.rule.net" in message and "--name" in message


def test_damping_may_change_when_a_run_goes_on(recipe: Path, tmp_path: Path) -> None:
    main(fit_args(recipe, tmp_path, "--trainer.max_steps", "2"))
    resumed = ("--ckpt_path", "last", "--model.rule.damping", "0", "--out", f"{tmp_path}/second")
    main(fit_args(recipe, tmp_path, "--trainer.max_steps", "4", *resumed))
    release = load_release(tmp_path / "second")
    assert release.module.damping == 0 and release.results["training"]["steps"] == 4


@pytest.mark.parametrize(
    "args, words",
    [
        (["--model.rule.net", "cnn"], ["net: got 'cnn'"]),
        (["--model.rule.widht", "3"], ["widht", "width"]),
        (["--model.estimator.name", "es"], ["estimator.name: got 'es'", "pes"]),
        (["--model.estimator.sigma", "1"], ["sigma", "truncation"]),
        (["--model.estimator.bound", "nan"], ["bound: got"]),
        (["--model.estimator.truncation", "abc"], ["truncation: got 'abc'"]),
        (["--model.rule.table_rate", "nan"], ["table_rate: got"]),
        (["--model.draws", "{slowest: 1.0, fastest: 0.1}"], ["draws.slowest: got 1.0"]),
        (["--model.draws.reparametrise", "0.5"], ["draws.reparametrise: got 0.5"]),
        (["--model.lr", "-1"], ["lr: got -1.0"]),
        (["--model.horizon", "0"], ["horizon: got 0"]),
        (["--model.inner", "[]"], ["inner: got no problem"]),
        (["--model.inner", "[{problem: {name: mnist1d}}]"], ["inner[0]", "family"]),
        (
            ["--model.inner", "[{problem: {name: mnist1e}, family: {name: mlp}}]"],
            ["inner[0].problem", "mnist1e"],
        ),
        (["--trainer.gradient_clip_val", "1.0"], ["gradient_clip_val", "model.clip"]),
        (["--model.draws.constant", "0"], ["draws.constant: got 0"]),
        (["--model.estimator", "{name: whole, sigma: -1}"], ["sigma: got -1"]),
        (["--model.estimator", "{name: whole, truncation: 2}"], ["truncation", "sigma"]),
        ([*PES, "--model.compile", "true"], ["compile: got true", "pes"]),
        ([*WHOLE, "--model.compile", "true"], ["compile: got true", "whole"]),
    ],
)
def test_wrong_values_are_named_before_anything_is_made(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: list[str]
) -> None:
    message = error_of(fit_args(recipe, tmp_path / "runs", *args), capsys)
    assert all(word in message for word in words), message
    assert not (tmp_path / "runs").exists()


def test_odd_number_of_networks_cannot_be_pairs(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = "[{problem: {name: mnist1d}, family: {name: mlp, activation: tanh}, networks: 3}]"
    message = error_of(fit_args(recipe, tmp_path, *PES, "--model.inner", inner), capsys)
    assert "networks: got 3" in message


def test_large_problem_does_not_drown_the_others() -> None:
    one = module(balance=True, clip=0.0)
    grads = [torch.ones_like(p) for p in one.rule.parameters()]
    norms = []
    for k, scale in enumerate((1e-3, 1e3)):
        one.rule.zero_grad(set_to_none=True)
        one._add(k, Estimate(torch.tensor(1.0), [scale * g for g in grads]))
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in one.rule.parameters()]).item())  # pyright: ignore
    assert norms == pytest.approx([1.0, 1.0])


def test_a_rule_without_a_network_is_measured_and_released(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = ["--model.rule.net", "none", "--model.rule.mix", "[0.3, 0.0, 0.7, 0.0]"]
    main(fit_args(recipe, tmp_path, *numbers))
    assert "a rule without a network has nothing to train" in capsys.readouterr().out
    release = load_release(tmp_path / "tiny" / "release", "rule")
    assert release.module.config["mix"] == [0.3, 0.0, 0.7, 0.0]
    for row in release.results["problems"].values():
        assert row["final_loss"] != row["untrained_final_loss"]  # that is Muon's and Adam's
    assert release.results["training"]["steps"] == 0
