"""Runs of `amortopt fit` in processes of their own, which may be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
        status: Its exit status as text, ``"0"`` for success; the signal's name, such as ``"SIGKILL"``, if one
            ended it.
        error: What it raised, empty if nothing.
    """

    status: str
    error: str


def ended(run: tuple[int, int]) -> Ended:
    """Wait for a run's end."""
    child, reader = run
    with os.fdopen(reader, "rb") as pipe:
        error = pipe.read().decode()
    return Ended(status_of(os.waitpid(child, 0)[1]), error)


def status_of(status: int) -> str:
    """What ``waitpid`` says, as in `Ended`."""
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return str(os.waitstatus_to_exitcode(status))


def finish(recipe: Path, runs: Path, *more: str) -> str:
    """Run to the end; its exit status, which is ``"0"``.

    Raises:
        RuntimeError: It had another exit status; with the run's error.
    """
    return succeeded(ended(start(recipe, runs, *more)))


def succeeded(run: Ended) -> str:
    """The exit status ``"0"``; raises a RuntimeError with the run's error if it was another one."""
    if run.error or run.status != "0":
        raise RuntimeError(
            f"a run ended with exit status {run.status}: {run.error or 'no error was written'}"
        )
    return run.status


def kill(run: tuple[int, int], saved: Path, delay: float, patience: float = 120.0) -> Ended:
    """Kill a run ``delay`` seconds after it has saved a state.

    Returns:
        How it ended: by ``"SIGKILL"``, or with another status if it had ended before.

    Raises:
        RuntimeError: It saved nothing for ``patience`` seconds; it is killed then.
    """
    child, _ = run
    before, until = mark(saved), time.monotonic() + patience
    late = False
    while mark(saved) == before and not late:
        late = time.monotonic() > until
        # Not yet reaped: `ended` waits for it.
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return ended(run)
        time.sleep(0.001)
    time.sleep(0 if late else delay)
    os.kill(child, signal.SIGKILL)
    result = ended(run)
    if late:
        raise RuntimeError(f"a run saved nothing for {patience:g} s and was killed: {result}")
    return result


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
