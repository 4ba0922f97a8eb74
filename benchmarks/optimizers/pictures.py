"""Pictures from the results file. Measures nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from amortopt.cli.picture import COLOURS, STAR, TWIN, Figures
from benchmarks.harness.numbers import mean, summary
from benchmarks.harness.store import Record, Records
from benchmarks.optimizers.settings import HORIZON, LONGER
from benchmarks.optimizers.tables import Line, lines_of, places

BASELINES = {
    "sgd": COLOURS["sgd", True],
    "muon": COLOURS["sgd", False],
    "adam": COLOURS["adam", True],
    "adamw": COLOURS["adam", False],
}
RIVALS = (TWIN, "#3a8f5c", "#8a8f98", "#b07aa1")
POINTS = 30
"""Most points of a curve; longer ones are averaged."""
STYLES = {"main": (2.0, "-", 5), "rival": (1.2, "--", 4), "baseline": (1.3, "-", 3)}
"""Role of a line -> width, style, order of drawing."""


def all_pictures(records: Records, *, quick: bool) -> dict[str, bytes]:
    """Suffix of the file's name -> PNG: ``""``, ``_longer`` and ``_unseen``, where there are results."""
    lines = lines_of(records)
    titles = {
        "known": ("", f"Training for {HORIZON} steps"),
        "longer": ("_longer", f"Training for {LONGER * HORIZON} steps"),
        "unseen": ("_unseen", "Other widths and problems"),
    }
    made = {}
    for kind, (suffix, title) in titles.items():
        if columns := places(lines, kind):
            made[suffix] = _curves(lines, columns, title, quick=quick)
    return made


def _curves(lines: Sequence[Line], columns: Sequence[tuple[str, int]], title: str, *, quick: bool) -> bytes:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with Figures([setting for setting, _ in columns], title) as figures:
        for ax, (setting, steps) in zip(figures.axes, columns, strict=True):
            rivals = 0
            for line in lines:
                colour = BASELINES.get(line.key) if line.role == "baseline" else STAR
                if line.role == "rival":
                    colour, rivals = RIVALS[rivals % len(RIVALS)], rivals + 1
                _draw(ax, line, str(colour), setting, steps)
            # Diverging runs must not squeeze the others.
            drawn = [curve.get_ydata() for curve in ax.get_lines()]
            ax.set_yscale("log")
            if drawn:
                ax.set_ylim(0.85 * min(min(y) for y in drawn), 1.15 * max(y[0] for y in drawn))
            ax.yaxis.set_major_locator(MaxNLocator(6))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ax.minorticks_off()
        figures.label("step", "training loss, nats")
        return figures.png(
            "Loss of the minibatches, the same for all optimizers, as means over stretches of steps; mean "
            "over initialisations with its 95 % interval. Baselines: learning rate and schedule tuned for "
            "the last step's training loss on other initialisations." + (" A quick run." if quick else "")
        )


def _draw(ax: Any, line: Line, colour: str, setting: str, steps: int) -> None:
    shown = [(at, point) for at, point in _curve(line, setting, steps) if point["mean"] is not None]
    if not shown:
        return
    at, means = [a for a, _ in shown], [point["mean"] for _, point in shown]
    half = [point["half"] or 0.0 for _, point in shown]
    width, style, above = STYLES[line.role]
    ax.plot(at, means, style, color=colour, lw=width, label=line.title.replace("`", ""), zorder=above)
    # The axis is logarithmic: a band that reaches zero would cover it all.
    low = [max(m - h, 0.3 * m) for m, h in zip(means, half, strict=True)]
    high = [m + h for m, h in zip(means, half, strict=True)]
    ax.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)


def _curve(line: Line, setting: str, steps: int) -> list[tuple[float, Record]]:
    """(step, summary) up to ``steps``; a rule's can be the start of a longer run: its steps are the same."""
    lengths = [n for label, n in line.curves if label == setting and (n == steps or line.role != "baseline")]
    lengths = [n for n in lengths if n >= steps]
    if not lengths:
        return []
    curve = line.curves[setting, min(lengths)]
    points = [(at, row) for at, row in zip(curve["steps"], curve["losses"], strict=True) if at <= steps]
    merged = math.ceil(len(points) / POINTS)
    result = []
    for group in (points[i : i + merged] for i in range(0, len(points), merged)):
        columns = zip(*(row for _, row in group), strict=True)
        means = [None if None in column else mean(column) for column in columns]
        result.append((mean([at for at, _ in group]), summary([means])))
    return result
