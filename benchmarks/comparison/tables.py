"""Tables from the results file, for people and for the README. Measures nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from _readme import rewrite_readme as rewrite_readme

from amortopt.cli.picture import duration
from comparison.cells import CELLS
from comparison.store import Record, summary

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
_ACTIVATIONS = {"tanh": "tanh", "relu": "ReLU"}
_SYMMETRIES = {"scale": "ScaleGMN", "permutation": "symmetry-broken twin"}
_HEAD = (
    "CE: accuracy %", "max %", "time / net",
    "L1: accuracy %", "test loss", "L1-norm cut %", "objective", "time / net",
)  # fmt: skip


@dataclass
class CellResults:
    """Everything that was measured on a cell; each part may be missing.

    Attributes:
        label: The cell's label.
        start: The networks as they start.
        rows: Key of a method -> its rows.
        curves: Key of a method -> its curve.
        timing: Key of a method, with noise -> seconds of an epoch.
        passes: Symmetry -> one record per meta-training seed.
        latency: Symmetry -> rows of each seed.
        records: All of the cell's records.
    """

    label: str
    start: Record = field(default_factory=dict)
    rows: dict[str, list[Record]] = field(default_factory=dict)
    curves: dict[str, Record] = field(default_factory=dict)
    timing: dict[str, Record] = field(default_factory=dict)
    passes: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    latency: dict[str, list[list[Record]]] = field(default_factory=lambda: defaultdict(list))
    records: dict[str, Record] = field(default_factory=dict)

    @property
    def title(self) -> str:
        problem, family, activation = self.label.rsplit("_", 2)
        return f"{problem}, {family.upper()} with {_ACTIVATIONS.get(activation, activation)}"

    @property
    def noise(self) -> float | None:
        """The augmentation, as the baselines got it."""
        got = [r["identity"]["noise"] for r in self.records.values() if r["identity"].get("noise")]
        return got[0] if got else None

    def seconds(self, method: str, epochs: int) -> float | None:
        """Time per network, all at once."""
        timed = self.timing.get(method if method.endswith("-noise") else f"{method}-noise")
        return None if timed is None else epochs * timed["per_network"]

    def pass_seconds(self, symmetry: str, *, alone: bool = False) -> float | None:
        """Time per network of one pass, all at once or one at a time; mean over seeds."""
        rows = [latency[0 if alone else -1]["per_network"] for latency in self.latency.get(symmetry, [])]
        return sum(rows) / len(rows) if rows else None


def by_cell(records: Mapping[str, Record]) -> list[CellResults]:
    """The records of a results file, by cell, in the order of ``CELLS``."""
    cells: dict[str, CellResults] = {}
    for key in sorted(records):
        label, part, *rest = key.split("/")
        cell, result = cells.setdefault(label, CellResults(label)), records[key]["result"]
        cell.records[key] = records[key]
        if part == "start":
            cell.start = result
        elif part == "rows":
            cell.rows[rest[0]] = result["rows"]
        elif part == "curve":
            cell.curves[rest[0]] = result
        elif part == "timing":
            cell.timing = result
        elif part == "one_pass":
            cell.passes[rest[0]].append(result)
        elif part == "latency":
            cell.latency[rest[0]].append(result)
    order = list(CELLS)
    rank = {label: order.index(label) if label in order else len(order) for label in cells}
    return sorted(cells.values(), key=lambda cell: (rank[cell.label], cell.label))


def method_name(key: str) -> str:
    """A method's key for people: ``SGD + noise``, ``proximal Adam + noise``."""
    _, *rest = key.split("-")
    name = {"sgd": "SGD", "adam": "Adam"}[rest[1] if rest[0] == "prox" else rest[0]]
    name = f"proximal {name}" if rest[0] == "prox" else name
    return name + (" + noise" if rest[-1] == "noise" else "")


def markdown(records: Mapping[str, Record], *, quick: bool) -> str:
    """Everything, for people: one table per cell, a row per method and length."""
    cells = by_cell(records)
    parts = ["# SGD against one forward pass", explanation(cells, quick=quick)]
    for cell in cells:
        parts += [f"## {cell.title}", _full_table(cell)]
        if verdict := verdicts(cell):
            parts.append("\n".join(f"- {line}" for line in verdict))
    return "\n\n".join(parts) + "\n"


def readme_block(records: Mapping[str, Record], *, quick: bool) -> str:
    """What stands between the README's marks, marks included: lengths of a method share a row."""
    cells = by_cell(records)
    lines = [_line(["mean over the networks, test data", *_HEAD]), "|---|" + "---:|" * len(_HEAD)]
    for cell in cells:
        lines.append(_line([f"**{cell.title}**"] + [""] * len(_HEAD)))
        lines += [_line(row, bold=bold) for row, bold in _short_rows(cell)]
    notes = [explanation(cells, quick=quick), *(line for cell in cells for line in _cost(cell))]
    return "\n".join([BEGIN, *lines, "", *(f"- {note}" for note in notes), END])


