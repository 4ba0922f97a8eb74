"""From arrays and a class to a checkpoint: what `amortopt.meta_train` makes of a fleet, in which time.

    python benchmarks/fleet             # 256 problems and 1,024 -> benchmarks/results; 25 min on one core
    python benchmarks/fleet --quick     # 48 problems, a few steps -> runs/fleet_quick; 1 min
    python benchmarks/fleet --report    # measures nothing: the table

The problems are ten random curves each, as arrays: 200 examples to read, 200 to judge. The network is an MLP
40-32-32-10 with tanh, written by hand. meta_train has its default settings: at most 15 minutes. Its
checkpoint is measured on 64 further problems, with 50 and 200 examples each, beside SGD from fresh weights
and from the learned prototype, one pretrained initialisation for all; SGD's learning rate is tuned on 16
others.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import amortopt
from amortopt.meta.one_pass.data import Held
from amortopt.meta.one_pass.rivals import trained_by_sgd, tuned_rate
from amortopt.tasks import CrossEntropy, evaluate_many, init_many
from amortopt.tasks.problem_families import Curves
from benchmarks.harness.command import Part, command_line, measure, parse, results, write_report
from benchmarks.harness.numbers import difference, summary, values
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import document, made_by, plus_minus, table

BENCHMARK = "fleet"
FLEETS = (256, 1024)
SIZES = (50, 200)
EPOCHS = (25, 150)
READ = JUDGED = 200
UNSEEN, TUNED_ON = 64, 16
ROWS = {
    "start": "as they start",
    "sgd/25": "SGD, 25 epochs",
    "sgd/150": "SGD, 150 epochs",
    "prototype/25": "learned prototype, SGD, 25 epochs",
    "prototype/150": "learned prototype, SGD, 150 epochs",
    "pass": "**one pass**",
}


class Net(nn.Module):
    """What somebody would write."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(40, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def fleet(count: int) -> list[tuple[Any, ...]]:
    """Arrays of the first training problems of the family."""
    read, judged = Curves().draw("train", 0, count, READ, JUDGED)
    return [tuple(t.numpy() for t in four) for four in zip(read.x, read.y, judged.x, judged.y, strict=True)]


def meta_trained(count: int, settings: dict[str, Any], advance: Any = None) -> Record:
    """Meta-train on so many problems, then measure the checkpoint on others."""
    with tempfile.TemporaryDirectory() as scratch:
        problems = fleet(count)
        began = time.perf_counter()
        opt = amortopt.meta_train(Net, problems, Path(scratch) / "fleet", device="cpu", **settings)
        seconds = time.perf_counter() - began
        recorded = amortopt.load_release(Path(scratch) / "fleet").results
    rows = {str(size): measured(opt, size) for size in SIZES}
    training = {key: recorded["training"][key] for key in ("steps", "seconds")}
    return {"seconds": round(seconds, 1), "training": training, "problems": count, "rows": rows}


def measured(opt: amortopt.ScaleGMNOptimizer, size: int) -> dict[str, list[float | None]]:
    """Row -> accuracy in % of every unseen problem's network."""
    objective = CrossEntropy(10)
    module = Net().requires_grad_(False)
    parts = {
        "val": held("val", TUNED_ON, size, 40_000),
        "test": held("test", UNSEEN, size, 50_000),
    }

    def score(accuracy: Tensor) -> list[float | None]:
        return values(100 * accuracy, 2)

    test = parts["test"]
    pairs = list(zip(test.read.x, test.read.y, strict=True))
    passed = opt.one_shot_params(test.params, batch=pairs)
    rows = {
        "start": score(evaluate_many(module, test.params, test.data["test"], objective)[1]),
        "pass": score(evaluate_many(module, passed, test.data["test"], objective)[1]),
    }
    prototypes = {which: started(part, opt) for which, part in parts.items()}
    for name, starts in (("sgd", parts), ("prototype", prototypes)):
        for epochs in EPOCHS:
            rate = tuned_rate(module, starts["val"], "val", objective, epochs=epochs)
            reached = trained_by_sgd(module, starts["test"], "test", objective, rate=rate, epochs=epochs)
            rows[f"{name}/{epochs}"] = score(reached.score)
    return rows


def held(which: Any, count: int, size: int, seed: int) -> Held:
    """Problems of a part of the family with N examples each, and fresh networks."""
    read, judged = Curves().draw(which, 0, count, size, 1000)
    return Held(init_many(Net, range(seed, seed + count)), {which: judged}, read, {})


def started(part: Held, opt: amortopt.ScaleGMNOptimizer) -> Held:
    """The same problems, each with the learned prototype."""
    metanet = opt.metanet
    assert isinstance(metanet, amortopt.metanets.Rounds)
    count = len(part.read.x)

    def none(params: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.zeros_like(p) for name, p in params.items()}

    conditions = amortopt.metanets.Conditions(none, None, torch.full((count,), float(part.read.x.shape[1])))
    with torch.no_grad():
        (prototype,) = metanet.after_rounds(part.params, conditions, rounds=0)
    return Held(prototype, part.data, part.read, {})


def block(records: Records) -> str:
    """The table of the docs."""
    fleets = sorted((record["result"] for record in records.values()), key=lambda each: each["problems"])
    columns = [(each, str(size)) for each in fleets for size in SIZES]
    head = [f"accuracy on {UNSEEN} unseen problems, %"]
    head += [f"{each['problems']:,} problems: {size} examples" for each, size in columns]
    rows = [
        [title, *(plus_minus(summary([each["rows"][size][key]]), 1) for each, size in columns)]
        for key, title in ROWS.items()
    ]
    margins = [ahead(each["rows"][size]) for each, size in columns]
    rows.append(["the pass over the best of the others, paired", *margins])
    times = "; ".join(
        f"{each['problems']:,} problems: {each['seconds'] / 60:.1f} minutes from arrays to checkpoint, "
        f"{each['training']['steps']:,} steps"
        for each in fleets
    )
    return table(head, rows) + f"\n\n{times}. Mean ± 95 % over problems."


def ahead(rows: dict[str, list[float | None]]) -> str:
    """The pass minus the row with the highest mean beside it."""
    means = {key: summary([each])["mean"] for key, each in rows.items() if key != "pass"}
    best = max(means, key=lambda key: means[key])
    return plus_minus(summary([difference(rows["pass"], rows[best])]), 1, sign="+")


def markdown(records: Records) -> str:
    """Everything, for people."""
    title = "# From arrays and a class to a checkpoint: a fleet of curves, MLP 40-32-32-10"
    return document([title, block(records), "Made by: " + made_by(records)])


def all_parts(counts: Sequence[int], settings: dict[str, Any]) -> list[Part]:
    """A meta-training per number of problems."""
    shared = {"family": Curves().to_config(), "read": READ, "judged": JUDGED, "settings": settings}
    shared |= {"sizes": SIZES, "epochs": EPOCHS}
    return [
        Part(
            f"{count}", shared | {"problems": count},
            lambda advance, count=count: meta_trained(count, settings, advance),
        )
        for count in counts
    ]  # fmt: skip


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(__doc__, threads=1)
    parser.add_argument("--fleets", nargs="*", type=int, help="numbers of problems")
    options = parse(parser, args)
    counts = options.fleets or ((48,) if options.quick else FLEETS)
    settings = {"steps": 40} if options.quick else {}
    with results(BENCHMARK, options) as store:
        if not options.report:
            measure(store, all_parts(counts, settings | {"progress": False}), again=options.again)
        write_report(store, markdown(store.records))
