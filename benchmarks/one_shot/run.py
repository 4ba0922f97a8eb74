"""One pass on problems never seen, against tuned training on the same examples, with the controls.

    python benchmarks/one_shot             # the shipped checkpoints -> benchmarks/results; 12 min each
    python benchmarks/one_shot --quick     # little of everything -> runs/one_shot_quick; 5 min
    python benchmarks/one_shot --checkpoints curves-mlp-tanh FOLDER    # these, which may be twins or seeds
    python benchmarks/one_shot --parts baselines --cells curves_mlp_tanh    # a recipe is enough
    python benchmarks/one_shot --parts timing --again                  # on a quiet machine
    python benchmarks/one_shot --keys prototype/glyphs-cnn-relu/sgd/200    # one record
    python benchmarks/one_shot --report    # measures nothing: tables and pictures

Times are of one core; networks with convolutions take longer. Each network has a data set of its own, which
the family of problems draws for the test part, or a real data set. All methods have the same N examples and
start from the same networks. Settings of training are chosen on problems of the validation part; test
problems are used once. What does not depend on a checkpoint's weights is measured once: another checkpoint of
the same networks finds it in the results file, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from amortopt import list_shipped, load_release
from benchmarks.harness.command import Part, command_line, measure, parse, results, write_report
from benchmarks.harness.store import Store
from benchmarks.one_shot import baselines, passes, pictures, tables
from benchmarks.one_shot.baselines import DAMPINGS, Setting, mean_score, start_of
from benchmarks.one_shot.cells import RATES, Cell, cell_of_recipe
from benchmarks.one_shot.natural import CURVATURE, ITERATIONS
from benchmarks.one_shot.passes import Checkpoint, find_checkpoints, variants

BENCHMARK = "one_shot"
PARTS = ("baselines", "passes", "sections", "timing")
L1_METHODS = {"sgd": ("sgd", False), "proximal adam": ("adam", True)}


def training_identity(cell: Cell, size: int, optimizer: str, **more: Any) -> dict[str, Any]:
    """What training depends on, beside where it starts."""
    plan = cell.plan
    return cell.identity(size) | {
        "trained": plan.trained, "tuned_on": plan.tuned_on, "noises": cell.noises(), "widen": plan.widen,
        "optimizer": optimizer, "rates": RATES[optimizer], "batch_size": cell.batch_size(size),  # type: ignore[index]
    } | more  # fmt: skip


def middle_size(cell: Cell) -> int:
    """Number N of examples of problems outside of the family."""
    return max([size for size in cell.sizes if size <= cell.plan.few] or [min(cell.sizes)])


def strongest_of(store: Store, keys: Sequence[str], epochs: int) -> tuple[Setting, int]:
    """The setting that was best on problems of the family, of the records that are there, at one length.

    Args:
        store: Holds the records.
        keys: Their keys, which have the optimizer before the last slash.
        epochs: The length.

    Raises:
        ValueError: None of the records is there.
    """
    rows = [
        (key.split("/")[-2], row)
        for key in keys
        if key in store.records
        for row in store.records[key]["result"]["rows"]
        if row["epochs"] == epochs
    ]
    if not rows:
        raise ValueError(f"keys: got none of {', '.join(keys)} in {store.path}; measure one of them first")
    optimizer, row = max(rows, key=lambda pair: mean_score(pair[1]))
    return Setting(optimizer, row["rate"], row["noise"]), epochs  # type: ignore[arg-type]


def baseline_parts(store: Store, cell: Cell, *, l1: bool) -> list[Part]:
    """What needs no checkpoint."""
    plan, parts = cell.plan, []
    weight = 10.0 if cell.family.name == "cnn" else 1.0  # what an epoch costs, against that of an MLP

    def add(key: str, identity: Any, work: Any, cost: float) -> None:
        parts.append(Part(f"{cell.label}/{key}", identity, work, cost * weight))

    for size in cell.sizes:
        add(
            f"start/{size}", cell.identity(size),
            lambda _, size=size: baselines.start_row(cell, size), 8.0 * size * plan.problems,
        )  # fmt: skip
        add(
            f"average/{size}", cell.identity(size),
            lambda _, size=size: baselines.average_row(cell, size), 8.0 * size * plan.problems,
        )  # fmt: skip
        for optimizer in plan.optimizers:
            lengths = plan.lengths_of(optimizer, size)
            rates = len(RATES[optimizer]) * len(cell.noises())
            add(
                f"training/{optimizer}/{size}",
                training_identity(cell, size, optimizer, lengths=lengths, anchors=plan.anchors),
                partial(
                    baselines.training_rows, cell, size, optimizer, lengths, plan.anchors, start_of
                ),
                size * (sum(lengths) * plan.trained + sum(plan.anchors) * plan.tuned_on * rates),
            )  # fmt: skip
        add(
            f"natural/{size}",
            cell.identity(size)
            | {"trained": plan.trained, "tuned_on": plan.tuned_on, "steps": plan.natural}
            | {"dampings": DAMPINGS, "iterations": ITERATIONS, "curvature": CURVATURE},
            partial(baselines.natural_rows, cell, size),
            16.0 * max(plan.natural) * size * (plan.trained + len(DAMPINGS) * plan.tuned_on),
        )  # fmt: skip

    keys = [f"{cell.label}/training/{optimizer}/{middle_size(cell)}" for optimizer in plan.optimizers]
    strongest = partial(strongest_of, store, keys, max(plan.anchors))
    for variant in variants(cell):
        add(
            f"outside/{variant}",
            lambda: cell.identity(middle_size(cell)) | {"trained": plan.trained, "setting": strongest()},
            lambda _, v=variant: baselines.outside_row(cell, middle_size(cell), v, *strongest(), start_of),
            middle_size(cell) * plan.trained * 150.0,
        )
    if l1:
        for name, (optimizer, proximal) in L1_METHODS.items():
            add(
                f"l1/{name}",
                training_identity(
                    cell, plan.l1_size, optimizer, strengths=plan.strengths, epochs=plan.l1_length
                ),
                partial(baselines.l1_rows, cell, optimizer, proximal),
                plan.l1_size * plan.l1_length * len(plan.strengths) * (plan.trained + 8 * plan.tuned_on),
            )  # fmt: skip
    return parts


def pass_parts(checkpoint: Checkpoint) -> list[Part]:
    """A checkpoint's passes, and training from its prototype and from what a pass returns."""
    cell, name, parts = checkpoint.cell, checkpoint.name, []
    plan, lengths = cell.plan, cell.plan.prototype_lengths
    for size in cell.sizes:
        parts.append(
            Part(
                f"{cell.label}/pass/{name}/{size}", checkpoint.identity(size),
                lambda _, size=size: passes.pass_rows(checkpoint, size), 20.0 * size * plan.problems,
            )
        )  # fmt: skip
        starts = [("prototype", checkpoint.prototype, plan.prototype_optimizers)]
        starts += [("continued", checkpoint.passed, plan.continued_optimizers)]
        for kind, start, optimizers in starts:
            for optimizer in optimizers:
                identity = training_identity(
                    cell, size, optimizer, lengths=lengths, sha256=checkpoint.release.sha256
                )
                work = partial(baselines.training_rows, cell, size, optimizer, lengths, lengths, start)
                cost = size * sum(lengths) * (plan.trained + plan.tuned_on * 4 * len(cell.noises()))
                parts.append(Part(f"{cell.label}/{kind}/{name}/{optimizer}/{size}", identity, work, cost))
    return parts


