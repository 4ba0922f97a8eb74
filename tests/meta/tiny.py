"""A tiny recipe on a tiny zoo, as arguments of `amortopt fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from amortopt.cli.main import main
from amortopt.meta.one_pass.module import OnePassModule

TINY = """
name: tiny
model:
  problem: {name: mnist1d}
  family: {name: mlp, activation: tanh, widths: [40, 6, 10]}
  metanet: {name: scalegmn, width: 8, channels: 2, layers: 1, heads: 2}
  warmup_steps: 2
data:
  zoo: ZOO
  zoo_recipe: RECIPE
  networks: 3
  examples: 8
  input_noise: 0.4
  val_networks: 2
trainer:
  max_steps: 10
  gradient_clip_val: 1.0
  val_check_interval: 4
  log_every_n_steps: 2
  accelerator: cpu
  devices: 1
save_every: 5
"""

ZOO = """
problem: {name: mnist1d}
family: {name: mlp, activation: tanh, widths: [40, 6, 10]}
count: 24
epochs: 1
"""


def write_recipe(folder: Path) -> Path:
    """Write recipe and zoo recipe; the zoo itself is built by the first run."""
    zoo_recipe, recipe = folder / "zoo.yaml", folder / "recipe.yaml"
    zoo_recipe.write_text(ZOO)
    recipe.write_text(TINY.replace("ZOO", str(folder / "zoo")).replace("RECIPE", str(zoo_recipe)))
    return recipe


def fit_args(recipe: Path, runs: Path, *more: str) -> list[str]:
    """Arguments of `amortopt fit`."""
    return ["--config", str(recipe), "--runs", str(runs), "--trainer.enable_progress_bar", "false", *more]


def tiny_module(
    activation: str = "tanh", start: Literal["identity", "proposal"] = "proposal", **config: Any
) -> OnePassModule:
    """A module with a tiny metanet for the networks of the tiny zoo, made from seed 0."""
    torch.manual_seed(0)
    return OnePassModule(
        {"name": "mnist1d"},
        {"name": "mlp", "activation": activation, "widths": [40, 6, 10]},
        {"name": "scalegmn", "width": 8, "channels": 2, "layers": 1, "heads": 2, **config},
        start=start,
    )


def error_of(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which `amortopt fit` refuses these arguments."""
    capsys.readouterr()
    assert main(["fit", *args]) == 2
    printed = capsys.readouterr().err
    _, _, message = printed.rpartition("error: ")
    assert printed.count("error: ") == 1 and message.count("\n") == 1, printed
    return message.strip()
