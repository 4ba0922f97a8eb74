"""Meta-training in stages: which reading learns when, and where each begins."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amortopt import load_release
from amortopt.cli.main import main
from amortopt.meta.one_pass.module import OnePassModule
from amortopt.meta.one_pass.stages import Stage
from amortopt.meta.one_pass.starts import Starts
from amortopt.metanets import Rounds
from amortopt.tasks import evaluate_many, make_family
from amortopt.tasks.problem_families import Curves
from tests.meta.tiny import error_of

RECIPE = """
name: tiny-stages
model:
  problem: {name: curves}
  family: {name: mlp, activation: tanh, widths: [40, 6, 10]}
  metanet:
    {name: rounds, rounds: 2, portion: 12, channels: 2, hidden: 6, conditions: [batch, function], probes: 30}
  stages:
  - {reading: batch, rounds: 1, share: 0.4}
  - {reading: batch, rounds: 2, share: 0.2}
  - {reading: function, rounds: 2, share: 0.2}
  - {reading: both, rounds: 1, share: 0.2}
  early_rounds: 0.3
  most_loss: 2.3
  warmup_steps: 1
data:
  pool: 20
  networks: 6
  read: [20, 30]
  examples: 20
  val_networks: 4
  val_read: 30
  starts: {problems: 10, epochs: [1, 2], examples: 40}
trainer:
  max_steps: 10
  gradient_clip_val: 1.0
  val_check_interval: 5
  limit_val_batches: 1
  log_every_n_steps: 5
  accelerator: cpu
  devices: 1
save_every: 5
"""


def fit(folder: Path, *more: str) -> int:
    (folder / "recipe.yaml").write_text(RECIPE)
    args = ["--config", str(folder / "recipe.yaml"), "--runs", str(folder), "--trainer.logger", "false"]
    return main(["fit", *args, "--trainer.enable_progress_bar", "false", *more])


def maps(module: OnePassModule) -> dict[str, Tensor]:
    assert isinstance(module.metanet, Rounds)
    return {name: p.detach().clone() for name, p in module.metanet.rules.named_parameters()}


def test_every_stage_moves_its_own_reading_and_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[dict[str, Tensor]] = []
    step = OnePassModule.training_step

    def watched(self: OnePassModule, *args: Any) -> Tensor:
        before.append(maps(self))
        return step(self, *args)

    monkeypatch.setattr(OnePassModule, "training_step", watched)
    assert fit(tmp_path) == 0
    assert len(before) == 10

    def moved(first: int, last: int) -> set[str]:
        return {
            name.split(".")[0] for name, p in before[last].items() if not torch.equal(p, before[first][name])
        }

    assert moved(0, 3) == moved(4, 5) == {"batch"}
    assert moved(6, 7) == {"function"}
    assert moved(8, 9) == {"both"}
    # The first stage leaves the second round alone; the second begins it where the first round is.
    assert torch.equal(before[0]["batch.left.0"][1], before[3]["batch.left.0"][1])
    assert torch.equal(before[4]["batch.left.0"][1], before[4]["batch.left.0"][0])
    # A new reading begins with the maps of the last stage.
    assert torch.equal(before[6]["function.left.0"], before[6]["batch.left.0"])
    assert torch.equal(before[8]["both.left.0"][2], before[8]["function.left.0"][0])
    release = load_release(tmp_path / "tiny-stages" / "release")
    assert release.module.conditions == {"batch", "function"}  # type: ignore[union-attr]
    assert release.module.config["most_examples"] == 15  # of 30, what each of two rounds reads
    probes = release.module.probes
    assert isinstance(probes, Tensor) and probes.shape == (30, 40) and bool(probes.abs().sum(1).all())


def test_resumed_between_stages_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert fit(whole) == 0
    step = OnePassModule.training_step

    def crash(self: OnePassModule, *args: Any) -> Tensor:
        if self.global_step == 6:
            raise RuntimeError("crash")
        return step(self, *args)

    with monkeypatch.context() as context:
        context.setattr(OnePassModule, "training_step", crash)
        with pytest.raises(RuntimeError, match="crash"):
            fit(broken)
    assert fit(broken, "--ckpt_path", "last") == 0
    expected, got = (
        load_release(each / "tiny-stages" / "release").module.state_dict() for each in (whole, broken)
    )
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


def test_starts_learn_their_own_problems() -> None:
    family, problems = make_family("mlp", widths=(40, 16, 10)), Curves()
    params = Starts(3, (1, 12), examples=400).train(problems, family, "train", seed=0)
    assert params["0.weight"].shape == (3, 2, 16, 40)
    read, _ = problems.draw("train", 0, 3, 400, 1)
    last = {name: p[:, -1] for name, p in params.items()}
    accuracy = evaluate_many(family.build(), last, read, problems.objective)[1]
    other = evaluate_many(
        family.build(), {n: p.roll(1, 0) for n, p in last.items()}, read, problems.objective
    )[1]
    assert float((accuracy - other).min()) > 0.05


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.stages", "[{reading: batch, share: 0.5}]"], r"got shares \[0.5\] of all steps"),
        (
            ["--model.stages", "[{reading: batch, share: 1.5}, {reading: batch, share: -0.5}]"],
            "expected positive ones that sum to 1",
        ),
        (["--model.stages", "[{reading: batch, rounds: 3}]"], "got 3 rounds, expected 1 to the metanet's 2"),
        (["--model.metanet.portion", "0"], "portion: got 0, expected a whole number of at least 1"),
        (["--model.most_loss", "0"], "most_loss: got 0.0, expected a positive number, or none"),
        (["--model.metanet.conditions", "[batch]"], "got the reading 'function'"),
        (["--data.starts.problems", "0"], "data.starts.problems: got 0, but the metanet reads functions"),
        (["--data.starts.problems", "30"], "starts.problems: got 30, expected at most the pool of 20"),
        (["--data.starts.epochs", "[2, 1]"], r"starts.epochs: got \[2, 1\], expected rising"),
        (["--model.metanet.probes", "1000"], "model.metanet.probes: got 1000, expected at most"),
    ],
)
def test_bad_stages_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    args = ["--config", str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path), "--trainer.logger", "false"]
    assert re.search(message, error_of([*args, *more], capsys))


def test_stages_of_a_metanet_without_rounds_are_refused() -> None:
    family = {"name": "mlp", "widths": [40, 6, 10]}
    with pytest.raises(ValueError, match="has no rounds; leave them out"):
        OnePassModule({"name": "mnist1d"}, family, {"name": "scalegmn", "width": 8}, stages=[Stage("batch")])
