"""A tiny recipe on a tiny zoo, as arguments of `amortopt fit`."""

from __future__ import annotations

from pathlib import Path

TINY = """
name: tiny
model:
  task: {name: mnist1d}
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
task: {name: mnist1d}
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
