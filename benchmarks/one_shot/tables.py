"""Tables from the results file, for people and for the docs. Measures nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from amortopt.cli.picture import duration
from benchmarks.harness.numbers import difference, summary
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import bold, bullets, document, made_by, plus_minus, table
from benchmarks.one_shot.baselines import mean_score
from benchmarks.one_shot.cells import UNSEEN

OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "muon": "Muon"}
NETWORKS = {"mlp": "MLP", "cnn": "CNN", "siren": "SIREN"}
ACTIVATIONS = {"relu": "ReLU", "sin": ""}
READINGS = {"batch": "reads the examples", "function": "reads the function only", "both": "reads both"}
TITLES = {"mnist1d": "MNIST-1D", "digits": "digits", "mnist": "MNIST", "mnist_5k": "MNIST-5k"}


_SECTIONS = {
    "Starts of every quality": ". Networks that were trained on the most examples; a pass with all rounds "
    "of the checkpoint reads some of these, or what the network answers:",
    "Outside of the family": ". A pass with all rounds, 1,000 examples of each problem; training on the same "
    "examples has the settings that are best on problems of the family:",
}
"""Title of a section -> what its numbers are."""


@dataclass(frozen=True)
class Row:
    """A row of a cell's table.

    Attributes:
        name: What was done to the networks.
        seeds: Size N -> one mapping from sets of problems to numbers, for each meta-training seed.
        kind: ``"start"``, ``"pass"``, ``"continued"``, ``"memorised"``, ``"training"``, ``"prototype"`` or
            ``"control"``.
        epochs: Length of training; None for what is none.
    """

    name: str
    seeds: dict[int, list[dict[str, Record]]]
    kind: str
    epochs: int | None = None

    def numbers(self, size: int, place: str, measure: str = "score") -> list[list[float | None]]:
        """Values per seed in a set of problems; empty where it was not measured."""
        return [sets[place][measure] for sets in self.seeds.get(size, []) if measure in sets.get(place, {})]

    def text(self, size: int, place: str, measure: str, digits: int) -> str:
        """Mean and interval."""
        numbers = self.numbers(size, place, measure)
        return plus_minus(summary(numbers), digits) if numbers else ""

    def mean(self, size: int, place: str = UNSEEN) -> float:
        """Mean score over seeds and problems; minus infinity if it was not measured or is not finite."""
        scores = [mean_score({"sets": sets}, place) for sets in self.seeds.get(size, [])]
        return sum(scores) / len(scores) if scores else -math.inf


@dataclass
class CellResults:
    """Everything that was measured on a cell.

    Attributes:
        label: Its label, such as ``curves_mlp_tanh``.
        records: Rest of the key -> result.
        identity: Of one of them.
    """

    label: str
    records: dict[str, Any] = field(default_factory=dict)
    identity: Record = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Such as ``curves, MLP with tanh``."""
        problems, network, activation = self.label.rsplit("_", 2)
        name = ACTIVATIONS.get(activation, activation)
        return f"{problems}, {NETWORKS.get(network, network)}" + (f" with {name}" if name else "")

    @property
    def accuracy(self) -> bool:
        """Whether scores are accuracies, else they are PSNR."""
        return self.identity["problems"]["name"] != "images"

    @property
    def measure(self) -> str:
        return "test accuracy %" if self.accuracy else "PSNR dB"

    def of(self, *start: str) -> dict[tuple[str, ...], Any]:
        """Results whose key begins so: rest of the key -> result."""
        found = {}
        for key, result in self.records.items():
            parts = tuple(key.split("/"))
            if parts[: len(start)] == start:
                found[parts[len(start) :]] = result
        return found

    @property
    def sizes(self) -> list[int]:
        """Numbers N of examples."""
        return sorted({int(rest[-1]) for part in ("start", "pass") for rest in self.of(part)})

    @property
    def sets(self) -> list[str]:
        """Sets of problems: the unseen ones first."""
        names: dict[str, None] = {UNSEEN: None}
        for result in self.of("start").values():
            names |= dict.fromkeys(result["sets"])
        for result in self.of("pass").values():
            names |= dict.fromkeys(result["rows"]["prototype"])
        return list(names)

    def checkpoints(self) -> dict[str, Record]:
        """Name of a checkpoint -> what is known of it."""
        return {name: result["checkpoint"] for (name, _), result in self.of("pass").items()}

    def groups(self) -> dict[tuple[str, int, str], list[str]]:
        """Twin or not, rounds, and what else is read -> checkpoints that differ in their seed alone."""
        groups: dict[tuple[str, int, str], list[str]] = {}
        for name, about in self.checkpoints().items():
            twin = "symmetry-broken twin, " if about["respects"] != "scale" else ""
            texts = {"l1": ", reads λ", "function": ", reads functions too"}
            more = "".join(text for key, text in texts.items() if key in about["conditions"])
            groups.setdefault((twin, about["rounds"], more), []).append(name)
        return groups


