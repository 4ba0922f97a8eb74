"""The short table of README, from the results file. Measures nothing."""

from __future__ import annotations

import math

from amortopt.cli.picture import duration
from benchmarks.harness.numbers import mean, summary
from benchmarks.harness.store import Records
from benchmarks.harness.tables import plus_minus, table
from benchmarks.one_shot.cells import UNSEEN
from benchmarks.one_shot.tables import CellResults, Row, by_cell, rows_of

SHORT = (50, 1000)
"""Numbers of examples that have a row, or all where there is a rival if there is none at these."""
LENGTH = 150
"""Epochs of the training that is shown."""


def block(records: Records) -> str:
    """For every checkpoint without a twin's name: a pass against the strongest training."""
    lines = []
    for cell in by_cell(records):
        rows = rows_of(cell, records)
        passes = [row for row in rows if row.kind == "pass" and "twin" not in row.name]
        rivals = [row for row in rows if row.kind in ("training", "prototype")]
        compared = [n for n in cell.sizes if any(row.mean(n) > -math.inf for row in rivals)]
        for size in [n for n in compared if n in SHORT] or compared or cell.sizes[:1]:
            best = max(passes, key=lambda row: row.mean(size), default=None)
            if best is None or best.mean(size) == -math.inf:
                continue
            training = [row for row in rows if row.kind == "training" and row.epochs == LENGTH]
            prototype = [row for row in rows if row.kind == "prototype"]
            start = next((row for row in rows if row.kind == "start"), None)
            shown = [_shown(row, size) for row in (start, best)]
            shown += [
                _shown(max(some, key=lambda row: row.mean(size), default=None), size)
                for some in (training, prototype)
            ]
            highest = max(range(1, 4), key=lambda k: _value(shown[k]))
            shown[highest] = f"**{shown[highest]}**"
            unit = "dB" if not cell.accuracy else "%"
            lines.append(
                [cell.title, f"{size:,}", *(f"{text} {unit}" if text else "" for text in shown), _time(cell)]
            )
    head = [
        "problems, networks", "examples of each", "as they start", "one pass", f"{LENGTH} epochs, best",
        "learned prototype, trained on, best", "time of a pass on the most examples",
    ]  # fmt: skip
    return table(head, lines)


def _shown(row: Row | None, size: int) -> str:
    if row is None or row.mean(size) == -math.inf:
        return ""
    return plus_minus(summary(row.numbers(size, UNSEEN)) | {"half": None}, 1)


def _value(text: str) -> float:
    return float(text) if text else -math.inf


def _time(cell: CellResults) -> str:
    """Of a pass per network, all at once, and how much training of ``LENGTH`` epochs costs."""
    timed = list(cell.of("timing").values())
    if not timed:
        return ""
    one = mean([t["batched"]["pass"] for t in timed])
    epoch = mean([t["batched"]["sgd"] for t in timed])
    return f"{duration(one)}, 1/{float(f'{LENGTH * epoch / one:.2g}'):g} of the training"
