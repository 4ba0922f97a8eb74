"""Tables from the results file, for people and for the docs. Measures nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from amortopt.cli.picture import duration
from benchmarks.harness.numbers import difference, summary
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import any_of, bold, bullets, document, machines, plus_minus, table
from benchmarks.one_shot.cells import CELLS, OPTIMIZERS, Method

ACTIVATIONS = {"tanh": "tanh", "relu": "ReLU"}
SYMMETRIES = {"scale": "ScaleGMN", "permutation": "symmetry-broken twin"}
METHODS = [
    kind + noise for kind in ("sgd", "adam", "muon", "prox-sgd", "prox-adam") for noise in ("", "-noise")
]
"""Kinds of fine-tuning in the order of the tables; those of CE and L1 share a row."""
HEAD = (
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
        return f"{problem}, {family.upper()} with {ACTIVATIONS.get(activation, activation)}"

    def seconds(self, method: str, epochs: int, *, alone: bool = False) -> float | None:
        """Time of fine-tuning per network, all networks at once or one at a time."""
        timed = self.timing.get(method if method.endswith("-noise") else f"{method}-noise")
        return None if timed is None else epochs * timed["alone" if alone else "per_network"]

    def pass_seconds(self, symmetry: str, *, alone: bool = False) -> float | None:
        """Time of one pass per network, all at once or one at a time; mean over seeds."""
        rows = [latency[0 if alone else -1]["per_network"] for latency in self.latency.get(symmetry, [])]
        return sum(rows) / len(rows) if rows else None


@dataclass(frozen=True)
class Entry:
    """A row of a table.

    Attributes:
        name: What was done to the networks.
        ce: Results with λ = 0, one per meta-training seed; empty for none.
        l1: Results with the table's λ, likewise.
        seconds: Times per network of both; None is unknown.
        epochs: Length of fine-tuning; None for what is none.
    """

    name: str
    ce: Sequence[Record]
    l1: Sequence[Record]
    seconds: tuple[float | None, float | None] = (None, None)
    epochs: int | None = None

    def cells(self, *, interval: bool = True) -> list[str]:
        """The columns of ``HEAD``."""

        def mean(records: Sequence[Record], measure: str, digits: int, *, interval: bool = False) -> str:
            if not records or measure not in records[0]:
                return ""
            over = summary([record[measure] for record in records])
            return plus_minus(over if interval else over | {"half": None}, digits)

        best = summary([record["accuracy"] for record in self.ce])["max"] if self.ce else None
        ce_time, l1_time = ("" if s is None else duration(s) for s in self.seconds)
        return [
            mean(self.ce, "accuracy", 1, interval=interval),
            "" if best is None else f"{best:.1f}",
            ce_time,
            mean(self.l1, "accuracy", 1, interval=interval),
            mean(self.l1, "loss", 3),
            mean(self.l1, "cut", 1),
            mean(self.l1, "objective", 3, interval=interval),
            l1_time,
        ]


def by_cell(records: Records) -> list[CellResults]:
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
    order = list(dict.fromkeys([*CELLS, *sorted(cells)]))
    return sorted(cells.values(), key=lambda cell: order.index(cell.label))


def method_name(key: str) -> str:
    """A method's key for people: ``SGD + noise``, ``proximal Adam + noise``."""
    method = Method.from_key(key)
    return "proximal " * method.proximal + OPTIMIZERS[method.optimizer] + " + noise" * method.noisy


def markdown(records: Records, *, quick: bool = False) -> str:
    """Everything, for people: one table per cell, a row per method and length."""
    cells = by_cell(records)
    parts = ["# SGD against one forward pass", explanation(cells, quick=quick)]
    for cell in cells:
        parts += [f"## {cell.title}", _full_table(cell)]
        parts += [
            f"{SYMMETRIES.get(symmetry, symmetry)}: `{p['checkpoint']['name']}`, seeds "
            f"{p['checkpoint']['seeds']}, {p['checkpoint']['parameters']:,} parameters, CE accuracy "
            f"{plus_minus(summary([p['ce']['accuracy']]) | {'half': None}, 1)} %."
            for symmetry, passes in cell.passes.items()
            for p in passes
        ]
        if lines := [*verdicts(cell), *_cost(cell)]:
            parts.append(bullets(lines))
    return document(parts)


def block(records: Records, *, quick: bool = False) -> str:
    """The table of the docs: all cells, the lengths of a method in one row."""
    cells, rows = by_cell(records), []
    for cell in cells:
        rows += [[f"**{cell.title}**"] + [""] * len(HEAD), *_short_rows(cell)]
    notes = [explanation(cells, quick=quick), *(line for cell in cells for line in _cost(cell))]
    return table(["mean over the networks, test data", *HEAD], rows) + "\n\n" + bullets(notes)


