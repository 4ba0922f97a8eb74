"""Pictures of comparisons: panels in one style, and test accuracy against time per network in them."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from amortopt.system.extras import needed_for

INK, GREY, FAINT = "#1f2933", "#6b7785", "#e3e7eb"
STAR = "#c8102e"
"""Colour of the forward pass."""
TWIN = "#7a5195"
"""Colour of the forward pass of a metanet that respects fewer symmetries."""
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
class Control:
    """What the forward pass would come to without something: a cross at the time of the pass.

    Attributes:
        label: What it is, in a few words.
        accuracy: Mean test accuracy in %.
    """

    label: str
    accuracy: float


@dataclass(frozen=True)
class Panel:
    """One checkpoint's part of the picture.

    Attributes:
        title: What the networks are.
        start: Mean test accuracy of the networks as they start, in %.
        seconds: Time per network of the forward pass.
        accuracy: Mean test accuracy after it, in %.
        interval: Half-width of its interval in %; None to draw none.
        curves: The methods that it is compared with.
        controls: What the pass would come to without its prototype, its batch, ...
    """

    title: str
    start: float
    seconds: float
    accuracy: float
    interval: float | None = None
    curves: Sequence[Curve] = ()
    controls: Sequence[Control] = ()


class Figures:
    """Panels in rows of at most three, with a title above and legend and note below; a context manager.

    Args:
        titles: Title of every panel, at least one.
        title: Above all of them.

    Attributes:
        axes: Matplotlib axes, one per panel.
    """

    def __init__(self, titles: Sequence[str], title: str) -> None:
        self._titles, self._title = titles, title
        rows = 1 if len(titles) < 4 else math.ceil(len(titles) / 3)
        self._rows, self._columns = rows, math.ceil(len(titles) / rows)
        self._width = 7.2 if len(titles) == 1 else 5.3 * self._columns
        self._height = 4.9 + 3.9 * (rows - 1)
        self._stack = ExitStack()

    def __enter__(self) -> Figures:
        with needed_for("drawing a picture", extra="demo"):
            import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        grey = dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), GREY)
        ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK)
        settings: Any = {"font.family": "DejaVu Sans", "font.size": 9.5, **grey, **ink}
        self._stack.enter_context(mpl.rc_context(settings))
        width, height = self._width, self._height
        dpi = 170 if self._columns < 3 else 130
        self._figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
        FigureCanvasAgg(self._figure)
        grid = list(self._figure.subplots(self._rows, self._columns, squeeze=False).flat)
        self.axes: list[Any] = grid[: len(self._titles)]
        for ax in grid[len(self._titles) :]:
            ax.set_axis_off()
        for ax, title in zip(self.axes, self._titles, strict=True):
            ax.set_title(title, loc="left", fontsize=10, color=INK, pad=8)
            ax.grid(True, color=FAINT, linewidth=0.8)
            ax.set_axisbelow(True)
            ax.spines[["top", "right", "left"]].set_visible(False)
            ax.tick_params(axis="y", length=0)
        self._figure.subplots_adjust(
            left=0.62 / width, right=1 - 0.2 / width, top=1 - 0.83 / height, bottom=1.32 / height,
            wspace=0.13, hspace=0.4,
        )  # fmt: skip
        place = (0.14 / width, 1 - 0.27 / height)
        self._figure.text(*place, self._title, fontsize=12.5, fontweight="bold", va="center")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

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
        handles: dict[str, Any] = {}
        for ax in self.axes:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        fitting = 6 if self._columns > 1 else 3
        self._figure.legend(
            list(handles.values()),
            list(handles),
            loc="upper left",
            bbox_to_anchor=(0.5 / width, 0.81 / height),
            ncols=max(len(handles), 1) if len(handles) <= fitting else min(4, fitting),
            **{"frameon": False, "fontsize": 8.5, "columnspacing": 1.4, "handlelength": 1.8},
        )
        small = textwrap.fill(note, int(16.5 * width))
        style: Any = {"fontsize": 7, "color": GREY, "va": "bottom", "linespacing": 1.35}
        self._figure.text(0.14 / width, 0.06 / height, small, **style)
        png = io.BytesIO()
        self._figure.savefig(png, format="png")
        return png.getvalue()


def draw(panels: Sequence[Panel], *, title: str, note: str) -> bytes:
    """Draw test accuracy against time per network.

    Args:
        panels: At least one.
        title: Above all of them.
        note: Small print below, two or three lines: what was measured and what the times count.

    Returns:
        A PNG file's content.
    """
    white: Any = {"markeredgecolor": "white"}
    offset: Any = {"textcoords": "offset points"}
    with Figures([panel.title for panel in panels], title) as figures:
        for ax, panel in zip(figures.axes, panels, strict=True):
            ax.set_xscale("log")
            ax.axhline(panel.start, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
            seconds = [panel.seconds, *(s for curve in panel.curves for s in curve.seconds)]
            low, high = min(seconds) / 2.2, max(seconds) * 2.6
            ax.set_xlim(low, high)
            # What is written at the star goes to its left where the right has no room for it.
            right = math.log(panel.seconds / low) < 0.5 * math.log(high / low)
            beside: Any = {"ha": "left" if right else "right"}
            across = 12 if right else -12
            for k, curve in enumerate(panel.curves):
                ax.errorbar(
                    curve.seconds, curve.accuracy, yerr=curve.interval, label=curve.label or None,
                    color=curve.colour, linestyle=(0, (4, 2)) if curve.dashed else "-", linewidth=1.6,
                    marker="o", markersize=4.2, markeredgewidth=0.6, elinewidth=1, capsize=2, zorder=3,
                    **white,
                )  # fmt: skip
                for x, y, name in zip(curve.seconds, curve.accuracy, curve.names, strict=False):
                    style = {"ha": "center", "color": curve.colour, "fontsize": 7.5}
                    ax.annotate(name, (x, y), xytext=(0, -13 if k % 2 else 7), **style, **offset)
            interval = None if panel.interval is None else [panel.interval]
            ax.errorbar(
                [panel.seconds], [panel.accuracy], yerr=interval, label="one forward pass", color=STAR,
                fmt="*", linestyle="none", markersize=17, markeredgewidth=0.9, elinewidth=1.3, capsize=3,
                zorder=5, **white,
            )  # fmt: skip
            for k, control in enumerate(panel.controls):
                ax.plot(
                    [panel.seconds], [control.accuracy], color=STAR, marker="x", linestyle="none",
                    markersize=6, label="controls" if k == 0 else None, zorder=4,
                )  # fmt: skip
            if panel.controls:
                listed = "\n".join(f"x {c.label}: {c.accuracy:.1f} %" for c in panel.controls)
                style = {"color": STAR, "fontsize": 8, "va": "top", "linespacing": 1.4}
                place = (panel.seconds, panel.accuracy)
                ax.annotate(listed, place, xytext=(across, 2), **beside, **style, **offset)
            ax.xaxis.set_major_formatter(lambda value, _: duration(value))
            ax.xaxis.set_minor_formatter(lambda value, _: "")
            reached = f"{panel.accuracy:.1f} % in {duration(panel.seconds)}"
            style = {"color": STAR, "fontsize": 10, "fontweight": "bold", "zorder": 6}
            place = (panel.seconds, panel.accuracy)
            ax.annotate(reached, place, xytext=(across, 9), **beside, **style, **offset)
            started = f"as they start, {panel.start:.1f} %"
            style = {"ha": "right", "color": GREY, "fontsize": 8.5}
            ax.annotate(started, (high, panel.start), xytext=(-2, 4), **style, **offset)
            heights = [panel.start, panel.accuracy, *(a for curve in panel.curves for a in curve.accuracy)]
            heights += [control.accuracy for control in panel.controls]
            room = 0.09 * max(max(heights) - min(heights), 5)
            ax.set_ylim(min(heights) - room, max(heights) + 1.7 * room)
        figures.label("time per network (log scale)", "test accuracy, mean over networks (%)")
        return figures.png(note)


def duration(seconds: float) -> str:
    """A time for people, such as ``2.4 ms``.

    Examples:
        >>> duration(0.00241), duration(0.1), duration(12.0)
        ('2.4 ms', '0.1 s', '12 s')
    """
    units = {"s": 1.0, "ms": 1e-3}
    unit = next((unit for unit, size in units.items() if seconds >= 0.0999 * size), "µs")
    value = seconds / units.get(unit, 1e-6)
    return f"{value:.2g} {unit}" if value < 99.5 else f"{value:.0f} {unit}"