def by_cell(records: Records) -> list[CellResults]:
    """The records of a results file, by cell; those of memorised checkpoints are left out."""
    cells: dict[str, CellResults] = {}
    for key in sorted(records):
        label, _, rest = key.partition("/")
        if label == "memorised":
            continue
        cell = cells.setdefault(label, CellResults(label))
        cell.records[rest] = records[key]["result"]
        cell.identity = cell.identity or records[key]["identity"]
    order = {"curves": 0, "glyphs": 1, "images": 2}
    shown = [cell for cell in cells.values() if cell.sizes]
    return sorted(shown, key=lambda c: (order.get(c.label.split("_")[0], 3), "cnn" in c.label, c.label))


def rows_of(cell: CellResults, records: Records) -> list[Row]:
    """All rows of a cell's table."""
    rows = [Row("as they start", {int(n): [r["sets"]] for (n,), r in cell.of("start").items()}, "start")]
    groups = cell.groups()
    for (twin, every, more), names in groups.items():
        seeds = f", {len(names)} seeds" if len(names) > 1 else ""
        found = _found(cell, names)
        for key in dict.fromkeys(k for some in found.values() for r in some for k in r["rows"] if "/" in k):
            reading, rounds = key.split("/")
            of = f" of {every}" * (every != 1) + (more if len(groups) > 1 else "")
            name = f"one pass, {twin}R = {rounds}{of}, {READINGS[reading]}{seeds}"
            rows.append(Row(name, _sizes(found, key), "pass"))
    suffixes = {
        group: f" ({group[0]}R = {group[1]}{group[2]})" if len(groups) > 1 else "" for group in groups
    }
    for group, names in groups.items():
        rows += _trained_rows(cell, names, "continued", "one pass, then", suffixes[group])
    rows += _memorised_rows(cell, records)
    for optimizer, title in OPTIMIZERS.items():
        results = {int(n): result["rows"] for (n,), result in cell.of("training", optimizer).items()}
        for epochs in sorted({row["epochs"] for some in results.values() for row in some}):
            lasting = {n: [r["sets"] for r in some if r["epochs"] == epochs] for n, some in results.items()}
            rows.append(Row(f"{title}, {epochs} {_unit(cell)}", lasting, "training", epochs))
    natural = {int(n): result["rows"] for (n,), result in cell.of("natural").items()}
    for steps in sorted({row["steps"] for some in natural.values() for row in some}):
        lasting = {n: [r["sets"] for r in some if r["steps"] == steps] for n, some in natural.items()}
        rows.append(Row(f"natural gradient, {steps} step{'s' * (steps > 1)}", lasting, "training", steps))
    for group, names in groups.items():
        suffix = suffixes[group]
        rows += _trained_rows(cell, names, "prototype", "learned prototype,", suffix)
        found = _found(cell, names)
        for key, title in (
            ("prototype", "learned prototype alone, a constant output"),
            ("swapped batch", "one pass, reads another problem's examples"),
            ("swapped function", "one pass, reads another network's function"),
        ):
            if any(key in r["rows"] for some in found.values() for r in some):
                rows.append(Row(title + suffix, _sizes(found, key), "control"))
    averages = {int(n): [result["sets"]] for (n,), result in cell.of("average").items()}
    rows.append(Row("average of the aligned networks of a set, a constant output", averages, "control"))
    return [row for row in rows if any(row.seeds.values())]


