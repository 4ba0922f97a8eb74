"""The command `amortopt demo`: one forward pass against training, on networks that nobody trained on."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from amortopt._types import Params
from amortopt.cli.demo_fleet import compare_fleet
from amortopt.cli.demo_pictures import PHOTOGRAPHS, is_for_pictures, show_pictures
from amortopt.cli.demo_training import NOISE, Advance, seconds_of, training_curve
from amortopt.cli.one_shot import problem_batch
from amortopt.cli.picture import COLOURS, Curve, Panel, draw, duration
from amortopt.optim import ScaleGMNOptimizer
from amortopt.release import list_shipped
from amortopt.system.files import write_whole
from amortopt.tasks import Problem, ProblemFamily, evaluate_many
from amortopt.training import Stepper
from amortopt.zoo.build import START_EPOCHS, starting_networks

CHECKPOINTS = ("curves-mlp-tanh", "curves-mlp-relu", "images-siren")
"""Shown by default, those that came with the installation; a checkpoint that is added here gets a panel."""
NETWORKS = {"problem": 8, "family": 31}
"""Networks for checkpoints of one problem, and for those of a family of problems."""
EPOCHS = (25, 150)
SEED = 90210
"""Seed of the starting networks; the zoos' recipes use others."""

SGD_RATES = {
    ("tanh", False): {25: 0.25, 150: 0.02},
    ("tanh", True): {25: 0.25, 150: 0.04},
    ("relu", False): {25: 0.1, 150: 0.04},
    ("relu", True): {25: 0.25, 150: 0.25},
}
"""(activation, with input noise) -> epochs -> learning rate of SGD with cosine schedule, chosen beforehand on
validation networks by validation data."""

NOTE = f"+ noise: Gaussian noise of {NOISE} on the inputs in training."
FLEET_NOTE = (
    f"All read the same examples; training adds Gaussian noise of {NOISE} to their inputs. "
    "Crosses: what the call comes to without its problem."
)


def demo(
    checkpoint: str | None = None,
    out: Path = Path("demo.png"),
    networks: int | None = None,
    examples: int = 50,
    epochs: list[int] | None = None,
    seed: int = SEED,
) -> None:
    """Improve fresh networks in one forward pass, and train copies on the same examples.

    For checkpoints that read their problem: networks for data sets never seen, with a few labelled examples
    each. For those of one data set: networks after a little training on it. Prints one table per checkpoint
    and writes one picture; for a checkpoint of pictures also a strip of photographs. Needs no network
    connection.

    Args:
        checkpoint: Name of a shipped checkpoint, a folder, or a hub id; by default the shipped ones for MLPs
            on curves, and for photographs.
        out: Picture to write, a PNG file.
        networks: Number of networks; by default 31 for a family of problems, 8 for one problem.
        examples: Labelled examples of each data set, for checkpoints that read their problem.
        epochs: Lengths of training; by default 25 and 150. For a family of problems the longest.
        seed: Seed of the networks.

    Raises:
        ValueError: A wrong argument, or a checkpoint without problem or family.
        FileNotFoundError: No such checkpoint.
    """
    lengths = sorted(set(EPOCHS if epochs is None else epochs))
    if (networks is not None and networks < 1) or examples < 1 or not lengths or lengths[0] < 1:
        raise ValueError(
            f"networks, examples, epochs: got {networks}, {examples} and {lengths}, expected at least one "
            "network, one example and one length of at least one epoch"
        )
    names = [checkpoint] if checkpoint is not None else [n for n in CHECKPOINTS if n in list_shipped()]
    if not names:
        raise FileNotFoundError(
            f"checkpoint: neither of {', '.join(CHECKPOINTS)} came with this installation; pass --checkpoint "
            "with a folder or a hub id"
        )
    optimizers = [ScaleGMNOptimizer.from_pretrained(name) for name in names]
    console = Console()
    pictures = [opt for opt in optimizers if is_for_pictures(opt)]
    optimizers = [opt for opt in optimizers if opt not in pictures]
    for opt in pictures:
        table, strip = show_pictures(opt, PHOTOGRAPHS if networks is None else networks, seed)
        console.print(table)
        beside = out.with_stem(f"{out.stem}-photographs") if optimizers else out
        write_whole(beside, strip)
        console.print(f"picture: {beside}", highlight=False)
    if not optimizers:
        return
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        job = bar.add_task("", total=len(optimizers) * (START_EPOCHS + 2 * sum(lengths)))
        compared, notes = [], []

        def advance(what: str, steps: int) -> None:
            bar.update(job, description=what, advance=steps)

        for opt in optimizers:
            if isinstance(opt.problem, ProblemFamily):
                count = NETWORKS["family"] if networks is None else networks
                compared.append(compare_fleet(opt, count, examples, lengths[-1], seed, advance))
                notes.append(FLEET_NOTE)
            else:
                count = NETWORKS["problem"] if networks is None else networks
                compared.append(compare(opt, count, lengths, seed, advance))
                notes.append(NOTE)
    for table, _ in compared:
        console.print(table)
    threads = torch.get_num_threads()
    note = " ".join(
        [
            "Test data. Time per network: that of all at once by their number, on "
            f"{threads} CPU thread{'s' * (threads != 1)}. Learning rates were chosen on other networks.",
            *dict.fromkeys(notes),
        ]
    )
    console.print(
        "Networks from seeds that no checkpoint was trained on. One pass: a call of one_shot_params (checks, "
        "metanet, copies), without loading the checkpoint. SGD and Adam: all networks take each step at "
        f"once, cosine schedule. {note}",
        style="dim",
        highlight=False,
    )
    panels = [panel for _, panel in compared]
    write_whole(out, draw(panels, title="One forward pass against training", note=note))
    console.print(f"picture: {out}", highlight=False)