def explanation(cells: Sequence[CellResults], *, quick: bool) -> str:
    """What the numbers are."""
    records = [record for cell in cells for record in cell.records.values()]
    counts = sorted({r["identity"]["networks"] for r in records if "networks" in r["identity"]})
    noises = sorted({cell.noise for cell in cells if cell.noise})
    strengths = sorted({s for cell in cells for s in _table_strengths(cell)})
    machines = sorted({r["made"]["hardware"] for r in records})
    return (
        f"{_all(counts)} networks from seeds that no checkpoint was trained on; one pass: mean over "
        "meta-training seeds; ±: 95 % interval over networks and, where there are several, seeds (variance "
        "of the seed means over their number + variance of the network means over theirs, Student's t by "
        "Welch and Satterthwaite). SGD (momentum 0.9), Adam and their proximal forms (soft thresholds) start "
        "from the same networks; rate and schedule (constant or cosine) are chosen for every row on other "
        "networks, by accuracy (CE) or objective (L1) on validation data; noise: Gaussian, "
        f"{_all(noises)}, on their training inputs, as in meta-training. L1: objective CE + λ‖θ‖₁, λ = "
        f"{_all(strengths)}; cut: of the norm at the start. Time: all networks at once, over their number; "
        f"of fine-tuning, that of an epoch times epochs ({'; '.join(machines)})."
        + (" A quick run: fewer networks, lengths and rates." if quick else "")
    )


def verdicts(cell: CellResults) -> list[str]:
    """One pass against the best baseline of the longest length and the twin, and what it costs."""
    lines = []
    for symmetry, passes in cell.passes.items():
        name = _SYMMETRIES.get(symmetry, symmetry)
        for objective, measure, sign, unit in (
            ("ce", "accuracy", 1, " points"), ("ce", "loss", -1, ""),
            ("l1", "objective", -1, ""), ("l1", "accuracy", 1, " points"),
        ):  # fmt: skip
            if any(p[objective] is None for p in passes):
                continue
            found = strongest(cell, objective, measure, sign)
            if found is None:
                continue
            method, row = found
            gain = difference([p[objective][measure] for p in passes], row[measure], sign)
            gained = f"{_signed(gain['mean'])}{_half(gain, 1 if unit else 3)}{unit}"
            lines.append(
                f"{name}, {objective.upper()}, {measure}: gain {gained} over {method_name(method)}, "
                f"{row['epochs']} epochs (positive: ahead)"
            )
    return lines + _cost(cell)


def strongest(cell: CellResults, objective: str, measure: str, sign: int) -> tuple[str, Record] | None:
    """The baseline that is best in a measure at the longest length: key and row."""
    rows = [
        (key, row)
        for key, some in cell.rows.items()
        if key.startswith(objective)
        for row in some
        if measure in row and None not in row[measure]
    ]
    longest = max((row["epochs"] for _, row in rows), default=0)
    rows = [(key, row) for key, row in rows if row["epochs"] == longest]
    return max(rows, key=lambda found: sign * sum(found[1][measure]), default=None)


def difference(
    per_seed: Sequence[Sequence[float | None]], other: Sequence[float | None], sign: int
) -> Record:
    """Summary of one pass minus a baseline on the same networks, times ``sign``."""
    return summary(
        [
            [None if a is None or b is None else sign * (a - b) for a, b in zip(row, other, strict=True)]
            for row in per_seed
        ]
    )


def _full_table(cell: CellResults) -> str:
    head = ["", *_HEAD, "rate, schedule (CE; L1)"]
    lines = [_line(head), "|---|" + "---:|" * (len(head) - 1)]
    for name, ce, l1, times, bold in _entries(cell):
        chosen = "; ".join(
            f"{row['learning_rate']:g}, {row['schedule']}" if row and "schedule" in row else "–"
            for row in (ce and ce[0], l1 and l1[0])
        )
        lines.append(_line([name, *_numbers(ce, l1, times), chosen if chosen != "–; –" else ""], bold=bold))
    for symmetry, passes in cell.passes.items():
        for p in passes:
            mean = summary([p["ce"]["accuracy"]])["mean"]
            lines.append(
                f"\n{_SYMMETRIES.get(symmetry, symmetry)}: `{p['checkpoint']['name']}`, seeds "
                f"{p['checkpoint']['seeds']}, {p['checkpoint']['parameters']:,} parameters, CE accuracy "
                f"{_number(mean, 1)} %."
            )
    return "\n".join(lines)


def _entries(cell: CellResults) -> list[tuple[str, Any, Any, tuple[float | None, float | None], bool]]:
    """(name, records of CE, records of L1, times, bold): a record per meta-training seed."""
    entries: list[Any] = []
    if cell.start:
        entries.append(("as they start", [cell.start], [cell.start], (None, None), False))
    for symmetry in sorted(cell.passes, key=lambda s: list(_SYMMETRIES).index(s) if s in _SYMMETRIES else 9):
        passes, seconds = cell.passes[symmetry], cell.pass_seconds(symmetry)
        l1 = [p["l1"] for p in passes] if all(p["l1"] for p in passes) else None
        count = f"{len(passes)} seed{'s' * (len(passes) != 1)}"
        name = f"one pass, {_SYMMETRIES.get(symmetry, symmetry)}, {count}"
        times = (seconds, seconds if l1 else None)
        entries.append((name, [p["ce"] for p in passes], l1, times, symmetry == "scale"))
    for kind in _kinds(cell):
        lengths = sorted({row["epochs"] for key in kind if key for row in cell.rows[key]})
        for epochs in lengths:
            ce, l1 = (
                [row for row in cell.rows[key] if row["epochs"] == epochs] or None if key else None
                for key in kind
            )
            times = tuple(
                cell.seconds(key, epochs) if key and row else None
                for key, row in zip(kind, (ce, l1), strict=True)
            )
            name = method_name(next(key for key in kind if key))
            entries.append((f"{name}, {epochs} epochs", ce, l1, times, False))
    return entries


