"""One pass on problems never seen, against training on the same few examples, with the controls.

    python benchmarks/unseen            # everything -> benchmarks/results; 10 min on one core
    python benchmarks/unseen --quick    # 8 problems, few epochs -> runs/; 1 min
    python benchmarks/unseen --report   # measures nothing: table

64 data sets of the family that the checkpoint was meta-trained on, and MNIST-1D, which is not of it. Every
method reads the same 50, 200 or 1,000 labelled examples of each and is tested on 1,000 others. SGD and Adam
start from fresh networks or from the prototype that the checkpoint learned; rate and input noise are chosen
on 64 other data sets. Controls: the prototype alone, and a pass that reads another problem's batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import torch

from amortopt._types import Params
from amortopt.metanets import Rounds
from amortopt.optim import ScaleGMNOptimizer
from amortopt.release import load_release
from amortopt.tasks import Examples, Family, evaluate_many, init_many, make_problem_family
from amortopt.tasks.problem_families import Curves
from amortopt.training import Stepper, train_epochs
from benchmarks.harness.command import Part, command_line, measure, parse, results, write_report
from benchmarks.harness.numbers import mean, summary, values
from benchmarks.harness.store import Records
from benchmarks.harness.tables import bullets, document, made_by, plus_minus, table
from benchmarks.harness.timing import best_of

BENCHMARK = "unseen_problems"
CHECKPOINTS = ("curves-mlp-tanh", "curves-mlp-relu")
SIZES = (50, 200, 1000)
TESTED = 1000
RATES = {"sgd": (0.01, 0.03, 0.1, 0.3), "adam": (0.001, 0.003, 0.01)}
NOISES = (0.0, 0.4)
LENGTHS = {"fresh": 150, "prototype": 25}
TITLES = {
    "fresh": "fresh networks",
    "prototype": "learned prototype alone",
    "swapped": "one pass, reading another problem's batch",
    "pass": "one pass, one gradient",
    "fresh sgd": "SGD, 150 epochs",
    "fresh adam": "Adam, 150 epochs",
    "prototype sgd": "learned prototype, SGD, 25 epochs",
    "prototype adam": "learned prototype, Adam, 25 epochs",
}


@cache
def problems(which: str, count: int, size: int) -> tuple[Examples, Examples]:
    """Examples to read and to be tested on; the last problem of the test part is MNIST-1D."""
    family = make_problem_family("curves")
    largest, tested = family.draw(which, 0, count, max(SIZES), TESTED)  # type: ignore[arg-type]
    if which == "test":
        real = Curves().real()["mnist1d"]
        train, test = real.split("train").take(slice(max(SIZES))), real.split("test").take(slice(TESTED))
        largest = Examples(
            torch.cat([largest.x, train.x[None]]), torch.cat([largest.y, train.y[None]]), False
        )
        tested = Examples(torch.cat([tested.x, test.x[None]]), torch.cat([tested.y, test.y[None]]), False)
    return largest.take(slice(size)), tested


def fresh(family: Family, count: int) -> Params:
    """Untrained networks that no meta-training saw."""
    return init_many(family.build, range(10_000, 10_000 + count))


def passed(opt: ScaleGMNOptimizer, params: Params, read: Examples, rounds: int | None) -> Params:
    """What a pass makes of networks, after some rounds."""
    pairs = list(zip(read.x, read.y, strict=True))
    if rounds is None:
        return opt.one_shot_params(params, batch=pairs)
    assert isinstance(opt.metanet, Rounds)
    count = len(read.x)
    blend = torch.ones(count, 1)
    slots = opt.metanet.matrices.unpack(opt.metanet.rule.start(blend))
    return {name: p.detach() for name, p in opt.metanet.gauge(params).write(slots).items()}


def trained(
    family: Family, start: Params, read: Examples, setting: tuple[str, float, float], epochs: int
) -> Params:
    """Networks after training on what they read."""
    optimizer, rate, noise = setting
    return train_epochs(
        family.build(), start, read, Curves.objective, Stepper(optimizer, rate, "cosine"),
        epochs=epochs, seed=1, batch_size=min(100, len(read)), input_noise=noise,
    ).params  # fmt: skip


def accuracies(family: Family, params: Params, tested: Examples) -> list[float | None]:
    """Test accuracy of every network, %."""
    return values(100 * evaluate_many(family.build(), params, tested, Curves.objective)[1], 2)


def measured(name: str, method: str, size: int, count: int, lengths: dict[str, int]) -> dict[str, Any]:
    """One cell of the table: accuracy on every problem, the last one MNIST-1D, and what was chosen."""
    opt = ScaleGMNOptimizer.from_pretrained(name)
    family = opt.family
    assert family is not None
    read, tested = problems("test", count, size)
    start, optimizer = method.split()[0], method.split()[-1]

    def begin(read: Examples) -> Params:
        networks = fresh(family, len(read.x))
        return passed(opt, networks, read, 0) if start == "prototype" else networks

    if method == "pass":
        params = fresh(family, len(read.x))
        seconds = best_of(lambda: passed(opt, params, read, None), 3) / len(read.x)
        return {"accuracy": accuracies(family, passed(opt, params, read, None), tested), "seconds": seconds}
    if method == "swapped":
        other = read.of(torch.arange(len(read.x)).roll(1))
        return {"accuracy": accuracies(family, passed(opt, fresh(family, len(read.x)), other, None), tested)}
    if method in ("fresh", "prototype"):
        return {"accuracy": accuracies(family, begin(read), tested)}
    tuning, judged = problems("val", count, size)
    scores = {}
    for setting in product((optimizer,), RATES[optimizer], NOISES):
        params = trained(family, begin(tuning), tuning, setting, lengths[start])
        scores[setting] = mean([a or 0.0 for a in accuracies(family, params, judged)])
    best = max(scores, key=scores.__getitem__)
    return {
        "accuracy": accuracies(family, trained(family, begin(read), read, best, lengths[start]), tested),
        "chosen": {"rate": best[1], "noise": best[2]},
    }


def parts(options: argparse.Namespace) -> list[Part]:
    """Every cell."""
    count = 8 if options.quick else 64
    lengths = {key: max(1, epochs // 25) if options.quick else epochs for key, epochs in LENGTHS.items()}
    cells = []
    for name, size, method in product(CHECKPOINTS, SIZES, TITLES):
        identity = {
            "weights": load_release(name).sha256,
            "problems": count,
            "epochs": lengths.get(method.split()[0]) if " " in method else None,
            "rates": RATES.get(method.split()[-1]),
        }
        cost = size * 8.0 * lengths[method.split()[0]] if " " in method else size

        def work(_: Any, name: str = name, method: str = method, size: int = size) -> Any:
            return measured(name, method, size, count, lengths)

        cells.append(Part(f"{name}/{size}/{method}", identity, work, cost))
    return cells


def rows(records: Records, name: str) -> list[Sequence[str]]:
    """Method, then for every number of examples the mean over unseen problems, and MNIST-1D."""
    lines = []
    for method, title in TITLES.items():
        cells = []
        for size in SIZES:
            *unseen, real = records[f"{name}/{size}/{method}"]["result"]["accuracy"]
            cells += [plus_minus(summary([unseen]), 1), f"{real:.1f}"]
        lines.append([f"**{title}**" if method == "pass" else title, *cells])
    return lines


def block(records: Records) -> str:
    """The table of README and docs."""
    head = ["test accuracy %"]
    for size in SIZES:
        head += [f"{size:,} examples: unseen", "MNIST-1D"]
    text = []
    for name in CHECKPOINTS:
        lines = rows(records, name)
        problem_count = len(records[f"{name}/{SIZES[0]}/pass"]["result"]["accuracy"]) - 1
        seconds = records[f"{name}/{SIZES[-1]}/pass"]["result"]["seconds"]
        notes = [
            f"`{name}`, one meta-training seed: mean of {problem_count} data sets that no meta-training saw, "
            "with 95 % intervals over them, and MNIST-1D. All methods read the same labelled examples.",
            "SGD (momentum 0.9) and Adam: cosine schedule; rate and input noise (0 or 0.4) are chosen on "
            "other data sets.",
            f"A pass that reads {SIZES[-1]:,} examples takes {1000 * seconds:.1f} ms per network, all at "
            "once.",
        ]
        text.append(table(head, lines) + "\n\n" + bullets(notes))
    return "\n\n".join(text)


def markdown(records: Records) -> str:
    """Everything, for people."""
    return document(["# One pass on problems never seen", block(records), made_by(records)])


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    options = parse(command_line(__doc__, threads=1), args)
    with results(BENCHMARK, options) as store:
        if not options.report:
            measure(store, parts(options), again=options.again)
        write_report(store, markdown(store.records))