def section_parts(store: Store, checkpoint: Checkpoint) -> list[Part]:
    """Starts of every quality, problems outside of the family, curves over λ."""
    cell, name = checkpoint.cell, checkpoint.name
    plan, smallest, largest = cell.plan, min(cell.sizes), max(cell.sizes)
    middle = middle_size(cell)
    parts = [
        Part(
            f"{cell.label}/quality/{name}",
            checkpoint.identity(
                largest, smallest=smallest, qualities=plan.qualities, measured_on=plan.trained
            ),
            lambda _: passes.quality_rows(checkpoint, sorted({smallest, largest})),
            largest * plan.trained * 250.0,
        )
    ]

    keys = [f"{cell.label}/prototype/{name}/{optimizer}/{middle}" for optimizer in plan.prototype_optimizers]
    strongest = partial(strongest_of, store, keys, max(plan.prototype_lengths))
    for variant in variants(cell):
        parts += [
            Part(
                f"{cell.label}/outside_pass/{name}/{variant}",
                checkpoint.identity(middle),
                lambda _, v=variant: passes.outside_pass(checkpoint, middle, v),
                middle * plan.problems * 5.0,
            ),
            Part(
                f"{cell.label}/outside_prototype/{name}/{variant}",
                lambda: checkpoint.identity(middle, trained=plan.trained, setting=strongest()),
                lambda _, v=variant: baselines.outside_row(
                    cell, middle, v, *strongest(), checkpoint.prototype
                ),
                middle * plan.trained * max(plan.prototype_lengths),
            ),
        ]
    if checkpoint.reads_l1:
        identity = checkpoint.identity(plan.l1_size, strengths=plan.strengths)
        work = lambda _: passes.l1_curve(checkpoint)  # noqa: E731
        parts.append(
            Part(f"{cell.label}/l1_pass/{name}", identity, work, plan.l1_size * plan.problems * 60.0)
        )
    return parts


