"""How a run ends: when its time is used up, and with the weights that were best in validation."""

from __future__ import annotations

import math
from time import monotonic
from typing import Any

import lightning.pytorch as L
import torch

from amortopt.meta.one_pass.module import OnePassModule

_PATIENCE = 0.3
"""Share of a run after which it stops, if validation has not become better."""
_MOST_ROWS = 10
"""Of the curve, in a release."""


class TimeBudget(L.Callback):
    """Fits the number of steps to the time, so that learning rates have fallen to 0 when it is over.

    After every step the remaining time is divided by what a step took in the mean. A run that has time for
    all its steps is not changed.

    Args:
        minutes: Time of the run, interruptions not counted.
        steps: Most steps.
        measured_from: Steps after which the mean is believed.

    Attributes:
        elapsed: Seconds so far.
    """

    def __init__(self, minutes: float, steps: int, measured_from: int = 20) -> None:
        self.seconds, self.steps, self.measured_from = 60 * minutes, steps, measured_from
        self.elapsed = 0.0
        self._last = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._last = monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Set the number of steps of the run anew."""
        now = monotonic()
        self.elapsed += now - self._last
        self._last = now
        done = trainer.global_step
        if self.elapsed >= self.seconds:
            fitting = done
        elif done < self.measured_from:
            return
        else:
            fitting = done + int((self.seconds - self.elapsed) / (self.elapsed / done))
        trainer.fit_loop.epoch_loop.max_steps = max(done, min(self.steps, fitting))

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far, for the state of the run."""
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.elapsed = state_dict["elapsed"]


class KeepBest(L.Callback):
    """Keeps the averaged weights that have the lowest loss in validation, and stops when they are old.

    Attributes:
        curve: Step, loss and score of every validation.
    """

    def __init__(self) -> None:
        self.curve: list[list[float]] = []
        self._best: dict[str, torch.Tensor] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare, and stop the run where it has become worse for long."""
        assert isinstance(pl_module, OnePassModule)
        keys = ("loss", pl_module.problem.objective.score_name)
        loss, score = (float(trainer.callback_metrics[f"val_{key}"]) for key in keys)
        self._add(pl_module, trainer.global_step, loss, score)
        if trainer.global_step - self._best_step() > _PATIENCE * trainer.max_steps:
            trainer.should_stop = True

    def finish(self, module: OnePassModule, held: Any, step: int) -> None:
        """Compare the last weights too, then put the best into the module's average."""
        if not self.curve or self.curve[-1][0] < step:
            result = module.evaluate(module.average, held.params, held.data, held.read)["val"]
            self._add(module, step, float(result.loss.mean()), float(result.score.mean()))
        if self._best:
            module.average.load_state_dict(self._best)

    def table(self) -> dict[str, dict[str, float]]:
        """The curve as rows of a table, at most so many that a model card can show them."""
        every = math.ceil(len(self.curve) / _MOST_ROWS) if self.curve else 1
        rows = self.curve[::-1][::every][::-1]
        return {f"step {step:g}": {"mean_loss": loss, "mean_score": score} for step, loss, score in rows}

    def _add(self, module: OnePassModule, step: int, loss: float, score: float) -> None:
        best = min((row[1] for row in self.curve), default=math.inf)
        self.curve.append([float(step), loss, score])
        if loss < best:
            self._best = {key: value.detach().clone() for key, value in module.average.state_dict().items()}

    def _best_step(self) -> float:
        return min(self.curve, key=lambda row: row[1] if math.isfinite(row[1]) else math.inf)[0]

    def state_dict(self) -> dict[str, Any]:
        """Curve and best weights, for the state of the run."""
        return {"curve": self.curve, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from them."""
        self.curve, self._best = state_dict["curve"], state_dict["best"]
