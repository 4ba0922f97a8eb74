"""Pictures from the results file. Measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amortopt.cli.picture import COLOURS, GREY, STAR, TWIN, Curve, Figures, Panel, draw
from benchmarks.harness.numbers import Values, mean, summary
from benchmarks.harness.store import Records
from benchmarks.one_shot.tables import CellResults, by_cell, method_name

LINES = {
    "l1-sgd-noise": COLOURS["sgd", True],
    "l1-adam-noise": COLOURS["adam", True],
    "l1-prox-sgd-noise": "#3a8f5c",
    "l1-prox-adam-noise": "#8bbf9f",
    "l1-sgd": COLOURS["sgd", False],
    "l1-adam": COLOURS["adam", False],
}
PASSES = (("permutation", TWIN, "s", "symmetry-broken twin"), ("scale", STAR, "o", "ScaleGMN"))
"""What a metanet respects, colour, marker, label."""


def all_pictures(records: Records, *, quick: bool) -> dict[str, bytes]:
    """Suffix of the file's name -> PNG: ``_time``, ``_networks`` and ``_l1``, where there are results."""
    cells = by_cell(records)
    note = " A quick run." if quick else ""
    made = {"_time": _time(cells, note), "_networks": _networks(cells, note), "_l1": _l1(cells, note)}
    return {name: png for name, png in made.items() if png is not None}


def _time(cells: Sequence[CellResults], note: str) -> bytes | None:
    """Accuracy against time per network: every point is a separate run, tuned for its length."""
    panels = [panel for cell in cells if (panel := _time_panel(cell)) is not None]
    explanation = (
        "Test data, mean over the networks with its 95 % interval; every point is a run of its own, "
        "with learning rate and schedule chosen for its length on other networks; noise: on the training "
        "inputs, as in meta-training. Times: all networks at once, over their number."
    )
    title = "One forward pass against tuned SGD and Adam"
    return draw(panels, title=title, note=explanation + note) if panels else None


def _time_panel(cell: CellResults) -> Panel | None:
    passes, seconds = cell.passes.get("scale"), cell.pass_seconds("scale")
    if not passes or seconds is None or not cell.start:
        return None
    curves = []
    for optimizer, noisy in COLOURS:
        key = f"ce-{optimizer}" + "-noise" * noisy
        rows = cell.rows.get(key, [])
        times = [t for row in rows if (t := cell.seconds(key, row["epochs"])) is not None]
        if not times:
            continue
        accuracy = [summary([row["accuracy"]]) for row in rows]
        curves.append(
            Curve(
                method_name(key),
                COLOURS[optimizer, noisy],
                times,
                [a["mean"] for a in accuracy],
                interval=[a["half"] or 0.0 for a in accuracy],
                names=[f"{row['epochs']} ep." for row in rows] if key == "ce-sgd-noise" else (),
            )
        )
    better = summary([p["ce"]["accuracy"] for p in passes])
    start = summary([cell.start["accuracy"]])["mean"]
    return Panel(cell.title, start, seconds, better["mean"], interval=better["half"], curves=curves)


def _networks(cells: Sequence[CellResults], note: str) -> bytes | None:
    """Before and after, a point per network."""
    cells = [cell for cell in cells if cell.start and cell.passes]
    if not cells:
        return None
    with Figures(
        [cell.title for cell in cells], "Every network, before and after one forward pass"
    ) as figures:
        for ax, cell in zip(figures.axes, cells, strict=True):
            _scatter(ax, cell)
        figures.label("test accuracy before (%)", "after (%)")
        return figures.png("Test data; cross-entropy; mean over meta-training seeds." + note)


def _scatter(ax: Any, cell: CellResults) -> None:
    before = cell.start["accuracy"]
    highest = max(before)
    for symmetry, colour, marker, label in PASSES:
        if passes := cell.passes.get(symmetry):
            after = [
                _finite_mean(of_network)
                for of_network in zip(*(p["ce"]["accuracy"] for p in passes), strict=True)
            ]
            highest = max(highest, *after)
            style = {"s": 16, "linewidths": 0, "alpha": 0.75, "zorder": 3}
            ax.scatter(before, after, color=colour, marker=marker, label=label, **style)
    if rows := cell.rows.get("ce-sgd-noise") or cell.rows.get("ce-sgd"):
        after, style = rows[-1]["accuracy"], {"s": 14, "facecolors": "none", "linewidths": 0.9, "zorder": 2}
        label = "SGD, same augmentation, longest"
        ax.scatter(before, after, edgecolors=COLOURS["sgd", True], label=label, **style)
        highest = max(highest, *after)
    ax.plot([0, highest], [0, highest], color=GREY, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    at = 0.83 * max(before)
    ax.annotate("unchanged", (at, at), xytext=(4, -10), textcoords="offset points", fontsize=8, color=GREY)
    ax.set_ylim(0, 1.08 * highest)
    ax.set_xlim(0, 1.08 * max(before))


def _l1(cells: Sequence[CellResults], note: str) -> bytes | None:
    """Accuracy against the cut of the L1 norm, as λ grows."""
    cells = [cell for cell in cells if cell.curves or any(p["curve"] for p in cell.passes.get("scale", []))]
    if not cells:
        return None
    with Figures([cell.title for cell in cells], "One checkpoint for every L1 strength") as figures:
        for ax, cell in zip(figures.axes, cells, strict=True):
            _cut_panel(ax, cell)
        figures.label("L1 norm cut, against the start (%)", "test accuracy (%)")
        return figures.png(
            "Test data, mean over the networks; a point per λ, growing from left to right; every point of "
            "SGD, Adam and proximal SGD is a run of its own, with the augmentation and a learning rate "
            "chosen for its λ." + note
        )


def _cut_panel(ax: Any, cell: CellResults) -> None:
    left = 0.0
    for key, curve in cell.curves.items():
        points = [(p["cut"]["mean"], p["accuracy"]["mean"]) for p in curve["points"]]
        cut, accuracy = zip(*(point for point in points if None not in point), strict=True)
        left = min([left, *cut])
        style = {"markersize": 4.2, "markeredgecolor": "white", "markeredgewidth": 0.6, "zorder": 3}
        label = f"{method_name(key).removesuffix(' + noise')}, {curve['epochs']} epochs"
        ax.plot(cut, accuracy, "o-", color=LINES.get(key, GREY), linewidth=1.6, label=label, **style)
    for symmetry, colour, _, label in PASSES:
        if seeds := [p["curve"] for p in cell.passes.get(symmetry, []) if p["curve"]]:
            cut, accuracy = (
                [_finite_mean([p[name]["mean"] for p in points]) for points in zip(*seeds, strict=True)]
                for name in ("cut", "accuracy")
            )
            left = min([left, *cut])
            label = f"{label.removeprefix('symmetry-broken ')}, one pass"
            ax.plot(cut, accuracy, "o-", color=colour, linewidth=2.2, markersize=3, zorder=4, label=label)
    # With a weak penalty norms grow, many times over; the question is what can be cut.
    ax.set_xlim(max(left, -50.0) - 4, 103)
    ax.axvline(0, color=GREY, linewidth=1, linestyle=(0, (1, 2)), zorder=1)


def _finite_mean(values: Values) -> float:
    finite = [v for v in values if v is not None]
    return mean(finite) if finite else float("nan")