def _trained_rows(cell: CellResults, names: Sequence[str], kind: str, title: str, suffix: str) -> list[Row]:
    """Training from what some checkpoints give, a row for each optimizer and length."""
    rows = []
    for optimizer, name_of_optimizer in OPTIMIZERS.items():
        results: dict[int, list[Any]] = {}
        for name in names:
            for (n,), result in cell.of(kind, name, optimizer).items():
                results.setdefault(int(n), []).append(result["rows"])
        for epochs in sorted({row["epochs"] for some in results.values() for one in some for row in one}):
            lasting = {
                n: [row["sets"] for one in some for row in one if row["epochs"] == epochs]
                for n, some in results.items()
            }
            row = f"{title} {name_of_optimizer}, {epochs} {_unit(cell)}{suffix}"
            rows.append(Row(row, lasting, kind, epochs))
    return rows


def _unit(cell: CellResults) -> str:
    return "epochs" if cell.accuracy else "steps"


def _found(cell: CellResults, names: Sequence[str]) -> dict[int, list[Any]]:
    """Size N -> what is there of some checkpoints' passes."""
    results = {size: [cell.records.get(f"pass/{name}/{size}") for name in names] for size in cell.sizes}
    return {size: [result for result in some if result] for size, some in results.items()}


def _sizes(found: dict[int, list[Any]], key: str) -> dict[int, list[dict[str, Record]]]:
    return {size: [r["rows"][key] for r in results if key in r["rows"]] for size, results in found.items()}


def _memorised_rows(cell: CellResults, records: Records) -> list[Row]:
    """Checkpoints that know one real data set, on that data set, where the cell's networks are theirs."""
    rows = []
    for key, record in records.items():
        result = record["result"]
        if not key.startswith("memorised/") or result["family"] != cell.identity["family"]:
            continue
        place = result["problem"]["name"]
        if place in cell.sets:
            sets = {place: {"score": result["score"]}}
            name = f"`{result['name']}`, meta-trained on this very data set"
            rows.append(Row(name, {size: [sets] for size in cell.sizes}, "memorised"))
    return rows


def cell_table(cell: CellResults, rows: Sequence[Row], measure: str = "score") -> str:
    """A row per method; for every number of examples a column for each set of problems."""
    digits = 1 if measure == "score" else 3
    head = [cell.measure if measure == "score" else "test loss"]
    columns = []
    for size in cell.sizes:
        for place in cell.sets:
            if any(row.numbers(size, place, measure) for row in rows if row.kind != "memorised"):
                unit = "examples" if cell.accuracy else "pixels"
                first = f"{size:,} {unit}: " if place == UNSEEN else ""
                head.append(first + TITLES.get(place, place))
                columns.append((size, place))
    lines = []
    for row in rows:
        cells = [row.text(size, place, measure, digits) for size, place in columns]
        if any(cells):
            line = [row.name, *cells]
            lines.append(bold(line) if row.kind == "pass" and "twin" not in row.name else line)
    return table(head, lines)


def verdicts(cell: CellResults, rows: Sequence[Row]) -> list[str]:
    """The best pass against the strongest training from the start and from the prototype, for every N."""
    lines = []
    for size in cell.sizes:
        passes = [
            row
            for row in rows
            if row.kind == "pass" and "twin" not in row.name and row.mean(size) > -math.inf
        ]
        if not passes:
            continue
        best = max(passes, key=lambda row: row.mean(size))
        against = []
        for kinds, most in ((("training",), 150), (("training",), math.inf), (("prototype",), math.inf)):
            rivals = [
                row
                for row in rows
                if row.kind in kinds and (row.epochs or 0) <= most and row.mean(size) > -math.inf
            ]
            if not rivals:
                continue
            rival = max(rivals, key=lambda row: row.mean(size))
            if rival.name not in [name for name, _ in against]:
                against.append((rival.name, paired_gain(best, rival, size)))
        texts = [f"{gain} over {name}" for name, gain in against]
        if texts:
            lines.append(f"N = {size:,}, {best.name}: {'; '.join(texts)} (positive: ahead).")
    return lines


def paired_gain(a: Row, b: Row, size: int) -> str:
    """Paired difference in the unseen problems that both were measured on."""
    (rival, *_), ours = b.numbers(size, UNSEEN), a.numbers(size, UNSEEN)
    count = min(len(rival), *(len(one) for one in ours))
    gain = summary([difference(one[:count], rival[:count]) for one in ours])
    return plus_minus(gain, 1, sign="+")


