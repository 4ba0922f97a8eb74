"""Pictures from the results file. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from amortopt.cli.picture import COLOURS, GREY, INK, STAR, TWIN, Curve, Figures, Panel, draw, styled
from comparison.store import Record, summary
from comparison.tables import CellResults, by_cell, method_name

_PROXIMAL = "#3a8f5c"
_LINES = {
    "l1-sgd-noise": COLOURS["sgd", True],
    "l1-adam-noise": COLOURS["adam", True],
    "l1-prox-sgd-noise": _PROXIMAL,
    "l1-prox-adam-noise": "#8bbf9f",
    "l1-sgd": COLOURS["sgd", False],
    "l1-adam": COLOURS["adam", False],
}


def all_pictures(records: Mapping[str, Record], *, quick: bool) -> dict[str, bytes]:
    """Name -> PNG: ``time``, ``networks`` and ``l1``, those that there are results for."""
    cells = by_cell(records)
    note = " A quick run." if quick else ""
    made = {"time": _time(cells, note), "networks": _networks(cells, note), "l1": _l1(cells, note)}
    return {name: png for name, png in made.items() if png is not None}


def _time(cells: Sequence[CellResults], note: str) -> bytes | None:
    """Accuracy against time per network: every point is a run of its own, tuned for its length."""
    panels = [panel for cell in cells if (panel := _time_panel(cell)) is not None]
    if not panels:
        return None
    return draw(
        panels,
        title="One forward pass against tuned SGD and Adam",
        note="Test data, mean over the networks with its 95 % interval; every point is a run of its own, "
        "with learning rate and schedule chosen for its length on other networks; noise: on the training "
        "inputs, as in meta-training. Times: all networks at once, over their number." + note,
    )


def _time_panel(cell: CellResults) -> Panel | None:
    passes, seconds = cell.passes.get("scale"), cell.pass_seconds("scale")
    if not passes or seconds is None or not cell.start:
        return None
    curves = []
    for optimizer in ("sgd", "adam"):
        for noisy in (False, True):
            key = f"ce-{optimizer}" + ("-noise" if noisy else "")
            rows = cell.rows.get(key, [])
            times = [cell.seconds(key, row["epochs"]) for row in rows]
            if not rows or None in times:
                continue
            accuracy = [summary([row["accuracy"]]) for row in rows]
            curves.append(
                Curve(
                    label=method_name(key),
                    colour=COLOURS[optimizer, noisy],
                    seconds=[t for t in times if t is not None],
                    accuracy=[a["mean"] for a in accuracy],
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
    with styled():
        figures = Figures(len(cells), "Every network, before and after one forward pass")
        for ax, cell in zip(figures.axes, cells, strict=True):
            _scatter(ax, cell)
        figures.label("test accuracy before (%)", "after (%)")
        return figures.png("Test data; cross-entropy; mean over meta-training seeds." + note)


def _scatter(ax: Any, cell: CellResults) -> None:
    before = cell.start["accuracy"]
    ax.set_title(cell.title, loc="left", fontsize=10, color=INK, pad=8)
    highest = max(before)
    for symmetry, colour, marker, label in (
        ("permutation", TWIN, "s", "symmetry-broken twin"),
        ("scale", STAR, "o", "ScaleGMN"),
    ):
        if not (passes := cell.passes.get(symmetry)):
            continue
        after = [_mean([p["ce"]["accuracy"][b] for p in passes]) for b in range(len(before))]
        highest = max(highest, *after)
        ax.scatter(
            before, after, s=16, color=colour, marker=marker, linewidths=0, alpha=0.75, label=label, zorder=3
        )
    rows = cell.rows.get("ce-sgd-noise") or cell.rows.get("ce-sgd")
    if rows:
        row = rows[-1]
        ax.scatter(
            before, row["accuracy"], s=14, facecolors="none", edgecolors=COLOURS["sgd", True], linewidths=0.9,
            label="SGD, same augmentation, longest", zorder=2,
        )  # fmt: skip
        highest = max(highest, *row["accuracy"])
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
    with styled():
        figures = Figures(len(cells), "One checkpoint for every L1 strength")
        for ax, cell in zip(figures.axes, cells, strict=True):
            _cut_panel(ax, cell)
        figures.label("L1 norm cut, against the start (%)", "test accuracy (%)")
        return figures.png(
            "Test data, mean over the networks; a point per λ, growing from left to right; every point of "
            "SGD, Adam and proximal SGD is a run of its own, with the augmentation and a learning rate "
            "chosen for its λ." + note
        )


def _cut_panel(ax: Any, cell: CellResults) -> None:
    ax.set_title(cell.title, loc="left", fontsize=10, color=INK, pad=8)
    left = 0.0
    for key, curve in cell.curves.items():
        points = [
            p for p in curve["points"] if p["accuracy"]["mean"] is not None and p["cut"]["mean"] is not None
        ]
        cut, accuracy = ([p[name]["mean"] for p in points] for name in ("cut", "accuracy"))
        left = min([left, *cut])
        ax.plot(
            cut, accuracy, color=_LINES.get(key, GREY), linewidth=1.6, marker="o", markersize=4.2,
            markeredgecolor="white", markeredgewidth=0.6, zorder=3,
            label=f"{method_name(key).removesuffix(' + noise')}, {curve['epochs']} epochs",
        )  # fmt: skip
    for symmetry, colour, label in (
        ("permutation", TWIN, "twin, one pass"),
        ("scale", STAR, "ScaleGMN, one pass"),
    ):
        seeds = [p["curve"] for p in cell.passes.get(symmetry, []) if p["curve"]]
        if not seeds:
            continue
        cut, accuracy = (
            [_mean([seed[i][name]["mean"] for seed in seeds]) for i in range(len(seeds[0]))]
            for name in ("cut", "accuracy")
        )
        left = min([left, *cut])
        ax.plot(cut, accuracy, color=colour, linewidth=2.2, marker="o", markersize=3, zorder=4, label=label)
    # With a weak penalty norms grow, many times over; the question is what can be cut.
    ax.set_xlim(max(left, -50.0) - 4, 103)
    ax.axvline(0, color=GREY, linewidth=1, linestyle=(0, (1, 2)), zorder=1)


def _mean(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else float("nan")
