"""Runs of `amortopt fit` in processes of their own, which may be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from amortopt.meta.fit import main as fit
from amortopt.meta.state import LAST

RECIPE = """
name: tiny
model:
  problem: {name: mnist1d}
  family: {name: mlp, activation: tanh, widths: [40, 6, 10]}
  metanet: {name: scalegmn, width: 8, channels: 2, layers: 1, heads: 2}
  warmup_steps: 2
data:
  zoo: FOLDER/zoo
  zoo_recipe: FOLDER/zoo.yaml
  networks: 3
  examples: 8
  input_noise: 0.4
  val_networks: 2
trainer:
  max_steps: STEPS
  val_check_interval: STEPS
  log_every_n_steps: STEPS
  accelerator: cpu
  devices: 1
  logger: false
  gradient_clip_val: 1.0
save_every: 1
"""
ZOO = """
problem: {name: mnist1d}
family: {name: mlp, activation: tanh, widths: [40, 6, 10]}
count: 24
epochs: 1
"""


def write_recipe(folder: Path, steps: int) -> Path:
    """A recipe that saves its state after every step, and that of the zoo, which the first run builds."""
    (folder / "zoo.yaml").write_text(ZOO)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("FOLDER", str(folder)).replace("STEPS", str(steps)))
    return recipe


def start(recipe: Path, runs: Path, *more: str) -> tuple[int, int]:
    """Start a run in a forked process; its id, and the file descriptor that its error is written to."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    code = 1
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            fit(
                [
                    "--config",
                    str(recipe),
                    "--runs",
                    str(runs),
                    "--trainer.enable_progress_bar",
                    "false",
                    *more,
                ]
            )
        code = 0
    except BaseException as error:
        os.write(writer, f"{type(error).__name__}: {error}".encode()[:4000])
    finally:
        os._exit(code)


def ended(run: tuple[int, int]) -> str:
    """Wait for a run; its error, empty if it came to its end."""
    child, reader = run
    with os.fdopen(reader, "rb") as pipe:
        error = pipe.read().decode()
    os.waitpid(child, 0)
    return error


def finish(recipe: Path, runs: Path, *more: str) -> None:
    """Run to the end; raises RuntimeError with the run's error."""
    if error := ended(start(recipe, runs, *more)):
        raise RuntimeError(error)


def kill(run: tuple[int, int], saved: Path, delay: float, patience: float = 120.0) -> bool:
    """Kill a run ``delay`` seconds after it has saved a state; False if it ended before."""
    child, reader = run
    before, until = mark(saved), time.monotonic() + patience
    while mark(saved) == before and time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            os.close(reader)
            return False
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reader)
    return os.WIFSIGNALED(status)


def mark(saved: Path) -> tuple[int, int] | None:
    """What tells one saved state from the next."""
    with contextlib.suppress(FileNotFoundError):
        found = saved.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def state(runs: Path) -> dict[str, Any]:
    """The last saved state of a run; raises if it is not whole."""
    return torch.load(runs / "tiny" / LAST, weights_only=True)


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors in a state, by their place."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from tensors(part, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for key, part in enumerate(value):
            yield from tensors(part, f"{path}.{key}")


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether weights, averages and the optimizer's moments are equal to the bit."""
    pairs = [dict(tensors({k: s[k] for k in ("state_dict", "optimizer_states")})) for s in (one, two)]
    return pairs[0].keys() == pairs[1].keys() and all(
        torch.equal(value, pairs[1][key]) for key, value in pairs[0].items()
    )
