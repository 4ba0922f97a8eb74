"""Pictures of comparisons: panels in one style, and test accuracy against time per network in them."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from amortopt.system.extras import needed_for

INK, GREY, FAINT = "#1f2933", "#6b7785", "#e3e7eb"
STAR = "#c8102e"
"""Colour of the forward pass."""
TWIN = "#7a5195"
"""Colour of the forward pass of a metanet that knows less of symmetry."""
_SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}

COLOURS = {
    ("sgd", False): "#8fb4d9",
    ("sgd", True): "#1f5fa8",
    ("adam", False): "#e0b071",
    ("adam", True): "#b26a00",
}
"""(optimizer, with input noise) -> line colour."""


@dataclass(frozen=True)
class Curve:
    """A method at several lengths of training.

    Attributes:
        label: For the legend; empty for none.
        colour: Of line and points.
        seconds: Time per network at each point.
        accuracy: Mean test accuracy at each point, in %.
        interval: Half-width of the interval at each point, in %; None to draw none.
        dashed: Whether the line is dashed.
        names: Text at each point; empty for none.
    """

    label: str
    colour: str
    seconds: Sequence[float]
    accuracy: Sequence[float]
    interval: Sequence[float] | None = None
    dashed: bool = False
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """One checkpoint's part of the picture.

    Attributes:
        title: What the networks are.
        start: Mean test accuracy of the networks as they start, in %.
        seconds: Time per network of the forward pass.
        accuracy: Mean test accuracy after it, in %.
        interval: Half-width of its interval in %; None to draw none.
        curves: What it is held against.
    """

    title: str
    start: float
    seconds: float
    accuracy: float
    interval: float | None = None
    curves: Sequence[Curve] = field(default_factory=tuple)


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's settings for these pictures, inside."""
    with needed_for("drawing a picture", extra="demo"):
        import matplotlib as mpl

    with mpl.rc_context(_SETTINGS):
        yield


class Figures:
    """Panels in rows of at most three, with a title above and legend and note below; use inside ``styled``.

    Args:
        count: Number of panels, at least one.
        title: Above all of them.

    Attributes:
        axes: One per panel.
    """

    def __init__(self, count: int, title: str) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        columns = count if count < 4 else math.ceil(count / math.ceil(count / 3))
        self._rows, self._columns = math.ceil(count / columns), columns
        self._width = 7.2 if count == 1 else 5.3 * columns
        self._height = 4.9 + 3.9 * (self._rows - 1)
        width, height = self._width, self._height
        self._figure = Figure(figsize=(width, height), dpi=170 if columns < 3 else 130, facecolor="white")
        FigureCanvasAgg(self._figure)
        grid = self._figure.subplots(self._rows, columns, squeeze=False)
        self.axes: list[Any] = list(grid.flat)[:count]
        for ax in list(grid.flat)[count:]:
            ax.set_axis_off()
        for ax in self.axes:
            _plain(ax)
        self._figure.subplots_adjust(
            left=0.62 / width, right=1 - 0.2 / width, top=1 - 0.83 / height, bottom=1.32 / height,
            wspace=0.13, hspace=0.4,
        )  # fmt: skip
        self._figure.text(
            0.14 / width, 1 - 0.27 / height, title, fontsize=12.5, fontweight="bold", va="center"
        )

    def label(self, x: str, y: str) -> None:
        """Name the axes, at the outer panels only."""
        for i, ax in enumerate(self.axes):
            if i + self._columns >= len(self.axes):
                ax.set_xlabel(x)
            if i % self._columns == 0:
                ax.set_ylabel(y)

    def png(self, note: str) -> bytes:
        """The picture, with a legend of all labels and small print, two or three lines."""
        width, height = self._width, self._height
        named: dict[str, Any] = {}
        for ax in self.axes:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                named.setdefault(label, handle)
        self._figure.legend(
            list(named.values()),
            list(named),
            loc="upper left",
            bbox_to_anchor=(0.5 / width, 0.81 / height),
            ncols=_columns(len(named), wide=self._columns > 1),
            frameon=False,
            fontsize=8.5,
            columnspacing=1.4,
            handlelength=1.8,
        )
        small = textwrap.fill(note, int(16.5 * width))
        self._figure.text(
            0.14 / width, 0.06 / height, small, fontsize=7, color=GREY, va="bottom", linespacing=1.35
        )
        png = io.BytesIO()
        self._figure.savefig(png, format="png")
        return png.getvalue()