def timing_part(checkpoint: Checkpoint) -> Part:
    """A pass and an epoch of SGD, in turns."""
    cell, size = checkpoint.cell, max(checkpoint.cell.sizes)
    return Part(
        f"{cell.label}/timing/{checkpoint.name}",
        checkpoint.identity(size, repeats=cell.plan.repeats),
        lambda _: passes.timing(checkpoint, size, max(cell.plan.anchors)),
        size * cell.plan.problems * 10.0 * cell.plan.repeats,
    )


def memorised_part(source: str, networks: int) -> Part:
    """A checkpoint that knows one data set, on that data set."""
    release = load_release(source)
    return Part(
        f"memorised/{release.name}",
        {"sha256": release.sha256, "networks": networks},
        lambda _: passes.memorised_row(source, networks),
        1e5,
    )


def all_parts(options: argparse.Namespace, store: Store) -> list[Part]:
    """Everything that the options ask for.

    Raises:
        ValueError: There is nothing to measure.
    """
    kinds, quick = options.parts, options.quick
    sources = options.checkpoints
    if sources is None:
        sources = [] if options.cells else list_shipped()
    readers, memorised = find_checkpoints(sources, quick=quick)
    cells = {cell.label: cell for cell in (cell_of_recipe(label, quick=quick) for label in options.cells)}
    cells |= {reader.cell.label: reader.cell for reader in readers}
    if not cells and not memorised:
        raise ValueError("checkpoints: got none, expected at least one, or --cells with names of recipes")
    parts: list[Part] = []
    for label, cell in cells.items():
        its = [reader for reader in readers if reader.cell.label == label]
        # One cell for all of its checkpoints, so that its data are drawn once.
        its = [Checkpoint(reader.source, reader.release, cell) for reader in its]
        if "baselines" in kinds:
            parts += baseline_parts(store, cell, l1=any(reader.reads_l1 for reader in its))
        for reader in its:
            if "passes" in kinds:
                parts += pass_parts(reader)
            if "sections" in kinds:
                parts += section_parts(store, reader)
            if "timing" in kinds:
                parts.append(timing_part(reader))
    if "passes" in kinds:
        parts += [memorised_part(source, 8 if quick else 64) for source in memorised]
    if options.keys is not None:
        parts = [part for part in parts if any(key in part.key for key in options.keys)]
        if not parts:
            raise ValueError(f"keys: got {options.keys}, which no record has in its key")
    return parts


def all_options(args: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, parts=PARTS, threads=1)
    parser.add_argument(
        "--checkpoints", nargs="*", help="names or folders, or folders of such folders; default: the shipped"
    )
    parser.add_argument("--cells", nargs="*", default=[], help="recipes of networks without a checkpoint")
    parser.add_argument(
        "--keys",
        nargs="*",
        help="only records with one of these in their key, such as prototype/NAME/sgd/200",
    )
    return parse(parser, args)


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    options = all_options(args)
    with results(BENCHMARK, options) as store:
        if not options.report:
            measure(store, all_parts(options, store), again=options.again)
        elif not store.records:
            raise ValueError(f"{store.path} holds nothing to report; measure first, without --report")
        text = tables.markdown(store.records, quick=store.quick)
        write_report(store, text, pictures.all_pictures(store.records, quick=store.quick))
