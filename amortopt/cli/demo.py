"""The command `amortopt demo`: one forward pass against tuned SGD, on networks that nobody trained on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from amortopt._types import Params
from amortopt.cli.one_shot import problem_batch
from amortopt.cli.picture import COLOURS, Curve, Panel, draw, duration
from amortopt.optim import ScaleGMNOptimizer
from amortopt.release import list_shipped
from amortopt.system.files import write_whole
from amortopt.tasks import evaluate_many
from amortopt.training import Stepper, train_epochs
from amortopt.zoo.build import START_EPOCHS, starting_networks

CHECKPOINTS = ("mnist1d-mlp-tanh", "mnist1d-mlp-relu")
EPOCHS = (25, 150)
STOPS = (1, 2, 3, 5, 8, 12, 18, 25, 40, 60, 90, 120)
"""Epochs after which SGD's curves have a point, beside the last."""
NOISE = 0.4
"""Input noise of the shipped checkpoints' meta-objective: SGD gets it too, in separate rows."""
SEED = 90210
"""Seed of the starting networks; the zoos' recipes use others."""

SGD_RATES = {
    ("tanh", False): {25: 0.25, 150: 0.02},
    ("tanh", True): {25: 0.25, 150: 0.04},
    ("relu", False): {25: 0.1, 150: 0.04},
    ("relu", True): {25: 0.25, 150: 0.25},
}
"""(activation, with input noise) -> epochs -> learning rate of SGD with cosine schedule, chosen beforehand on
validation networks by validation data, as benchmarks/one_shot does."""

Advance = Callable[[str, int], None]
"""Called with what is being done and the epochs that were done since."""