def explanation(cells: Sequence[CellResults], *, quick: bool) -> str:
    """What the numbers are."""
    records = {key: record for cell in cells for key, record in cell.records.items()}
    identities = [record["identity"] for record in records.values()]
    counts = any_of(i["networks"] for i in identities if "networks" in i)
    noises = any_of(i["noise"] for i in identities if i.get("noise"))
    passes = [p["l1"]["l1"] for c in cells for some in c.passes.values() for p in some if p["l1"]]
    rows = [r["identity"]["l1"] for key, r in records.items() if "/rows/l1-" in key]
    return (
        f"{counts} networks from seeds that no checkpoint was trained on; one pass: mean over "
        "meta-training seeds; ±: 95 % interval over networks and, where there are several, seeds (variance "
        "of the seed means over their number + variance of the network means over theirs, Student's t by "
        "Welch and Satterthwaite). SGD (momentum 0.9), Adam and their proximal forms (soft thresholds) start "
        "from the same networks; rate and schedule (constant or cosine) are chosen for every row on other "
        "networks, by accuracy (CE) or objective (L1) on validation data; noise: Gaussian, "
        f"{noises}, on their training inputs, as in meta-training. L1: objective CE + λ‖θ‖₁, λ = "
        f"{any_of([*passes, *rows])}; cut: of the norm at the start. Time: all networks at once, over their "
        f"number; of fine-tuning, that of an epoch times epochs ({machines(records)})."
        + (" A quick run: fewer networks, lengths and rates." if quick else "")
    )


def verdicts(cell: CellResults) -> list[str]:
    """One pass against the best baseline of the longest length."""
    lines = []
    for symmetry, passes in cell.passes.items():
        for objective, measure, sign in (
            ("ce", "accuracy", 1), ("ce", "loss", -1), ("l1", "objective", -1), ("l1", "accuracy", 1),
        ):  # fmt: skip
            best = strongest(cell, objective, measure, sign)
            if best is None or any(p[objective] is None for p in passes):
                continue
            method, row = best
            gain = summary([difference(p[objective][measure], row[measure], sign) for p in passes])
            digits, unit = (1, " points") if measure == "accuracy" else (3, "")
            lines.append(
                f"{SYMMETRIES.get(symmetry, symmetry)}, {objective.upper()}, {measure}: gain "
                f"{plus_minus(gain, digits, sign='+')}{unit} over {method_name(method)}, {row['epochs']} "
                "epochs (positive: ahead)"
            )
    return lines


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
    return max(rows, key=lambda pair: sign * sum(pair[1][measure]), default=None)


def _full_table(cell: CellResults) -> str:
    rows = []
    for entry in entries(cell):
        chosen = [
            f"{some[0]['learning_rate']:g}, {some[0]['schedule']}" if some else "–"
            for some in (entry.ce, entry.l1)
        ] if entry.epochs else []  # fmt: skip
        row = [entry.name, *entry.cells(), "; ".join(chosen)]
        rows.append(bold(row) if entry.name.startswith("one pass, ScaleGMN") else row)
    return table(["", *HEAD, "rate, schedule (CE; L1)"], rows)


def entries(cell: CellResults) -> list[Entry]:
    """The rows of a cell's table."""
    rows = [Entry("as they start", [cell.start], [cell.start])] if cell.start else []
    known = [symmetry for symmetry in SYMMETRIES if symmetry in cell.passes]
    for symmetry in [*known, *sorted(cell.passes.keys() - set(known))]:
        passes, seconds = cell.passes[symmetry], cell.pass_seconds(symmetry)
        l1 = [p["l1"] for p in passes] if all(p["l1"] for p in passes) else []
        name = f"one pass, {SYMMETRIES.get(symmetry, symmetry)}, {len(passes)} seed{'s' * (len(passes) != 1)}"
        rows.append(Entry(name, [p["ce"] for p in passes], l1, (seconds, seconds if l1 else None)))
    for kind in METHODS:
        pair = f"ce-{kind}", f"l1-{kind}"
        for epochs in sorted({row["epochs"] for key in pair for row in cell.rows.get(key, [])}):
            ce, l1 = ([r for r in cell.rows.get(key, []) if r["epochs"] == epochs] for key in pair)
            ce_time, l1_time = (
                cell.seconds(key, epochs) if some else None for key, some in zip(pair, (ce, l1), strict=True)
            )
            name = f"{method_name(pair[0])}, {epochs} epochs"
            rows.append(Entry(name, ce, l1, (ce_time, l1_time), epochs))
    return rows


def _short_rows(cell: CellResults) -> list[list[str]]:
    """Rows of the docs' table: a method's lengths stand behind each other, as in the paper's table."""
    rows: list[list[str]] = []
    grouped: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries(cell):
        if entry.epochs:
            grouped[entry.name.rpartition(", ")[0]].append(entry)
        else:
            row = [entry.name, *entry.cells()]
            rows.append(bold(row) if entry.name.startswith("one pass, ScaleGMN") else row)
    for method, members in grouped.items():
        columns = zip(*(entry.cells(interval=False) for entry in members), strict=True)
        cells = [" / ".join(text or "–" for text in column) if any(column) else "" for column in columns]
        rows.append([f"{method}, {' / '.join(str(entry.epochs) for entry in members)} epochs", *cells])
    return rows


def _cost(cell: CellResults) -> list[str]:
    """One pass against the longest SGD: the ratio of the times."""
    lengths = [row["epochs"] for key, rows in cell.rows.items() if key.startswith("ce-sgd") for row in rows]
    epochs = max(lengths, default=0)
    times: list[tuple[float, float]] = []
    for alone in (False, True):
        sgd, one = cell.seconds("ce-sgd", epochs, alone=alone), cell.pass_seconds("scale", alone=alone)
        if not sgd or not one:
            return []
        times.append((sgd, one))
    ratios = [f"{float(f'{sgd / one:.2g}'):g}x" for sgd, one in times]
    spent: list[Any] = [f"({duration(one)} and {duration(sgd)})" for sgd, one in times]
    return [
        f"{cell.title}: one pass is {ratios[0]} cheaper per network than {epochs} epochs of SGD, both on all "
        f"networks at once {spent[0]}, and {ratios[1]} one network at a time {spent[1]}."
    ]
