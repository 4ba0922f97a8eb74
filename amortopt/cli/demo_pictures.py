"""A strip of photographs, each shown by a network: by one forward pass, and by Adam."""

from __future__ import annotations

import io
import time
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from amortopt.cli.picture import GREY, INK, duration
from amortopt.functional.networks import apply_many
from amortopt.optim import ScaleGMNOptimizer
from amortopt.system.extras import needed_for
from amortopt.tasks import Examples, ProblemFamily, evaluate_many, init_many
from amortopt.training import Stepper, train_many

CHECKPOINT = "images-siren"
PHOTOGRAPHS = 12
ADAM_RATES = {4: 0.008, 16: 0.004, 64: 0.012}
"""Steps -> learning rate of Adam with cosine schedule, chosen beforehand on crops of other photographs."""


def is_for_pictures(opt: ScaleGMNOptimizer) -> bool:
    """Whether a checkpoint was trained on the family ``images``."""
    return isinstance(opt.problem, ProblemFamily) and opt.problem.name == "images" and opt.family is not None


def show_pictures(opt: ScaleGMNOptimizer, count: int, seed: int) -> tuple[Table, bytes]:
    """Fit fresh networks to crops of photographs that no checkpoint saw.

    Args:
        opt: A checkpoint for pictures, such as ``images-siren``.
        count: Number of crops and networks B.
        seed: Which crops, and seed of the networks.

    Returns:
        A table with a row per method, and a PNG file's content: crops in columns, methods in rows.

    Raises:
        ValueError: The checkpoint is not for pictures.
    """
    problems, family = opt.problem, opt.family
    if not is_for_pictures(opt) or not isinstance(problems, ProblemFamily) or family is None:
        raise ValueError(f"checkpoint: {opt.name} is not for pictures, expected one such as {CHECKPOINT}")
    module, objective, side = family.build(), problems.objective, problems.to_config()["side"]
    pixels, _ = problems.draw("test", seed % 1000, count, side**2, side**2)
    pixels = in_order(pixels, side)
    start = init_many(family.build, range(seed, seed + count))

    # 1. One pass.
    batch = list(zip(pixels.x, pixels.y, strict=True))
    opt.one_shot_params(start, batch=batch)  # the first call loads what later ones reuse
    begun = time.perf_counter()
    better = opt.one_shot_params(start, batch=batch)
    rows = [("fresh networks", start, None), ("one forward pass", better, time.perf_counter() - begun)]

    # 2. Adam on all pixels, all networks at once.
    for steps, rate in ADAM_RATES.items():
        trained = train_many(
            module,
            start,
            lambda _, at: pixels.of(at),
            objective,
            Stepper("adam", rate, "cosine"),
            steps=steps,
        )
        rows.append((f"Adam, {steps} steps", trained.params, trained.seconds))

    table = Table("method", title=f"{count} photographs, {side}x{side}", title_justify="left")
    for heading in ("PSNR, mean", "min", "time per network"):
        table.add_column(heading, justify="right")
    strips: list[tuple[str, Tensor]] = [("photograph", pixels.y)]
    for name, params, seconds in rows:
        _, psnr = evaluate_many(module, params, pixels, objective)
        mean, low = (objective.score_text(float(value)) for value in (psnr.mean(), psnr.min()))
        style = "bold" if name == "one forward pass" else None
        table.add_row(name, mean, low, "" if seconds is None else duration(seconds / count), style=style)
        with torch.no_grad():
            strips.append((f"{name}\n{mean}", apply_many(module, params, pixels.x, shared=False)))
    return table, strip([(name, grey.unflatten(1, (side, side))[..., 0]) for name, grey in strips])


def in_order(pixels: Examples, side: int) -> Examples:
    """All pixels of crops, row by row: x [B, side², 2], y [B, side², 1]."""
    row, column = ((pixels.x.movedim(-1, 0) + 1) * (side - 1) / 2).round().long()  # [B, side²] each
    return pixels.take((row * side + column).argsort(-1))


def strip(rows: list[tuple[str, Tensor]]) -> bytes:
    """A picture of crops [B, side, side] in [0, 1]: a row for each name, as a PNG file."""
    with needed_for("drawing a picture", extra="demo"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    count = len(rows[0][1])
    figure = Figure(figsize=(1.5 + count, len(rows) + 0.1), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, grey) in zip(axes, rows, strict=True):
        for ax, crop in zip(line, grey, strict=True):
            ax.imshow(crop.clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_axis_off()
        style: Any = {"transform": line[0].transAxes, "ha": "right", "va": "center", "fontsize": 8}
        line[0].text(-0.08, 0.5, name, color=INK if "pass" in name else GREY, **style)
    left = 1.5 / (1.5 + count)
    figure.subplots_adjust(left=left, right=0.995, top=0.99, bottom=0.01, wspace=0.04, hspace=0.04)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