def demo(
    checkpoint: str | None = None,
    out: Path = Path("demo.png"),
    networks: int = 8,
    epochs: list[int] | None = None,
    seed: int = SEED,
) -> None:
    """Train fresh networks a little, improve them in one forward pass, and fine-tune copies with tuned SGD.

    Prints one table per checkpoint and writes one picture. Needs no network connection.

    Args:
        checkpoint: Name of a shipped checkpoint, a folder, or a hub id; by default the shipped ones for MLPs
            on mnist1d.
        out: Picture to write, a PNG file.
        networks: Number of networks.
        epochs: Lengths of fine-tuning; by default 25 and 150.
        seed: Seed of the networks.

    Raises:
        ValueError: A wrong argument, or a checkpoint without problem or family.
        FileNotFoundError: No such checkpoint.
    """
    lengths = sorted(set(EPOCHS if epochs is None else epochs))
    if networks < 1 or not lengths or lengths[0] < 1:
        raise ValueError(
            f"networks, epochs: got {networks} and {lengths}, expected at least one network and one length "
            "of at least one epoch"
        )
    names = [checkpoint] if checkpoint is not None else [n for n in CHECKPOINTS if n in list_shipped()]
    if not names:
        raise FileNotFoundError(
            f"checkpoint: neither of {', '.join(CHECKPOINTS)} came with this installation; pass --checkpoint "
            "with a folder or a hub id"
        )
    optimizers = [ScaleGMNOptimizer.from_pretrained(name) for name in names]
    console = Console()
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        job = bar.add_task("", total=len(optimizers) * (START_EPOCHS + 2 * sum(lengths)))

        def advance(what: str, steps: int) -> None:
            bar.update(job, description=what, advance=steps)

        comparisons = [Comparison(opt, networks, seed, advance) for opt in optimizers]
        for comparison in comparisons:
            comparison.run(lengths)
    for comparison in comparisons:
        console.print(comparison.table())
    threads = torch.get_num_threads()
    note = (
        f"Test data; {networks} networks from seeds that no checkpoint was trained on. Time per network = "
        f"time for all {networks} / {networks}, on {threads} CPU thread{'s' * (threads != 1)}. One pass: a "
        "call of one_shot_params (checks, metanet, copies), without loading the checkpoint. SGD: all "
        "networks take each step at once, momentum 0.9, cosine schedule, learning rate chosen beforehand on "
        f"other networks; + noise: Gaussian noise of {NOISE} on the inputs in training."
    )
    console.print(note, style="dim", highlight=False)
    panels = [comparison.panel() for comparison in comparisons]
    write_whole(out, draw(panels, title="One forward pass against tuned SGD", note=note))
    console.print(f"picture: {out}", highlight=False)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        method: What was done to the networks.
        accuracy: Test accuracy per network [B], in %.
        loss: Test loss per network [B], in nats.
        seconds: Time per network; None for none.
    """

    method: str
    accuracy: Tensor
    loss: Tensor
    seconds: float | None = None


@dataclass
class Comparison:
    """One checkpoint against SGD on fresh networks of its problem and family.

    Attributes:
        opt: The checkpoint's optimizer.
        networks: Number of networks.
        seed: Seed of the networks.
        advance: For a progress bar.
        rows: Results so far.
        curves: SGD's accuracy over time.

    Raises:
        ValueError: The checkpoint names no problem or no family.
    """

    opt: ScaleGMNOptimizer
    networks: int
    seed: int
    advance: Advance
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)

    def __post_init__(self) -> None:
        problem, family = self.opt.problem, self.opt.family
        if problem is None or family is None:
            raise ValueError(
                f"checkpoint: {self.opt.name} names no problem or no family, expected both, to make networks "
                "for it"
            )
        self.problem, self.family, self.module = problem, family, family.build()
        self.title = f"{problem.name}, {family.name} with {family.activation}, {self.networks} networks"

    def run(self, lengths: list[int]) -> None:
        """Measure everything, SGD for so many epochs."""
        self.advance(f"{self.opt.name}: {self.networks} fresh networks", 0)
        configs = self.problem.to_config(), self.family.to_config()
        start = starting_networks(*configs, count=self.networks, seed=self.seed)
        self.advance(f"{self.opt.name}: one forward pass", START_EPOCHS)
        self.rows.append(self._measured("as they start", start))
        better, seconds = one_pass(self.opt, start, repeats=5)
        self.rows.append(self._measured("one forward pass", better, seconds / self.networks))
        for noise in (0.0, NOISE):
            for epochs in lengths:
                self._finetune(start, epochs, noise, longest=epochs == lengths[-1])

    def _finetune(self, start: Params, epochs: int, noise: float, *, longest: bool) -> None:
        """SGD of one length: a row, and a curve with points on the way."""
        kind = "SGD + noise" if noise else "SGD"
        points: list[tuple[float, float]] = []
        # The rate chosen for the nearest length; for an activation without one, tanh's.
        rates = SGD_RATES.get((self.family.activation, noise > 0), SGD_RATES["tanh", noise > 0])
        rate = rates[min(rates, key=lambda length: abs(length - epochs))]

        def on_stop(_: int, seconds: float, params: Params) -> None:
            points.append((seconds / self.networks, float(self._measured("", params).accuracy.mean())))

        trained = train_epochs(
            self.module,
            start,
            self.problem.split("train"),
            self.problem.objective,
            Stepper("sgd", rate, "cosine"),
            epochs=epochs,
            seed=SEED,
            input_noise=noise,
            stops=[*STOPS, epochs],
            on_stop=on_stop,
            on_epoch=lambda _: self.advance(f"{self.title}: {kind}, {epochs} epochs", 1),
        )
        seconds = trained.seconds / self.networks
        self.rows.append(self._measured(f"{kind}, {epochs} epochs", trained.params, seconds))
        # The short runs end so close to each other that their texts would overlap.
        last = f"{epochs} ep." if longest or noise else ""
        self.curves.append(
            Curve(
                kind if longest else "",
                COLOURS["sgd", noise > 0],
                [seconds for seconds, _ in points],
                [accuracy for _, accuracy in points],
                dashed=not longest,
                names=[""] * (len(points) - 1) + [last],
            )
        )

    def _measured(self, method: str, params: Params, seconds: float | None = None) -> Row:
        loss, accuracy = evaluate_many(
            self.module, params, self.problem.split("test"), self.problem.objective
        )
        return Row(method, 100 * accuracy, loss, seconds)

    def table(self) -> Table:
        """All rows."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        table.add_column("method")
        for heading in ("accuracy, mean", "max", "loss", "time per network"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            table.add_row(
                row.method,
                f"{float(row.accuracy.mean()):.1f} %",
                f"{float(row.accuracy.max()):.1f} %",
                f"{float(row.loss.mean()):.3f}",
                "" if row.seconds is None else duration(row.seconds),
                style="bold" if row.method == "one forward pass" else None,
            )
        return table

    def panel(self) -> Panel:
        """Its part of the picture."""
        start, passed = self.rows[:2]
        means = float(start.accuracy.mean()), float(passed.accuracy.mean())
        return Panel(self.title, means[0], passed.seconds or 0.0, means[1], curves=self.curves)


def one_pass(opt: ScaleGMNOptimizer, params: Params, *, repeats: int) -> tuple[Params, float]:
    """Improve stacked networks, and the time of it.

    Args:
        opt: The optimizer.
        params: [B, ...].
        repeats: Number of timed calls, after one that is not.

    Returns:
        Better params and the median seconds of a call of ``one_shot_params``: checks, the metanet, copies.
        (Nothing is traced there; ``one_shot`` traces the first module of a class once, some 25 ms.)
    """
    batch = problem_batch(opt)
    better = opt.one_shot_params(params, batch=batch)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        opt.one_shot_params(params, batch=batch)
        times.append(time.perf_counter() - started)
    return better, median(times)