def _kinds(cell: CellResults) -> list[tuple[str | None, str | None]]:
    """Pairs of a CE and an L1 method that share their row."""
    bare = list(dict.fromkeys(key.split("-", 1)[1] for key in cell.rows))
    order = [
        "sgd",
        "sgd-noise",
        "adam",
        "adam-noise",
        "prox-sgd",
        "prox-sgd-noise",
        "prox-adam",
        "prox-adam-noise",
    ]
    kinds = []
    for name in sorted(bare, key=order.index):
        pair = [f"{objective}-{name}" for objective in ("ce", "l1")]
        kinds.append(tuple(key if key in cell.rows else None for key in pair))
    return kinds


def _numbers(ce: Any, l1: Any, times: tuple[float | None, float | None]) -> list[str]:
    def mean(records: Any, measure: str, digits: int, *, interval: bool = True) -> str:
        if not records or measure not in records[0]:
            return ""
        found = summary([record[measure] for record in records])
        return _number(found["mean"], digits) + (_half(found, digits) if interval else "")

    top = summary([record["accuracy"] for record in ce])["max"] if ce else None
    return [
        mean(ce, "accuracy", 1),
        "" if top is None else f"{top:.1f}",
        _time(times[0]),
        mean(l1, "accuracy", 1),
        mean(l1, "loss", 3, interval=False),
        mean(l1, "cut", 1, interval=False),
        mean(l1, "objective", 3),
        _time(times[1]),
    ]


def _short_rows(cell: CellResults) -> list[tuple[list[str], bool]]:
    """Rows of the README: a method's lengths stand behind each other, as in the paper's table."""
    rows: list[tuple[list[str], bool]] = []
    grouped: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for name, ce, l1, times, bold in _entries(cell):
        method, comma, length = name.rpartition(", ")
        if comma and length.endswith(" epochs"):
            short = [_number_only(text) for text in _numbers(ce, l1, times)]
            grouped[method].append((length.removesuffix(" epochs"), short))
        else:
            rows.append(([name, *_numbers(ce, l1, times)], bold))
    for method, members in grouped.items():
        columns = zip(*(numbers for _, numbers in members), strict=True)
        cells = ["" if not any(column) else " / ".join(text or "–" for text in column) for column in columns]
        rows.append(([f"{method}, {' / '.join(length for length, _ in members)} epochs", *cells], False))
    return rows


def _cost(cell: CellResults) -> list[str]:
    """One pass against the longest SGD: the ratio of the times."""
    baseline = max(
        (row["epochs"] for key, rows in cell.rows.items() if key.startswith("ce-sgd") for row in rows),
        default=0,
    )
    sgd, one = cell.seconds("ce-sgd", baseline), cell.pass_seconds("scale")
    alone = cell.timing.get("ce-sgd-noise", {}).get("alone")
    if not sgd or not one or not alone:
        return []
    one_alone = cell.pass_seconds("scale", alone=True)
    assert one_alone is not None
    return [
        f"{cell.title}: one pass is {_times(sgd / one)} cheaper per network than {baseline} epochs of SGD, "
        f"both on all networks at once ({duration(one)} and {duration(sgd)}), and "
        f"{_times(alone * baseline / one_alone)} one network at a time ({duration(one_alone)} and "
        f"{duration(alone * baseline)})."
    ]


def _table_strengths(cell: CellResults) -> list[float]:
    rows = [
        r["identity"]["l1"]
        for key, r in cell.records.items()
        if key.split("/")[1] == "rows" and r["identity"]["l1"]
    ]
    return rows + [p["l1"]["l1"] for passes in cell.passes.values() for p in passes if p["l1"]]


def _times(ratio: float) -> str:
    return f"{float(f'{ratio:.2g}'):g}x"


def _all(numbers: Sequence[float]) -> str:
    return " or ".join(f"{number:g}" for number in numbers) or "none"


def _number(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None) -> str:
    return "not finite" if value is None else f"{value:+.3g}"


def _half(found: Record, digits: int) -> str:
    half = found["half"]
    return "" if half is None or math.isclose(half, 0.0) else f" ± {half:.{digits}f}"


def _number_only(text: str) -> str:
    return text.partition(" ±")[0]


def _time(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


def _line(cells: Sequence[str], *, bold: bool = False) -> str:
    return "| " + " | ".join(f"**{cell}**" if bold and cell else cell for cell in cells) + " |"