def compare(
    opt: ScaleGMNOptimizer, networks: int, lengths: list[int], seed: int, advance: Advance
) -> tuple[Table, Panel]:
    """One checkpoint against SGD on fresh networks of its problem and family.

    Args:
        opt: The checkpoint's optimizer.
        networks: Number of networks B.
        lengths: Epochs of SGD, ascending.
        seed: Seed of the networks.
        advance: For a progress bar.

    Returns:
        A table with a row per method, and the comparison's part of the picture.

    Raises:
        ValueError: The checkpoint names no problem or no family.
    """
    problem, family = opt.problem, opt.family
    if not isinstance(problem, Problem) or family is None:
        raise ValueError(
            f"checkpoint: {opt.name} names no problem or no family, expected both, to make networks for it"
        )
    module, train, test = family.build(), problem.split("train"), problem.split("test")
    title = f"{problem.name}, {family.name} with {family.activation}, {networks} networks"
    table = Table("method", title=title, title_justify="left", title_style="bold")
    for heading in ("accuracy, mean", "max", "loss", "time per network"):
        table.add_column(heading, justify="right")

    def tested(params: Params, method: str = "", seconds: float | None = None) -> float:
        """Mean test accuracy in %, which gets a row in the table if the method has a name."""
        loss, accuracy = evaluate_many(module, params, test, problem.objective)
        mean, best = 100 * float(accuracy.mean()), 100 * float(accuracy.max())
        if method:
            cells = f"{mean:.1f} %", f"{best:.1f} %", f"{float(loss.mean()):.3f}"
            time_taken = "" if seconds is None else duration(seconds)
            style = "bold" if method == "one forward pass" else None
            table.add_row(method, *cells, time_taken, style=style)
        return mean

    # 1. Networks after a little training, and after one forward pass.
    advance(f"{opt.name}: {networks} fresh networks", 0)
    start = starting_networks(problem.to_config(), family.to_config(), count=networks, seed=seed)
    advance(f"{opt.name}: one forward pass", START_EPOCHS)
    started = tested(start, "as they start")
    # The time is that of checks, the metanet and copies: one_shot_params traces nothing.
    batch = problem_batch(opt)
    better = opt.one_shot_params(start, batch=batch)
    seconds = seconds_of(lambda: opt.one_shot_params(start, batch=batch), 5) / networks
    passed = tested(better, "one forward pass", seconds)
    panel = Panel(title, started, seconds, passed, curves=(curves := []))
    # 2. SGD of every length: a row, and a curve with points on the way.
    for noise, epochs in product((0.0, NOISE), lengths):
        kind, longest = "SGD + noise" if noise else "SGD", epochs == lengths[-1]
        # The rate chosen for the nearest length; for an activation without one, tanh's.
        rates = SGD_RATES.get((family.activation, noise > 0), SGD_RATES["tanh", noise > 0])
        rate = rates[min(rates, key=lambda length, epochs=epochs: abs(length - epochs))]
        # The short runs end so close to each other that their texts would overlap.
        curves.append(
            training_curve(
                Curve(kind if longest else "", COLOURS["sgd", noise > 0], (), (), dashed=not longest),
                module,
                start,
                train,
                problem.objective,
                Stepper("sgd", rate, "cosine"),
                epochs=epochs,
                seed=SEED,
                tested=tested,
                row=f"{kind}, {epochs} epochs",
                advance=partial(advance, f"{title}: {kind}, {epochs} epochs"),
                end=f"{epochs} ep." if longest or noise else "",
                input_noise=noise,
            )
        )
    return table, panel
