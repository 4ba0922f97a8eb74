"""Tables from the results file, for people and for the docs. Measures nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.harness.numbers import Values, difference, summary
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import any_of, bullets, document, machines, made_by, plus_minus, table
from benchmarks.optimizers.cost import cost_table
from benchmarks.optimizers.drawn import drawn_table
from benchmarks.optimizers.learned import learned_table
from benchmarks.optimizers.search import search_table
from benchmarks.optimizers.settings import HORIZON, KNOWN, LONGER, LONGEST, SETTINGS
from benchmarks.optimizers.suite import suite_tables

OPTIMIZERS = {
    "sgd": "SGD, momentum 0.9",
    "adam": "Adam",
    "adamw": "AdamW",
    "nadam": "NAdam",
    "muon": "Muon and Adam",
}
NETS = {"mlp": "per-parameter MLP", "deepset": "Deep Set", "unf": "UNF", "none": "UNFOptimizer, no network"}
ROLES = ("baseline", "rival", "main")
Place = tuple[str, int]
"""Setting and steps."""


@dataclass
class Line:
    """One optimizer in every setting.

    Attributes:
        key: ``sgd``, ..., or a rule's name.
        title: For people.
        role: ``baseline``, ``rival`` or ``main``.
        losses: (setting, steps) -> loss of every test initialisation.
        curves: (setting, steps) -> curve of a run.
        configs: (setting, steps) -> what tuning chose.
        rank: Its place among all lines.
    """

    key: str
    title: str
    role: str
    losses: dict[Place, Values] = field(default_factory=dict)
    curves: dict[Place, Record] = field(default_factory=dict)
    configs: dict[Place, Record] = field(default_factory=dict)
    rank: int = 0

    def mean(self, place: Place) -> float | None:
        """Mean loss; None where it was not measured or is not finite."""
        return summary([self.losses[place]])["mean"] if place in self.losses else None


def lines_of(records: Records) -> list[Line]:
    """Everything by optimizer: baselines, then rivals, then the rules in question."""
    lines: dict[tuple[str, str], Line] = {}
    for key, record in records.items():
        kind, *rest = key.split("/")
        if kind in ("cost", "suite", "search", "drawn", "learned"):
            continue
        result, identity = record["result"], record["identity"]
        if kind == "baseline":
            setting, _, name = rest
            line = Line(name, OPTIMIZERS[name], "baseline", rank=list(OPTIMIZERS).index(name))
        else:
            name, setting, steps = "/".join(rest[:-2]), rest[-2], int(rest[-1])
            rule, net = identity["rule"], identity["rule"]["config"]["net"]
            title = OPTIMIZERS.get(name, f"{NETS[net]} (`{name}`)")
            line = Line(name, title, rule["role"], rank=list(NETS).index(net) + len(OPTIMIZERS))
            rate = rule.get("rate", 0.02)
            for how, schedule in {"default": "constant", "default_falling": "cosine"}.items():
                if how in result:
                    usual = Line(
                        f"{name} {how}", f"{title}, lr {rate:g} {schedule}", rule["role"], rank=line.rank
                    )
                    usual = lines.setdefault((kind, usual.key), usual)
                    usual.losses[setting, steps] = result[how][str(steps)]
        line = lines.setdefault((kind, name), line)
        line.curves[setting, identity["steps"]] = result["curve"]
        line.losses |= {(setting, int(at)): losses for at, losses in result["final"].items()}
        if "config" in result:
            line.configs[setting, identity["steps"]] = result["config"]
    return sorted(lines.values(), key=lambda line: (ROLES.index(line.role), line.rank, line.key))


def places(lines: Sequence[Line], kind: str) -> list[Place]:
    """(setting, steps) that something was measured at, in order; the kind is a key of ``_titles``."""
    known, order = {setting.label for setting in KNOWN}, list(SETTINGS)
    chosen = [
        (setting, steps)
        for setting, steps in {place for line in lines for place in line.losses}
        if kind == ("unseen" if setting not in known else _spans().get(steps, "known"))
    ]
    return sorted(chosen, key=lambda place: order.index(place[0]))


def markdown(records: Records, *, quick: bool = False) -> str:
    """Everything, for people."""
    lines = lines_of(records)
    parts = ["# Learned optimizers against tuned ones", explanation(records, quick=quick)]
    tables = [*_tables(lines, records), *_choices(records)]
    parts += [text for title, text in tables for text in (f"## {title}", text)]
    if differences := verdicts(lines):
        parts += ["## Differences, on the same initialisations", bullets(differences)]
    if costs := {key: record for key, record in records.items() if key.startswith("cost/")}:
        parts.append(f"Cost: {made_by(costs)} Shortest of all rounds, in turns with Adam.")
    columns = [place for kind in _titles() for place in places(lines, kind)]
    chosen = []
    for place in columns:
        for line in lines:
            if config := line.configs.get(place):
                rate, decay = f"{config['learning_rate']:g}", f"{config['weight_decay']:g}"
                chosen.append([f"{place[0]}, {place[1]}", line.title, rate, config["schedule"], decay])
    head = ["setting, steps", "optimizer", "learning rate", "schedule", "weight decay"]
    parts += ["## What tuning chose", table(head, chosen, "llrlr")]
    labels = dict.fromkeys(setting for setting, _ in columns)
    parts += ["## Settings", bullets(f"{label}: {SETTINGS[label].about}" for label in labels)]
    return document(parts)


def block(records: Records, *, quick: bool = False) -> str:
    """The tables of the docs."""
    lines = lines_of(records)
    parts = [text for title, text in _tables(lines, records) for text in (f"**{title}**", text)]
    return "\n\n".join([*parts, bullets([explanation(records, quick=quick), *verdicts(lines)])])


def _tables(lines: Sequence[Line], records: Records) -> list[tuple[str, str]]:
    """Titles and tables, of those that there are results for."""
    tables = [(title, loss_table(lines, kind)) for kind, title in _titles().items()]
    titles = {**OPTIMIZERS, **{line.key: line.title for line in lines}}
    tables += suite_tables(records, titles)
    tables.append(("Cost of a step", cost_table(records)))
    return [(title, text) for title, text in tables if text]


def _choices(records: Records) -> list[tuple[str, str]]:
    """The same of how the numbers of the rule and its default rate were chosen."""
    search = "Search for the numbers of the rule: logarithm of the final loss minus Muon's, and the best rate"
    drawn = "Drawn tasks: on how many the row is ahead, and the mean logarithm of the ratio of losses"
    learned = "What a network adds on the drawn tasks"
    tables = [
        (search, search_table(records)),
        (drawn, drawn_table(records)),
        (learned, learned_table(records)),
    ]
    return [(title, text) for title, text in tables if text]


def _spans() -> dict[int, str]:
    """Steps of a run of a known task -> the table it is in."""
    return {HORIZON: "known", LONGER * HORIZON: "longer", LONGEST * HORIZON: "longest"}


def _titles() -> dict[str, str]:
    known = {kind: f"Training loss after {steps} steps" for steps, kind in _spans().items()}
    return {**known, "unseen": f"Training loss after {HORIZON} steps, other widths and problems"}


def explanation(records: Records, *, quick: bool) -> str:
    """What the numbers are."""
    runs = {key: record for key, record in records.items() if key.startswith(("baseline/", "rule/"))}
    if not runs:
        return f"{machines(records)}."
    seeds = any_of(len(next(iter(record["result"]["final"].values()))) for record in runs.values())
    return (
        f"Nats on the whole train split, mean over {seeds} initialisations, 95 % interval "
        "(Student's t); every optimizer starts from the same weights and sees the same minibatches. "
        "Baselines are tuned on other initialisations for the lowest final training loss: rates on a grid of "
        "quarter-decades, widened until the best is inside, times constant, cosine, and linear warm-up with "
        "cosine (AdamW: Adam's schedule, times weight decay); for longer runs and unseen settings on "
        f"half-decades around what is best at {HORIZON} steps and on the related setting. Muon, which is the "
        "rule with nothing learned, and learned rules have half-decades and the cosine everywhere, which is "
        f"less, and a row at their default rate. {machines(runs)}."
        + (" A quick run: fewer initialisations and rates." if quick else "")
    )


def loss_table(lines: Sequence[Line], kind: str) -> str:
    """A row per optimizer, a column per setting; the lowest mean is bold. Empty if there are no results."""
    columns = places(lines, kind)
    if not columns:
        return ""
    finite = {place: [m for line in lines if (m := line.mean(place)) is not None] for place in columns}
    rows = []
    for line in lines:
        cells = []
        for place in columns:
            text = ""
            if place in line.losses:
                text = plus_minus(summary([line.losses[place]]), 3, missing="diverges")
                text = f"**{text}**" if line.mean(place) == min(finite[place], default=0.0) else text
            cells.append(text)
        if any(cells):
            rows.append([line.title, *cells])
    return table(["", *(setting for setting, _ in columns)], rows)


def verdicts(lines: Sequence[Line]) -> list[str]:
    """The rules in question against the best baseline and against their rivals, paired by initialisation."""
    texts = []
    baselines, rivals, mains = ([line for line in lines if line.role == role] for role in ROLES)
    spans = {kind: f"{steps} steps" for steps, kind in _spans().items()} | {"unseen": "other settings"}
    for rule in mains:
        for kind, name in spans.items():
            columns = [place for place in places(lines, kind) if place in rule.losses]
            if against := [text for place in columns if (text := _against_best(rule, baselines, place))]:
                texts.append(f"{rule.title} minus the best baseline, {name}: {'; '.join(against)}.")
        if growth := _growth(rule):
            steps = f"{LONGER * HORIZON} steps over that after {HORIZON}"
            texts.append(f"{rule.title}, loss after {steps}, worst of all: {growth}.")
    # Rivals share a budget; the rules in question had it too only if there is no UNF among the rivals.
    for rule in [line for line in rivals if line.title.startswith("UNF")] or mains:
        for rival in (rival for rival in rivals if rival is not rule):
            shared = [
                place for kind in ("known", "unseen") for place in places(lines, kind)
                if place in rule.losses and place in rival.losses
            ]  # fmt: skip
            if shared:
                each = "; ".join(f"{place[0]} {_minus(rule, rival, place)}" for place in shared)
                texts.append(f"{rule.title} minus {rival.title}, same meta-budget: {each}")
    return texts


def _minus(line: Line, other: Line, place: Place) -> str:
    return plus_minus(summary([difference(line.losses[place], other.losses[place])]), 3, sign="+")


def _against_best(rule: Line, baselines: Sequence[Line], place: Place) -> str:
    means = [(mean, line.rank, line) for line in baselines if (mean := line.mean(place)) is not None]
    if not means:
        return ""
    best = min(means, key=lambda one: one[:2])[2]  # two lines may have one mean, such as zero
    return f"{place[0]} {_minus(rule, best, place)} ({best.title})"


def _growth(rule: Line) -> str:
    texts = []
    for setting in SETTINGS:
        short, long = (rule.losses.get((setting, n * HORIZON)) for n in (1, LONGER))
        if short and long:
            ratios = [math.inf if None in (a, b) else b / a for a, b in zip(short, long, strict=True)]  # type: ignore[operator]
            worst = max(ratios)
            texts.append(f"{setting} {worst:.2f}" if math.isfinite(worst) else f"{setting} diverges")
    return ", ".join(texts)
