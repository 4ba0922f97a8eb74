"""Pictures from the results file. Measures nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from comparison.store import summary

from amortopt.cli.picture import COLOURS, STAR, TWIN, Figures, styled
from learned.settings import HORIZON, LONGER
from learned.store import Record
from learned.tables import Line, lines_of, places

_BASELINES = {
    "sgd": COLOURS["sgd", True], "nesterov": COLOURS["sgd", False],
    "adam": COLOURS["adam", True], "adamw": COLOURS["adam", False],
}  # fmt: skip
_POINTS = 30
"""Most points of a curve; longer ones are averaged."""
_RIVALS = (TWIN, "#3a8f5c", "#8a8f98", "#b07aa1")


def all_pictures(records: Mapping[str, Record], *, quick: bool) -> dict[str, bytes]:
    """Suffix of the file's name -> PNG: ``""``, ``_longer`` and ``_unseen``, where there are results."""
    lines = lines_of(records)
    titles = {
        "seen": ("", f"Training to the horizon of meta-training, {HORIZON} steps"),
        "longer": ("_longer", f"Training for {LONGER} horizons"),
        "unseen": ("_unseen", "Widths and problems that the rules have not seen"),
    }
    made = {suffix: _curves(lines, kind, title, quick=quick) for kind, (suffix, title) in titles.items()}
    return {suffix: png for suffix, png in made.items() if png is not None}


def _curves(lines: Sequence[Line], kind: str, title: str, *, quick: bool) -> bytes | None:
    columns = places(lines, kind)
    if not columns:
        return None
    with styled():
        figures = Figures(len(columns), title)
        for ax, (setting, steps) in zip(figures.axes, columns, strict=True):
            for line, colour in coloured(lines):
                _draw(ax, line, colour, setting, steps)
            _scale(ax)
            ax.set_title(setting, fontsize=10.5, loc="left")
        figures.label("step", "training loss, nats")
        return figures.png(
            "Loss of the minibatches, the same for all optimizers, as means over stretches of steps; mean "
            "over initialisations with its 95 % interval. Baselines: learning rate and schedule tuned for "
            "the last step's training loss on other initialisations." + (" A quick run." if quick else "")
        )


def coloured(lines: Sequence[Line]) -> list[tuple[Line, str]]:
    """Every line with its colour, those in question last, so that they lie on top."""
    rivals = iter(_RIVALS * (1 + len(lines) // len(_RIVALS)))
    given = []
    for line in lines:
        colour = _BASELINES.get(line.key) if line.role == "baseline" else None
        given.append((line, colour or (STAR if line.role == "main" else next(rivals))))
    return given


def _draw(ax: Any, line: Line, colour: str, setting: str, steps: int) -> None:
    curve = _curve(line, setting, steps)
    shown = [(at, found) for at, found in curve if found["mean"] is not None]
    if not shown:
        return
    at, mean = [a for a, _ in shown], [found["mean"] for _, found in shown]
    half = [found["half"] or 0.0 for _, found in shown]
    width, style, above = {"main": (2.0, "-", 5), "rival": (1.2, "--", 4), "baseline": (1.3, "-", 3)}[
        line.role
    ]
    label = line.title.replace("`", "")
    ax.plot(at, mean, style, color=colour, lw=width, label=label, zorder=above)
    # The axis is logarithmic: a band that reaches zero would cover it all.
    low = [max(m - h, 0.3 * m) for m, h in zip(mean, half, strict=True)]
    high = [m + h for m, h in zip(mean, half, strict=True)]
    ax.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)


def _curve(line: Line, setting: str, steps: int) -> list[tuple[float, Record]]:
    """(step, summary) up to ``steps``; a rule's can be the start of a longer run: its steps are the same."""
    lengths = [n for label, n in line.curves if label == setting and (n == steps or line.role != "baseline")]
    lengths = [n for n in lengths if n >= steps]
    if not lengths:
        return []
    curve = line.curves[setting, min(lengths)]
    points = [(at, row) for at, row in zip(curve["steps"], curve["losses"], strict=True) if at <= steps]
    merged = math.ceil(len(points) / _POINTS)
    groups = [points[i : i + merged] for i in range(0, len(points), merged)]
    return [(_mean([at for at, _ in group]), _merge([row for _, row in group])) for group in groups]


def _merge(rows: Sequence[Sequence[float | None]]) -> Record:
    """Summary over initialisations of their means over stretches."""
    columns = zip(*rows, strict=True)
    return summary(
        [[None if None in column else _mean([v for v in column if v is not None]) for column in columns]]
    )


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def _scale(ax: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    # Diverging runs must not squeeze the others.
    ends = [min(drawn.get_ydata()) for drawn in ax.get_lines()]
    starts = [drawn.get_ydata()[0] for drawn in ax.get_lines()]
    ax.set_yscale("log")
    if ends:
        ax.set_ylim(0.85 * min(ends), 1.15 * max(starts))
    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.minorticks_off()
