"""The demo of checkpoints that read their problem: networks for data sets never seen, few examples of each.

Legend: B networks, each with a problem of its own.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from rich.table import Table

from amortopt._types import Params
from amortopt.cli.demo_training import NOISE, Advance, seconds_of, training_curve
from amortopt.cli.picture import COLOURS, Control, Curve, Panel, duration
from amortopt.metanets import Conditions, Rounds
from amortopt.optim import ScaleGMNOptimizer
from amortopt.tasks import Examples, ProblemFamily, evaluate_many, init_many
from amortopt.training import Stepper

RATES: dict[Literal["sgd", "adam"], float] = {"sgd": 0.1, "adam": 0.003}
"""Learning rates for 50 examples and 150 epochs, chosen beforehand on other problems."""
TESTED = 500
"""Examples of each problem that networks are tested on."""


def compare_fleet(
    opt: ScaleGMNOptimizer, networks: int, examples: int, epochs: int, seed: int, advance: Advance
) -> tuple[Table, Panel]:
    """One call on networks for unseen problems of the checkpoint's family, against SGD and Adam.

    The problems are those of the family's test part, and the real data sets that it knows; the networks are
    fresh.

    Args:
        opt: The checkpoint's optimizer.
        networks: Number of problems of the test part.
        examples: Labelled examples of each that everything reads.
        epochs: Epochs of SGD and Adam.
        seed: Seed of the networks.
        advance: For a progress bar.

    Returns:
        A table with a row per method, and the comparison's part of the picture.

    Raises:
        ValueError: The checkpoint names no family of problems, or no family of networks.
    """
    problems, family = opt.problem, opt.family
    if not isinstance(problems, ProblemFamily) or family is None:
        raise ValueError(f"checkpoint: {opt.name} names no family of problems, or no family of networks")
    read, tested = problems.draw("test", 0, networks, examples, TESTED)
    real = problems.real()
    for problem in real.values():
        if isinstance(problem, ProblemFamily):
            more = problem.draw("test", 0, 1, examples, TESTED)
        else:
            parts = problem.split("train").take(slice(examples)), problem.split("test").take(slice(TESTED))
            more = tuple(Examples.from_list([(part.x, part.y)]) for part in parts)
        read, tested = (
            Examples(torch.cat([many.x, one.x]), torch.cat([many.y, one.y]), shared=False)
            for many, one in zip((read, tested), more, strict=True)
        )
    count, module = len(read.x), family.build()
    start = init_many(family.build, range(seed, seed + count))
    pairs = list(zip(read.x, read.y, strict=True))
    objective = problems.objective
    kind = f"{family.name} with {family.activation}"
    title = f"{problems.name}, {kind}: {networks} data sets never seen, {examples} examples each"
    table = Table("method", title=title, title_justify="left", title_style="bold")
    for heading in (f"mean {objective.score_name}", *real, "time per network"):
        table.add_column(heading, justify="right")
    # Accuracies are shares; other scores have units of their own.
    factor, unit = (100.0, " %") if objective.score_name == "accuracy" else (1.0, "")

    def tested_mean(params: Params, method: str = "", seconds: float | None = None) -> float:
        """Mean score over the unseen problems, which gets a row in the table if the method has a name."""
        scores = factor * evaluate_many(module, params, tested, objective)[1]
        mean = float(scores[:networks].mean())
        if method:
            cells = [f"{value:.1f}{unit}" for value in (mean, *scores[networks:].tolist())]
            style = "bold" if method == "one call" else None
            table.add_row(method, *cells, "" if seconds is None else duration(seconds), style=style)
        return mean

    # 1. One call, and what it would come to without its problem.
    advance(f"{opt.name}: one call", 0)
    started = tested_mean(start, "as they start")
    better = opt.one_shot_params(start, batch=pairs)
    seconds = seconds_of(lambda: opt.one_shot_params(start, batch=pairs), 3) / count
    passed = tested_mean(better, "one call", seconds)
    swapped = opt.one_shot_params(start, batch=[*pairs[1:], pairs[0]])
    controls = [Control("reading another's examples", tested_mean(swapped, "one call, another's examples"))]
    first = prototype(opt, start, read)
    if first is not None:
        controls.append(
            Control("its learned prototype alone", tested_mean(first, "its learned prototype alone"))
        )
    curves: list[Curve] = []
    short = f"{problems.name}, {kind}, {examples} examples each"
    panel = Panel(short, started, seconds, passed, curves=curves, controls=controls)
    # 2. Training on the same examples: a row, and a curve with points on the way.
    runs: list[tuple[Literal["sgd", "adam"], str, Params, int]] = [
        ("sgd", "SGD", start, epochs),
        ("adam", "Adam", start, epochs),
    ]
    if first is not None:
        runs.append(("sgd", "SGD from the prototype", first, max(1, epochs // 6)))
    for name, label, begin, length in runs:
        fresh = begin is start
        curves.append(
            training_curve(
                Curve(label, COLOURS[name, fresh], (), (), dashed=not fresh),
                module,
                begin,
                read,
                objective,
                Stepper(name, RATES[name], "cosine"),
                epochs=length,
                seed=seed,
                tested=tested_mean,
                row=f"{label}, {length} ep.",
                advance=partial(advance, f"{opt.name}: {label}"),
                end=f"{length} ep.",
                batch_size=min(100, examples),
                input_noise=NOISE,
            )
        )
    return table, panel


def prototype(opt: ScaleGMNOptimizer, params: Params, read: Examples) -> Params | None:
    """What the pass starts from, before it reads anything, in the networks' gauge; None without rounds."""
    if not isinstance(opt.metanet, Rounds):
        return None
    count = len(read.x)
    l1 = torch.zeros(count) if "l1" in opt.metanet.conditions else None
    conditions = Conditions(gradient=dict, l1=l1, examples=read.counts(count))
    with torch.no_grad():
        return opt.metanet.after_rounds(params, conditions, 0)[0]