def cost_lines(cell: CellResults) -> list[str]:
    """A pass against SGD, in the same run."""
    lines = []
    for (name,), timed in cell.of("timing").items():
        texts = []
        for key, which in (("batched", f"{timed['networks']} networks at once"), ("alone", "one alone")):
            one, epoch, epochs = timed[key]["pass"], timed[key]["sgd"], timed["epochs"]
            training = f"{epochs} {_unit(cell)} of SGD ({duration(epochs * epoch)})"
            texts.append(
                f"{which} {duration(one)} per network, {_digits(epochs * epoch / one)} times cheaper than "
                f"{training}, as much as {_digits(one / epoch)} of them"
            )
        lines.append(f"`{name}`, a pass that reads {timed['size']:,} examples: {'; '.join(texts)}.")
    return lines


def _digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"


def quality_table(cell: CellResults) -> str:
    """Starting networks of every quality, and what a pass makes of them."""
    every = [row for result in cell.of("quality").values() for row in result]
    names, lines = dict.fromkeys(key for row in every for key in row["passes"]), []
    for (name,), result in cell.of("quality").items():
        for row in result:
            trained = {0: "none", 8: "1 to 8"}.get(row["epochs"], str(row["epochs"]))
            cells = [_mean(row["passes"].get(key)) for key in names]
            lines.append([f"`{name}`", trained, _mean(row["start"]), *cells])
    unit = _unit(cell)
    return (
        table(["checkpoint", f"{unit} of training before", "as they start", *names], lines) if lines else ""
    )


def outside_table(cell: CellResults) -> str:
    """Problems outside of the family."""
    lines, readings = [], {}
    for result in cell.of("outside_pass").values():
        readings |= dict.fromkeys(result["passes"])
    rivals = {"from the start": {}, "from the prototype": {}}
    for name, variant in cell.of("outside_pass"):
        for rival, key in zip(
            rivals, (f"outside/{variant}", f"outside_prototype/{name}/{variant}"), strict=True
        ):
            if key in cell.records:
                rivals[rival][name, variant] = cell.records[key]
    rivals = {rival: rows for rival, rows in rivals.items() if rows}
    for (name, variant), result in cell.of("outside_pass").items():
        rows = [each.get((name, variant), {}) for each in rivals.values()]
        start = next((row["start"] for row in rows if row), None)
        cells = [_mean(result["passes"].get(reading)) for reading in readings]
        trained = [_mean(row.get("training")) for row in rows]
        lines.append([f"`{name}`", variant, _mean(start), *cells, *trained])
    head = ["checkpoint", "problems", "as they start", *(f"one pass, {READINGS[r]}" for r in readings)]
    for rival, rows in rivals.items():
        kinds = {f"{OPTIMIZERS[row['optimizer']]}, {row['epochs']} {_unit(cell)}" for row in rows.values()}
        head.append(f"{' or '.join(sorted(kinds))}, {rival}")
    return table(head, lines, "ll" + "r" * (len(head) - 2)) if lines else ""


def l1_table(cell: CellResults) -> str:
    """Score, cut and objective for every L1 strength."""
    curves = {f"one pass, `{name}`": points for (name,), points in cell.of("l1_pass").items()}
    curves |= {
        {"sgd": "SGD", "proximal adam": "proximal Adam"}[name] + f", {r['epochs']} {_unit(cell)}": r["points"]
        for (name,), r in cell.of("l1").items()
    }
    lines = [
        [title, f"{p['l1']:g}", _mean(p["score"]), _mean(p["cut"]), plus_minus(summary([p["objective"]]), 3)]
        for title, points in curves.items()
        for p in points
    ]
    return table(["", "λ", cell.measure, "L1 norm cut %", "objective"], lines) if lines else ""


def _mean(scores: Sequence[float | None] | None) -> str:
    return plus_minus(summary([scores]), 1) if scores else ""


