"""Progress of meta-training on the console."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class FitProgress(ProgressBar):
    """A bar over the budget, and a line after every validation that stays.

    Args:
        goal: What validation has to beat, shown beside it.
    """

    def __init__(self, goal: str = "") -> None:
        super().__init__()
        self._goal = f"  to beat: {goal}" if goal else ""
        self._enabled = True
        self._bar: Progress | None = None
        self._job: TaskID | None = None
        self._drawn = 0.0

    def enable(self) -> None:
        """Show it."""
        self._enabled = True

    def disable(self) -> None:
        """Hide it; called in all processes but the first."""
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        if not self._enabled:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} % of the budget"),
            TimeElapsedColumn(),
            console=Console(),
            auto_refresh=False,
        )
        self._bar.start()
        self._job = self._bar.add_task("step 0", total=1.0)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw, at most twice a second."""
        if self._bar is None or self._job is None or time.monotonic() - self._drawn < 0.5:
            return
        self._drawn = time.monotonic()
        progress = pl_module.progress() if trainer.world_size == 1 else 0.0
        shown = _shown(trainer, ("train_loss", "val_accuracy", "val_psnr", "val_r2"))
        text = f"step {trainer.global_step}{shown}{self._goal}"
        self._bar.update(self._job, completed=progress, description=text)
        self._bar.refresh()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print what was measured."""
        if self._bar is None or self._job is None:
            return
        elapsed = timedelta(seconds=int(self._bar.tasks[self._job].elapsed or 0))
        names = ("train_loss", "val_loss", "val_accuracy", "train_accuracy", "val_accuracy_raw")
        names += ("val_psnr", "train_psnr", "val_psnr_raw", "val_r2", "train_r2", "val_r2_raw")
        names += tuple(f"val_{what}_l1_{at}" for at in ("low", "mid", "high") for what in ("accuracy", "cut"))
        names += getattr(pl_module, "reported", ())
        skipped = f"; {pl_module.skipped} steps skipped" if getattr(pl_module, "skipped", 0) else ""
        self._bar.console.print(
            f"{elapsed} step {trainer.global_step}{_shown(trainer, names)}{self._goal}{skipped}",
            highlight=False,
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar."""
        self.on_train_end(trainer, pl_module)


def _shown(trainer: L.Trainer, names: tuple[str, ...]) -> str:
    metrics = trainer.callback_metrics
    return "".join(
        f"  {name} {100 * float(metrics[name]):.1f} %"
        if "accuracy" in name or "cut" in name
        else f"  {name} {float(metrics[name]):.2f} dB"
        if "psnr" in name
        else f"  {name} {float(metrics[name]):.4f}"
        for name in names
        if name in metrics
    )