def _columns(labels: int, *, wide: bool) -> int:
    """Columns of a legend: one row if it fits, else two or more."""
    fitting = 6 if wide else 3
    return labels if labels <= fitting else min(4, fitting)


def draw(panels: Sequence[Panel], *, title: str, note: str) -> bytes:
    """Draw test accuracy against time per network.

    Args:
        panels: At least one.
        title: Above all of them.
        note: Small print below, two or three lines: what was measured and what the times count.

    Returns:
        A PNG file's content.
    """
    with styled():
        figures = Figures(len(panels), title)
        for ax, panel in zip(figures.axes, panels, strict=True):
            _draw_panel(ax, panel)
            _set_heights(ax, panel)
        figures.label("time per network (log scale)", "test accuracy, mean over networks (%)")
        return figures.png(note)


def _plain(ax: Any) -> None:
    ax.grid(True, color=FAINT, linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _draw_panel(ax: Any, panel: Panel) -> None:
    ax.set_xscale("log")
    ax.set_title(panel.title, loc="left", fontsize=10, color=INK, pad=8)
    ax.axhline(panel.start, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
    for curve in panel.curves:
        _draw_curve(ax, curve)
    ax.errorbar(
        [panel.seconds],
        [panel.accuracy],
        yerr=None if panel.interval is None else [panel.interval],
        fmt="*",
        markersize=17,
        color=STAR,
        markeredgecolor="white",
        markeredgewidth=0.9,
        ecolor=STAR,
        elinewidth=1.3,
        capsize=3,
        zorder=5,
        linestyle="none",
        label="one forward pass",
    )
    seconds = [panel.seconds, *(s for curve in panel.curves for s in curve.seconds)]
    low, high = min(seconds) / 2.2, max(seconds) * 2.6
    ax.set_xlim(low, high)
    ax.xaxis.set_major_formatter(lambda value, _: duration(value))
    ax.xaxis.set_minor_formatter(lambda value, _: "")
    ax.annotate(
        f"{panel.accuracy:.1f} % in {duration(panel.seconds)}",
        (panel.seconds, panel.accuracy),
        xytext=(12, 9),
        textcoords="offset points",
        color=STAR,
        fontsize=10,
        fontweight="bold",
        zorder=6,
    )
    ax.annotate(
        f"as they start, {panel.start:.1f} %",
        (high, panel.start),
        xytext=(-2, 4),
        textcoords="offset points",
        ha="right",
        color=GREY,
        fontsize=8.5,
    )


def _draw_curve(ax: Any, curve: Curve) -> None:
    ax.errorbar(
        curve.seconds,
        curve.accuracy,
        yerr=curve.interval,
        color=curve.colour,
        linewidth=1.6,
        linestyle=(0, (4, 2)) if curve.dashed else "-",
        marker="o",
        markersize=4.2,
        markeredgecolor="white",
        markeredgewidth=0.6,
        elinewidth=1,
        capsize=2,
        zorder=3,
        label=curve.label or None,
    )
    for x, y, name in zip(curve.seconds, curve.accuracy, curve.names, strict=False):
        ax.annotate(
            name,
            (x, y),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            color=curve.colour,
            fontsize=7.5,
        )


def _set_heights(ax: Any, panel: Panel) -> None:
    heights = [panel.start, panel.accuracy, *(a for curve in panel.curves for a in curve.accuracy)]
    room = 0.09 * max(max(heights) - min(heights), 5)
    ax.set_ylim(min(heights) - room, max(heights) + 1.7 * room)


def duration(seconds: float) -> str:
    """A time for people, such as ``2.4 ms``.

    Example:
        >>> duration(0.00241), duration(0.1), duration(12.0)
        ('2.4 ms', '0.1 s', '12 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.0999 * size or unit == "µs":
            value = seconds / size
            return f"{value:.2g} {unit}" if value < 99.5 else f"{value:.0f} {unit}"
    raise AssertionError