def explanation(cell: CellResults) -> str:
    """What the numbers are."""
    unit = _unit(cell)
    every = [r["sets"] for r in cell.of("start").values()]
    every += [r["rows"]["prototype"] for r in cell.of("pass").values()]
    counts = {TITLES.get(place, place): len(sets[place]["score"]) for sets in every for place in sets}
    networks = ", ".join(f"{count} {place}" for place, count in counts.items())
    texts = [
        f"Mean and 95 % interval over networks ({networks}), each with a problem, examples and a start of "
        f"its own: trained for 1 to 8 {unit} on these examples.",
        "Checkpoints: " + (", ".join(f"`{n}`" for n in sorted(cell.checkpoints())) or "none yet") + ".",
    ]
    if trained := list(cell.of("training").values()):
        lengths = sorted({row[0] for row in trained[0]["tuning"]["rows"]})
        count = len(trained[0]["rows"][0]["sets"][UNSEEN]["score"])
        texts.append(
            f"Training and natural gradient: the first {count} of the unseen problems; learning rate and "
            f"input noise are chosen on validation problems for {' and '.join(map(str, lengths))} {unit} "
            "and from the prototype or a pass for every length; other lengths take those of the nearest."
        )
    return " ".join(texts)


def sections(cell: CellResults, rows: Sequence[Row]) -> list[str]:
    """Everything about a cell but its large tables."""
    parts = []
    if lines := [*verdicts(cell, rows), *cost_lines(cell)]:
        parts.append(bullets(lines))
    for title, text in (
        ("Starts of every quality", quality_table(cell)),
        ("Outside of the family", outside_table(cell)),
        ("One checkpoint for every L1 strength", l1_table(cell)),
    ):
        if text:
            parts += [f"**{title}**, {cell.measure}{_SECTIONS.get(title, '')}", text]
    return parts


def markdown(records: Records, *, quick: bool = False) -> str:
    """Everything, for people."""
    parts = ["# One pass on problems never seen"]
    if quick:
        parts.append("A quick run: fewer problems, lengths and rates.")
    for cell in by_cell(records):
        rows = rows_of(cell, records)
        parts += [f"## {cell.title}", explanation(cell), cell_table(cell, rows), *sections(cell, rows)]
        parts += ["**Loss**", cell_table(cell, rows, "loss")]
        if settings := _settings(cell):
            parts += ["**Settings that were chosen**", settings]
    if text := memorised_table(records):
        parts += ["## Meta-trained on the very data set", text]
    return document([*parts, made_by(records)] if records else parts)


_STARTS = {"training": "start", "prototype": "prototype", "continued": "pass"}
"""Records of training -> where it starts."""


def _settings(cell: CellResults) -> str:
    lines = []
    every = [(kind, key, r) for kind in _STARTS for key, r in sorted(cell.of(kind).items())]
    for kind, (*start, optimizer, size), result in every:
        for row in result["rows"]:
            where = _STARTS[kind] + (f" of `{start[0]}`" if start else "")
            lines.append(
                [
                    where,
                    OPTIMIZERS[optimizer],
                    size,
                    str(row["epochs"]),
                    f"{row['rate']:g}",
                    f"{row['noise']:g}",
                ]
            )
    return table(["from", "optimizer", "N", _unit(cell), "rate", "noise"], lines, "llrrrr") if lines else ""


def memorised_table(records: Records) -> str:
    """Checkpoints that know one data set."""
    lines = [
        [f"`{r['name']}`", TITLES.get(r["problem"]["name"], ""), _mean(r["start"]), _mean(r["score"])]
        for key, record in sorted(records.items())
        if key.startswith("memorised/") and (r := record["result"])
    ]
    return table(["checkpoint", "data set", "fresh networks", "one pass"], lines, "llrr") if lines else ""


def has_time(cell: CellResults) -> bool:
    """Whether score against time can be drawn."""
    largest = str(max(cell.sizes, default=0))
    measured = all(any(rest[-1] == largest for rest in cell.of(part)) for part in ("start", "pass"))
    return measured and cell.accuracy and bool(cell.of("timing"))


def block(records: Records) -> str:
    """The tables of docs/results, and the pictures that there are results for."""
    parts: list[str] = []
    if any(has_time(cell) for cell in by_cell(records)):
        parts.append("![Test accuracy against time: one pass, and SGD and Adam](files/one_shot_time.png)")
    if any("/l1_pass/" in key for key in records):
        parts.append("![Test accuracy against the cut of the L1 norm, over λ](files/one_shot_l1.png)")
    for cell in by_cell(records):
        rows = rows_of(cell, records)
        parts += [f"### {cell.title}", cell_table(cell, rows), explanation(cell), *sections(cell, rows)]
    if text := memorised_table(records):
        parts += ["### Meta-trained on the very data set", text]
    return "\n\n".join(parts)
