"""One forward pass of a metanet against tuned SGD and Adam, with and without L1.

    python benchmarks/one_shot             # everything -> benchmarks/results/sgd_vs_amortized.*; 100 min
    python benchmarks/one_shot --quick     # two cells, short runs -> runs/sgd_vs_amortized_quick; 5 min
    python benchmarks/one_shot --parts baselines --only mnist1d_mlp_tanh     # needs no checkpoint
    python benchmarks/one_shot --parts one_pass --checkpoints mnist1d-mlp-tanh FOLDER
    python benchmarks/one_shot --parts baselines --methods ce-muon-noise    # a baseline that no plan has
    python benchmarks/one_shot --parts timing --again                       # on a quiet machine
    python benchmarks/one_shot --report    # measures nothing: tables and pictures

Times are of one core. Starting networks are drawn and trained a little by the recipes in recipes/zoo, with
other seeds. Learning rates and schedules are chosen on other networks, by validation data. Test
data are used once, for the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from amortopt import list_shipped
from benchmarks.harness.command import Part, command_line, measure, parse, results, write_report
from benchmarks.one_shot import pictures, tables
from benchmarks.one_shot.baselines import Baselines
from benchmarks.one_shot.cells import CELLS, Cell, Method, cell_of_recipe
from benchmarks.one_shot.passes import Checkpoint, OnePass, find_checkpoints

BENCHMARK = "sgd_vs_amortized"
PARTS = ("baselines", "one_pass", "timing")
QUICK_CELLS = 2


def baseline_parts(cell: Cell, kinds: Sequence[str]) -> list[Part]:
    """The parts of a cell that need no checkpoint."""
    baselines, parts = Baselines(cell), []

    def add(name: str, work: Any, method: Method | None = None) -> None:
        key = f"{cell.label}/{name}" + (f"/{method.key}" if method else "")
        cost = baselines.cost(name, method) * cell.setting.cost
        parts.append(Part(key, baselines.identity(name, method), work, cost))

    if "baselines" in kinds:
        add("start", baselines.start)
        for method in cell.plan.methods:
            add("rows", partial(baselines.rows, method), method)
        for method in cell.plan.curve:
            add("curve", partial(baselines.curve, method), method)
    if "timing" in kinds:
        add("timing", baselines.timing)
    return parts


def checkpoint_parts(checkpoint: Checkpoint, kinds: Sequence[str]) -> list[Part]:
    """The parts of a checkpoint."""
    cell, one_pass = checkpoint.cell, OnePass(checkpoint)
    works = {"one_pass": ("one_pass", one_pass.measure, 10), "timing": ("latency", one_pass.latency, 5)}
    return [
        Part(
            f"{cell.label}/{name}/{checkpoint.key}",
            checkpoint.identity(name),
            lambda advance, work=work: work(),
            cost * cell.plan.networks * cell.setting.cost,
        )
        for kind, (name, work, cost) in works.items()
        if kind in kinds
    ]


def chosen_cells(
    checkpoints: Sequence[Checkpoint], only: Sequence[str], *, every: bool, quick: bool
) -> list[Cell]:
    """The cells: with ``every`` those of ``CELLS`` that have a recipe, else those of the checkpoints.

    Raises:
        ValueError: ``only`` names one that does not exist.
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
    labels = sorted(only or cells, key=[*CELLS, *cells].index)
    return [cells[label] for label in (labels[:QUICK_CELLS] if quick and not only else labels)]


def all_parts(options: Any) -> list[Part]:
    """Everything that the options ask for.

    Raises:
        ValueError: There is no checkpoint to measure, or no such cell.
    """
    kinds, named, quick = options.parts, options.checkpoints is not None, options.quick
    # Baselines need no checkpoint: these are not even read, unless they are named.
    sources = options.checkpoints if named else [] if kinds == ["baselines"] else list_shipped()
    checkpoints = find_checkpoints(sources, quick=quick)
    if kinds == ["one_pass"] and not checkpoints:
        raise ValueError(
            "checkpoints: got none, expected at least one; pass --checkpoints with names or folders"
        )
    every = kinds != ["one_pass"] and not named and not (quick and checkpoints)
    cells = chosen_cells(checkpoints, options.only, every=every, quick=quick)
    labels = [cell.label for cell in cells]
    if options.methods:
        methods = tuple(Method.from_key(key) for key in options.methods)
        cells = [replace(cell, plan=replace(cell.plan, methods=methods, curve=())) for cell in cells]
    parts = [part for cell in cells for part in baseline_parts(cell, kinds)]
    for checkpoint in checkpoints:
        if checkpoint.cell.label in labels:
            parts += checkpoint_parts(checkpoint, kinds)
    return parts


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(__doc__, parts=PARTS)
    parser.add_argument("--only", nargs="*", default=[], help=f"cells, such as {', '.join(CELLS)}")
    parser.add_argument(
        "--checkpoints", nargs="*", help="names or folders, or folders of such folders; default: the shipped"
    )
    parser.add_argument("--methods", nargs="*", help="kinds of fine-tuning in place of the plans', by key")
    options = parse(parser, args)
    with results(BENCHMARK, options) as store:
        if not options.report:
            measure(store, all_parts(options), again=options.again)
        elif not any("/one_pass/" in key for key in store.records):
            raise ValueError(f"{store.path} holds no forward pass to report; measure first, without --report")
        text = tables.markdown(store.records, quick=store.quick)
        write_report(store, text, pictures.all_pictures(store.records, quick=store.quick))
