"""Pictures from the results file. Measures nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from amortopt.cli.picture import COLOURS, GREY, STAR, TWIN, Curve, Figures, Panel, draw
from benchmarks.harness.numbers import summary
from benchmarks.harness.store import Records
from benchmarks.one_shot.cells import UNSEEN
from benchmarks.one_shot.tables import OPTIMIZERS, CellResults, Row, by_cell, has_time, rows_of

LINES = {"SGD": COLOURS["sgd", True], "Adam": COLOURS["adam", True], "Muon": "#3a8f5c"}


def all_pictures(records: Records, *, quick: bool) -> dict[str, bytes]:
    """Suffix of the file's name -> PNG: ``_examples``, ``_time`` and ``_l1``, where there are results."""
    cells = by_cell(records)
    note = " A quick run." if quick else ""
    made = {"_examples": _examples(cells, records, note), "_time": _time(cells, records, note)}
    made["_l1"] = _l1(cells, note)
    return {name: png for name, png in made.items() if png is not None}


def _best_pass(rows: Sequence[Row], size: int) -> Row | None:
    passes = [row for row in rows if row.kind == "pass" and "twin" not in row.name]
    return max(passes, key=lambda row: row.mean(size), default=None)


def _examples(cells: Sequence[CellResults], records: Records, note: str) -> bytes | None:
    """Score against the number of labelled examples, on unseen problems."""
    shown = [(cell, rows_of(cell, records)) for cell in cells if cell.checkpoints() and len(cell.sizes) > 1]
    if not shown:
        return None
    title = "Data sets never seen: one pass, and tuned training"
    with Figures([cell.title for cell, _ in shown], title) as figures:
        for ax, (cell, rows) in zip(figures.axes, shown, strict=True):
            ax.set_xscale("log")
            for row, style in _lines(rows, cell):
                points = [(n, summary(row.numbers(n, UNSEEN))) for n in cell.sizes if row.mean(n) > -math.inf]
                ax.errorbar(
                    [n for n, _ in points], [s["mean"] for _, s in points],
                    yerr=[s["half"] or 0.0 for _, s in points], marker="o", markersize=4.2, capsize=2,
                    markeredgecolor="white", markeredgewidth=0.6, elinewidth=1, **style,
                )  # fmt: skip
            ax.set_xticks(cell.sizes, [f"{size:,}" for size in cell.sizes])
            ax.minorticks_off()
        figures.label("labelled examples of the data set (log scale)", "test accuracy (%)")
        return figures.png(
            "Mean over data sets that no meta-training saw, with its 95 % interval; networks as they start "
            "were trained for 1 to 8 epochs on the same examples; learning rate and input noise of training "
            "are chosen on other data sets." + note
        )


def _lines(rows: Sequence[Row], cell: CellResults) -> list[tuple[Row, dict[str, Any]]]:
    """Rows that have a line, and how it looks: all passes, and the longest training of each kind."""
    chosen: list[tuple[Row, dict[str, Any]]] = []
    for row in rows:
        rounds = row.name.partition("R = ")[2][:1]
        if row.kind == "start":
            chosen.append((row, {"color": GREY, "label": row.name, "linestyle": ":"}))
        elif row.kind == "pass" and (rounds == "1" or row is _best_pass(rows, max(cell.sizes))):
            colour = TWIN if "twin" in row.name else STAR
            label = (
                row.name.partition(", ")[0]
                + (" of the twin" if "twin" in row.name else "")
                + f", R = {rounds}"
            )
            width = 2.2 if rounds == "1" else 1.4
            chosen.append((row, {"color": colour, "label": label, "linewidth": width}))
    for kind, epochs in (("training", 150), ("prototype", 25), ("training", 25)):
        for title, colour in LINES.items():
            same = [r for r in rows if r.kind == kind and r.epochs == epochs and f"{title}," in r.name]
            if kind == "training" and epochs == 25 and any(row.kind == kind for row, _ in chosen):
                continue  # only where nothing longer was measured
            for row in same[:1]:
                label = title + " from the prototype" * (kind == "prototype") + f", {epochs} epochs"
                style = "--" if kind == "prototype" else "-"
                chosen.append((row, {"color": colour, "label": label, "linestyle": style, "linewidth": 1.6}))
    return chosen


def _time(cells: Sequence[CellResults], records: Records, note: str) -> bytes | None:
    """Accuracy against time per network, where most examples are read."""
    panels = []
    for cell in cells:
        if not has_time(cell):
            continue
        timed = next(iter(cell.of("timing").values()))
        rows, size = rows_of(cell, records), max(cell.sizes)
        best, start = _best_pass(rows, size), next(row for row in rows if row.kind == "start")
        assert best is not None
        curves = []
        for optimizer in ("sgd", "adam"):
            lasting = [
                row
                for row in rows
                if row.kind == "training"
                and row.name.startswith(OPTIMIZERS[optimizer])
                and row.mean(size) > -math.inf
            ]
            if not lasting:
                continue
            scores = [summary(row.numbers(size, UNSEEN)) for row in lasting]
            curves.append(
                Curve(
                    OPTIMIZERS[optimizer],
                    COLOURS[optimizer, True],
                    [(row.epochs or 0) * timed["batched"][optimizer] for row in lasting],
                    [score["mean"] for score in scores],
                    interval=[score["half"] or 0.0 for score in scores],
                    names=[f"{row.epochs} ep." for row in lasting] if optimizer == "sgd" else (),
                )
            )
        score = summary(best.numbers(size, UNSEEN))
        panels.append(
            Panel(
                f"{cell.title}, {size:,} examples", start.mean(size), timed["batched"]["pass"], score["mean"],
                interval=score["half"], curves=curves,
            )
        )  # fmt: skip
    explanation = (
        "Mean over data sets that no meta-training saw, with its 95 % interval; every point of training is a "
        "run of its own, with learning rate and input noise chosen on other data sets. Times: those of all "
        "networks at once, over their number."
    )
    title = "Data sets never seen: one pass, and tuned training"
    return draw(panels, title=title, note=explanation + note) if panels else None


def _l1(cells: Sequence[CellResults], note: str) -> bytes | None:
    """Accuracy against the cut of the L1 norm, as λ grows."""
    cells = [cell for cell in cells if cell.of("l1_pass")]
    if not cells:
        return None
    with Figures([cell.title for cell in cells], "One checkpoint for every L1 strength") as figures:
        for ax, cell in zip(figures.axes, cells, strict=True):
            curves = {f"one pass, {name}": (STAR, points) for (name,), points in cell.of("l1_pass").items()}
            colours = {"sgd": ("SGD", LINES["SGD"]), "proximal adam": ("proximal Adam", LINES["Adam"])}
            for (name,), result in cell.of("l1").items():
                title, colour = colours[name]
                curves[f"{title}, {result['epochs']} epochs"] = (colour, result["points"])
            for label, (colour, points) in curves.items():
                pairs = [(summary([p["cut"]])["mean"], summary([p["score"]])["mean"]) for p in points]
                pairs = [pair for pair in pairs if None not in pair]
                ax.plot(
                    *zip(*pairs, strict=True), "o-", color=colour, label=label, linewidth=1.8, markersize=4
                )
            # With a weak penalty norms grow, many times over; the question is what can be cut.
            ax.set_xlim(-104, 103)
            ax.axvline(0, color=GREY, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        figures.label("L1 norm cut, against the start (%)", "test accuracy (%)")
        return figures.png(
            "Mean over data sets that no meta-training saw; a point per λ, growing from left to right; every "
            "point of training is a run of its own, tuned for its λ on other data sets." + note
        )
