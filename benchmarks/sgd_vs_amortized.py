"""The whole comparison: one forward pass of a metanet against tuned SGD and Adam, with and without L1.

    python benchmarks/sgd_vs_amortized.py             # everything -> benchmarks/results
    python benchmarks/sgd_vs_amortized.py --quick     # little of everything -> runs/sgd_vs_amortized_quick
    python benchmarks/sgd_vs_amortized.py --parts baselines --only mnist1d_mlp_tanh  # needs no checkpoint
    python benchmarks/sgd_vs_amortized.py --parts one_pass --checkpoints mnist1d-mlp-tanh FOLDER
    python benchmarks/sgd_vs_amortized.py --parts timing --again  # on a quiet machine
    python benchmarks/sgd_vs_amortized.py --readme    # measures nothing: tables, pictures, README

What is compared stands in comparison/cells.py. The results file is written after every part; parts that it
has of the same plan and the same checkpoint are kept, so a run that was stopped goes on with the same
command. Starting networks are drawn and trained a little as the recipes in recipes/zoo say, with seeds of
their own; learning rates and schedules are chosen on others, by validation data. Test data are used once,
for the numbers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from comparison import pictures, tables
from comparison.baselines import Advance, Baselines, network_epochs
from comparison.cells import CELLS, ROOT, Cell, Method, cell_of_recipe
from comparison.one_pass import Checkpoint, OnePass, find_checkpoints
from comparison.store import BENCHMARK, FILE, Store
from jsonargparse import ArgumentParser
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from amortopt import list_shipped
from amortopt.system.files import write_whole
from amortopt.system.memory import keep_freed_memory
from amortopt.zoo.baseline import finetune

RESULTS = ROOT / "benchmarks" / "results"
QUICK_CELLS = 2


@dataclass(frozen=True)
class Part:
    """Something to measure.

    Attributes:
        key: Of its record.
        identity: What it depends on.
        work: Measures it.
        cost: Projected work in epochs of one network.
        cell: Its cell.
    """

    key: str
    identity: Any
    work: Callable[[], Any]
    cost: float
    cell: Cell


def baseline_parts(cell: Cell, kinds: Sequence[str], advance: Advance) -> list[Part]:
    """The parts of a cell that need no checkpoint."""
    baselines, parts = Baselines(cell, advance), []

    def add(name: str, work: Callable[[], Any], method: Method | None = None) -> None:
        key = f"{cell.label}/{name}" + (f"/{method.key}" if method else "")
        identity, cost = baselines.identity(name, method), network_epochs(cell, name, method)
        parts.append(Part(key, identity, work, cost, cell))

    if "baselines" in kinds:
        add("start", baselines.start)
        for method in cell.plan.methods:
            add("rows", partial(baselines.rows, method), method)
        for method in cell.plan.curve:
            add("curve", partial(baselines.curve, method), method)
    if "timing" in kinds:
        add("timing", baselines.timing)
    return parts


def checkpoint_parts(checkpoint: Checkpoint, kinds: Sequence[str], advance: Advance) -> list[Part]:
    """The parts of a checkpoint."""
    cell, parts = checkpoint.cell, []

    def one_pass() -> OnePass:
        return OnePass(checkpoint, cell.networks(cell.plan.networks), advance)

    def add(name: str, work: Callable[[], Any], cost: float) -> None:
        key = f"{cell.label}/{name}/{checkpoint.key}"
        parts.append(Part(key, checkpoint.identity(name), work, cost * cell.plan.networks, cell))

    if "one_pass" in kinds:
        add("one_pass", lambda: one_pass().measure(), 10.0)
    if "timing" in kinds:
        add("latency", lambda: one_pass().latency(), 5.0)
    return parts


class Run:
    """One call of the command.

    Args:
        store: The results file.
        again: Whether to measure what it has already.
    """

    def __init__(self, store: Store, *, again: bool) -> None:
        self.store, self.again = store, again
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn(),
            TimeRemainingColumn(),
        )  # fmt: skip
        self.bar = Progress(*columns)
        self.job = self.bar.add_task("", total=None)
        self.label, self.rate = "", 0.0

    def advance(self, what: str, network_epochs: float) -> None:
        """Move the bar."""
        if what:
            self.bar.update(self.job, description=f"{self.label}: {what}")
        if network_epochs:
            self.bar.advance(self.job, network_epochs * self.rate)

    def measure(self, parts: Sequence[Part]) -> None:
        """Measure what the results file lacks, one part after the other."""
        todo = [p for p in parts if self.again or not self.store.have(p.key, p.identity)]
        kept = len(parts) - len(todo)
        if kept:
            print(
                f"{kept} of {len(parts)} parts are in {self.store.path} already and are kept; --again "
                "measures anew"
            )
        cells = {part.cell.label: part.cell for part in todo}
        seconds = {label: speed(cell) for label, cell in cells.items()}
        expected = project(todo, seconds)
        self.bar.update(self.job, total=max(expected, 1e-9))
        with self.bar:
            for part in todo:
                self.label, self.rate = part.key, seconds[part.cell.label]
                done = self.bar.tasks[0].completed
                self.bar.update(self.job, description=part.key)
                self.store.measure(part.key, part.identity, part.work)
                self.bar.update(self.job, completed=done + part.cost * self.rate)


def speed(cell: Cell) -> float:
    """Seconds of an epoch of one network among others, as of now."""
    count = min(cell.plan.chunk, cell.plan.networks)
    done = finetune(
        cell.module(), cell.networks(count), cell.problem.split("train"), cell.problem, learning_rate=1e-3,
        epochs=1, seed=0, batch_size=cell.plan.batch_size,
    )  # fmt: skip
    return done.seconds / count


def project(parts: Sequence[Part], seconds: dict[str, float]) -> float:
    """Print what is going to be measured and about how long it takes; returns the seconds."""
    total = 0.0
    for label, each in seconds.items():
        kinds: dict[str, float] = {}
        for part in parts:
            if part.cell.label == label:
                kind = part.key.split("/")[1]
                kinds[kind] = kinds.get(kind, 0.0) + part.cost * each
        total += sum(kinds.values())
        spent = ", ".join(f"{kind} {cost / 60:.1f}" for kind, cost in kinds.items())
        print(
            f"{label}: {1000 * each:.2f} ms an epoch and network; about {sum(kinds.values()) / 60:.1f} min "
            f"({spent})"
        )
    print(
        f"projected: {total / 60:.1f} min, more where a grid of learning rates has to be widened", flush=True
    )
    return total


def chosen_cells(
    checkpoints: Sequence[Checkpoint], only: Sequence[str], *, every: bool, quick: bool
) -> list[Cell]:
    """The cells: with ``every`` those of ``CELLS`` that have a recipe, else those of the checkpoints.

    Raises:
        ValueError: A cell is asked for that there is not.
    """
    cells = {checkpoint.cell.label: checkpoint.cell for checkpoint in checkpoints}
    if every:
        recipes = {label: cell_of_recipe(label, quick=quick) for label in CELLS}
        cells = {label: cell for label, cell in recipes.items() if cell is not None} | cells
    if unknown := [label for label in only if label not in cells]:
        raise ValueError(
            f"only: got {', '.join(unknown)}, expected cells with a recipe in recipes/zoo or a checkpoint: "
            f"{', '.join(cells) or '(none)'}"
        )
    order = [*CELLS, *cells]
    labels = sorted(only or cells, key=order.index)
    return [cells[label] for label in (labels[:QUICK_CELLS] if quick and not only else labels)]


def report(store: Store) -> str:
    """Write tables and pictures beside the results file; returns the tables."""
    text = tables.markdown(store.records, quick=store.quick)
    write_whole(store.path.with_suffix(".md"), text.encode())
    for name, png in pictures.all_pictures(store.records, quick=store.quick).items():
        write_whole(store.path.with_name(f"{BENCHMARK}_{name}.png"), png)
    return text


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0], exit_on_error=True)
    parser.add_argument(
        "--checkpoints", type=str, nargs="*", default=None,
        help="Names or folders, or folders of such folders; by default the shipped ones.",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="Little of everything, in under five minutes.")
    parser.add_argument("--out", type=Path | None, help="Folder for the results.")
    parser.add_argument("--parts", type=Literal["baselines", "one_pass", "timing", "all"], default="all")
    parser.add_argument("--only", type=str, nargs="*", default=[], help=f"Cells: {', '.join(CELLS)}.")
    parser.add_argument(
        "--again", action="store_true", help="Measure also what the results file has already."
    )
    parser.add_argument("--readme", action="store_true", help="Only make tables, pictures and README anew.")
    given = parser.parse_args(args)
    keep_freed_memory()
    out = given.out or (ROOT / "runs" / f"{BENCHMARK}_quick" if given.quick else RESULTS)
    try:
        store = Store(out / FILE, quick=given.quick)
        if not given.readme:
            _measure(store, given)
        elif not any("/one_pass/" in key for key in store.records):
            raise ValueError(f"{store.path} holds no forward pass to report; measure first, without --readme")
        print(report(store))
        if given.readme:
            tables.rewrite_readme(ROOT / "README.md", tables.readme_block(store.records, quick=store.quick))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _measure(store: Store, given: Any) -> None:
    kinds = ("baselines", "one_pass", "timing") if given.parts == "all" else (given.parts,)
    # Baselines need no checkpoint: these are not even read, unless they are named.
    named = given.checkpoints is not None
    sources = given.checkpoints if named else [] if kinds == ("baselines",) else list_shipped()
    checkpoints = find_checkpoints(sources, quick=given.quick)
    if kinds == ("one_pass",) and not checkpoints:
        raise ValueError(
            "checkpoints: got none, expected at least one; pass --checkpoints with names or folders"
        )
    every = kinds != ("one_pass",) and not named and not (given.quick and checkpoints)
    cells = chosen_cells(checkpoints, given.only, every=every, quick=given.quick)
    labels = [cell.label for cell in cells]
    run = Run(store, again=given.again)
    parts = [part for cell in cells for part in baseline_parts(cell, kinds, run.advance)]
    for checkpoint in checkpoints:
        if checkpoint.cell.label in labels:
            parts += checkpoint_parts(checkpoint, kinds, run.advance)
    began = time.perf_counter()
    run.measure(parts)
    print(f"{len(parts)} parts, {(time.perf_counter() - began) / 60:.1f} min; {store.path}")


if __name__ == "__main__":
    main()
