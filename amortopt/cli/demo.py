"""The command `amortopt demo`: one forward pass against tuned SGD, on networks that nobody trained on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from amortopt._types import Params
from amortopt.cli.one_shot import problem_batch
from amortopt.cli.picture import COLOURS, Curve, Panel, draw, duration
from amortopt.functional.networks import num_networks
from amortopt.optim import ScaleGMNOptimizer
from amortopt.release import list_shipped
from amortopt.system.files import write_whole
from amortopt.tasks import Family, Problem, evaluate_many
from amortopt.training import Stepper, train_epochs
from amortopt.zoo.baseline import START_EPOCHS, starting_networks

CHECKPOINTS = ("mnist1d-mlp-tanh", "mnist1d-mlp-relu")
EPOCHS = (25, 150)
NOISE = 0.4
"""Input noise of the shipped checkpoints' meta-objective: SGD gets it too, in rows of its own."""
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
    accuracy: torch.Tensor
    loss: torch.Tensor
    seconds: float | None = None


@dataclass
class _Results:
    title: str
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)

    def panel(self) -> Panel:
        start, one_pass = self.rows[0], self.rows[1]
        assert one_pass.seconds is not None
        mean = float(one_pass.accuracy.mean())
        return Panel(
            self.title, float(start.accuracy.mean()), one_pass.seconds, mean, curves=tuple(self.curves)
        )


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
    with _progress_bar(console) as bar:
        job = bar.add_task("", total=len(optimizers) * (START_EPOCHS + 2 * sum(lengths)))

        def advance(what: str, steps: int) -> None:
            bar.update(job, description=what, advance=steps)

        results = [_compare(opt, networks, lengths, seed, advance) for opt in optimizers]
    for result in results:
        console.print(_table(result, networks))
    note = _note(networks)
    console.print(note, style="dim", highlight=False)
    picture = draw(
        [result.panel() for result in results],
        title="One forward pass against tuned SGD",
        note=note,
    )
    write_whole(out, picture)
    console.print(f"picture: {out}", highlight=False)


def _compare(
    opt: ScaleGMNOptimizer, networks: int, lengths: list[int], seed: int, advance: Callable[[str, int], None]
) -> _Results:
    problem, family = opt.problem, opt.family
    if problem is None or family is None:
        raise ValueError(
            f"checkpoint: {opt.name} names no problem or no family, so no networks can be made for it"
        )
    advance(f"{opt.name}: {networks} fresh networks", 0)
    start = starting_networks(problem.to_config(), family.to_config(), count=networks, seed=seed)
    advance(f"{opt.name}: one forward pass", START_EPOCHS)
    results = _Results(f"{problem.name}, {family.name} with {family.activation}, {networks} networks")
    results.rows.append(_measured("as they start", family, problem, start))
    better, seconds = one_pass(opt, start, repeats=5)
    results.rows.append(_measured("one forward pass", family, problem, better, seconds / networks))
    for noise in (0.0, NOISE):
        for length in lengths:
            _finetune(results, family, problem, start, length, noise, length == lengths[-1], advance)
    return results


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


def _finetune(
    results: _Results,
    family: Family,
    problem: Problem,
    start: Params,
    epochs: int,
    noise: float,
    longest: bool,
    advance: Callable[[str, int], None],
) -> None:
    """SGD of one length: a row, and a curve with points on the way."""
    count, kind = num_networks(start), "SGD + noise" if noise else "SGD"
    module, test = family.build(), problem.split("test")
    points: list[tuple[float, float]] = []

    def look(_: int, seconds: float, params: Params) -> None:
        accuracy = evaluate_many(module, params, test, problem.objective)[1]
        points.append((seconds / count, 100 * float(accuracy.mean())))

    done = train_epochs(
        module,
        start,
        problem.split("train"),
        problem.objective,
        Stepper("sgd", _rate(family.activation, noise > 0, epochs), "cosine"),
        epochs=epochs,
        seed=SEED,
        input_noise=noise,
        stops=_stops(epochs),
        on_stop=look,
        on_epoch=lambda _: advance(f"{results.title}: {kind}, {epochs} epochs", 1),
    )
    results.rows.append(
        _measured(f"{kind}, {epochs} epochs", family, problem, done.params, done.seconds / count)
    )
    curve = Curve(
        label=kind if longest else "",
        colour=COLOURS["sgd", noise > 0],
        seconds=[seconds for seconds, _ in points],
        accuracy=[accuracy for _, accuracy in points],
        dashed=not longest,
        # The short runs end so close to each other that their texts would overlap.
        names=[""] * (len(points) - 1) + [f"{epochs} ep." if longest or noise else ""],
    )
    results.curves.append(curve)


def _rate(activation: str, noisy: bool, epochs: int) -> float:
    """The rate chosen for the nearest length; for an activation without one, tanh's."""
    rates = SGD_RATES.get((activation, noisy), SGD_RATES["tanh", noisy])
    return rates[min(rates, key=lambda length: abs(length - epochs))]


def _stops(epochs: int) -> list[int]:
    return [e for e in (1, 2, 3, 5, 8, 12, 18, 25, 40, 60, 90, 120) if e < epochs] + [epochs]


def _measured(
    method: str, family: Family, problem: Problem, params: Params, seconds: float | None = None
) -> Row:
    loss, accuracy = evaluate_many(family.build(), params, problem.split("test"), problem.objective)
    return Row(method, 100 * accuracy, loss, seconds)


def _table(results: _Results, networks: int) -> Table:
    table = Table(title=results.title, title_justify="left", title_style="bold")
    table.add_column("method")
    for heading in ("accuracy, mean", "max", "loss", "time per network"):
        table.add_column(heading, justify="right")
    for row in results.rows:
        table.add_row(
            row.method,
            f"{float(row.accuracy.mean()):.1f} %",
            f"{float(row.accuracy.max()):.1f} %",
            f"{float(row.loss.mean()):.3f}",
            "" if row.seconds is None else duration(row.seconds),
            style="bold" if row.method == "one forward pass" else None,
        )
    return table


def _note(networks: int) -> str:
    threads = torch.get_num_threads()
    return (
        f"Test data; {networks} networks from seeds that no checkpoint was trained on. Time per network = "
        f"time for all {networks} / {networks}, on {threads} CPU thread{'s' * (threads != 1)}. One pass: a "
        "call of one_shot_params (checks, metanet, copies), without loading the checkpoint. SGD: all "
        "networks take each step at once, momentum 0.9, cosine schedule, learning rate chosen beforehand on "
        f"other networks; + noise: Gaussian noise of {NOISE} on the inputs in training."
    )


def _progress_bar(console: Console) -> Progress:
    columns: Sequence[TextColumn | BarColumn | TimeElapsedColumn | TimeRemainingColumn] = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)
