"""Tables from the results file, for people and for the README. Measures nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from _readme import rewrite_readme as rewrite_readme
from comparison.store import summary

from learned.settings import HORIZON, LONGER, SEEN, SETTINGS
from learned.store import Record

BEGIN, END = "<!-- learned:begin -->", "<!-- learned:end -->"
OPTIMIZERS = {"sgd": "SGD, momentum 0.9", "nesterov": "SGD, Nesterov", "adam": "Adam", "adamw": "AdamW"}
NETS = {"unf": "UNF", "nfn": "NFN", "deepset": "Deep Set", "mlp": "per-parameter MLP"}
_ORDER = ["baseline", "rival", "main"]


@dataclass
class Line:
    """One optimizer in every setting.

    Attributes:
        key: ``sgd``, ..., or a rule's name.
        title: For people.
        role: ``baseline``, ``rival`` or ``main``.
        records: (setting, steps) -> loss of every test initialisation, and whose curve it is.
    """

    key: str
    title: str
    role: str
    losses: dict[tuple[str, int], list[float | None]] = field(default_factory=dict)
    curves: dict[tuple[str, int], Record] = field(default_factory=dict)
    configs: dict[tuple[str, int], Record] = field(default_factory=dict)


def lines_of(records: Mapping[str, Record]) -> list[Line]:
    """Everything by optimizer: baselines, then rivals, then the rules in question."""
    found: dict[str, Line] = {}
    for key, record in records.items():
        result = record["result"]
        if key.startswith("baseline/"):
            _, setting, _, name = key.split("/")
            line = found.setdefault(key := f"b/{name}", Line(name, OPTIMIZERS[name], "baseline"))
        else:
            name, setting = key.removeprefix("rule/").rsplit("/", 1)
            rule = record["identity"]["rule"]
            title = f"{NETS[rule['config']['net']]} (`{name}`)"
            line = found.setdefault(f"r/{name}", Line(name, title, rule["role"]))
        steps = record["identity"]["steps"]
        line.curves[setting, steps] = result["curve"]
        for at, losses in result["final"].items():
            line.losses[setting, int(at)] = losses
        if "config" in result:
            line.configs[setting, steps] = result["config"]
    nets, names = list(NETS.values()), list(OPTIMIZERS)
    rank = {title: i for i, title in enumerate(reversed(nets))}

    def place(line: Line) -> tuple[int, int, str]:
        among = names.index(line.key) if line.role == "baseline" else rank[line.title.split(" (")[0]]
        return _ORDER.index(line.role), among, line.key

    return sorted(found.values(), key=place)


def places(lines: Sequence[Line], kind: str) -> list[tuple[str, int]]:
    """(setting, steps) that something was measured at, in order: ``seen``, ``longer`` or ``unseen``."""
    every = {place for line in lines for place in line.losses}
    longest = LONGER * HORIZON
    order = list(SETTINGS)
    chosen = [
        (setting, steps)
        for setting, steps in every
        if (setting in {s.label for s in SEEN}) == (kind != "unseen")
        and (steps == longest) == (kind == "longer")
    ]
    return sorted(chosen, key=lambda place: order.index(place[0]))


def markdown(records: Mapping[str, Record], cost: str = "", *, quick: bool) -> str:
    """Everything, for people.

    Args:
        records: Of the results file.
        cost: The table of learned_step_cost.py, if there is one.
        quick: Whether the records are of a quick run.
    """
    lines = lines_of(records)
    parts = ["# Learned optimizers against tuned ones", explanation(records, quick=quick)]
    for kind, title in _titles().items():
        if places(lines, kind):
            parts += [f"## {title}", table(lines, kind)]
    if said := verdicts(lines):
        parts.append(
            "\n".join(["## Differences, on the same initialisations", "", *(f"- {v}" for v in said)])
        )
    if cost:
        parts.append(
            "\n".join("#" + row if row.startswith("#") else row for row in cost.strip().splitlines())
        )
    parts += ["## What tuning chose", _chosen(lines), "## Settings", _settings(lines)]
    return "\n\n".join(parts) + "\n"


def readme_block(records: Mapping[str, Record], cost: str = "", *, quick: bool) -> str:
    """What stands between the README's marks, marks included; arguments as for ``markdown``."""
    lines = lines_of(records)
    parts = [BEGIN]
    for kind, title in _titles().items():
        if places(lines, kind):
            parts += [f"**{title}**", "", table(lines, kind), ""]
    if rows := [row for row in cost.splitlines() if row.startswith("|")]:
        parts += ["**Cost of a step, against Adam(foreach=True)**", "", *rows, ""]
    return "\n".join(
        [*parts, f"- {explanation(records, quick=quick)}", *(f"- {v}" for v in verdicts(lines)), END]
    )


def _titles() -> dict[str, str]:
    return {
        "seen": f"Training loss after {HORIZON} steps, the horizon of meta-training; unseen initialisations",
        "longer": f"Training loss after {LONGER * HORIZON} steps, {LONGER} horizons",
        "unseen": f"Training loss after {HORIZON} steps, unseen widths and problems",
    }


def explanation(records: Mapping[str, Record], *, quick: bool) -> str:
    """What the numbers are."""
    seeds = sorted({len(next(iter(r["result"]["final"].values()))) for r in records.values()})
    machines = sorted({r["made"]["hardware"] for r in records.values()})
    return (
        f"Nats on the whole train split, mean over {_all(seeds)} initialisations, 95 % interval "
        "(Student's t); every optimizer starts from the same weights and sees the same minibatches. "
        "Baselines are tuned on other initialisations for the lowest final training loss: rates on a grid of "
        "quarter-decades, widened until the best is inside, times constant, cosine, and linear warm-up with "
        "cosine (AdamW: Adam's schedule, times weight decay); for longer runs and unseen settings on "
        "half-decades around what is best at the horizon and on the related setting. Learned rules run as "
        "they are, at learning rate 1. "
        f"{'; '.join(machines)}." + (" A quick run: fewer initialisations and rates." if quick else "")
    )


def table(lines: Sequence[Line], kind: str) -> str:
    """A row per optimizer, a column per setting; the lowest mean is bold."""
    columns = places(lines, kind)
    means = {
        (line.key, line.role, place): summary([line.losses[place]]) for line in lines for place in columns
        if place in line.losses
    }  # fmt: skip
    rows = ["| | " + " | ".join(setting for setting, _ in columns) + " |", "|---|" + "---:|" * len(columns)]
    for line in lines:
        cells = []
        for place in columns:
            found = means.get((line.key, line.role, place))
            others = [m["mean"] for (*_, at), m in means.items() if at == place and m["mean"] is not None]
            best = found is not None and bool(others) and found["mean"] == min(others)
            cells.append("" if found is None else f"**{_cell(found)}**" if best else _cell(found))
        if any(cells):
            rows.append(f"| {line.title} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def verdicts(lines: Sequence[Line]) -> list[str]:
    """The rules in question against the best baseline and against their rivals, paired by initialisation."""
    said = []
    baselines = [line for line in lines if line.role == "baseline"]
    rivals = [line for line in lines if line.role == "rival"]
    for rule in (line for line in lines if line.role == "main"):
        for kind, name in (
            ("seen", "the horizon"),
            ("longer", f"{LONGER} horizons"),
            ("unseen", "unseen settings"),
        ):
            columns = [place for place in places(lines, kind) if place in rule.losses]
            against = [text for place in columns if (text := _against_best(rule, baselines, place))]
            if against:
                said.append(f"{rule.title} minus the best baseline, {name}: {'; '.join(against)}.")
        if growing := _growing(rule):
            said.append(f"{rule.title}, loss at {LONGER} horizons over that at one, worst of all: {growing}.")
    # Rivals share a budget; the rules in question had it too only if there is no UNF among the rivals.
    unf = [line for line in rivals if line.title.startswith("UNF")]
    for rule in unf or [line for line in lines if line.role == "main"]:
        others = [rival for rival in rivals if rival is not rule]
        said += [text for rival in others if (text := _against_rival(rule, rival, lines))]
    return said


def difference(a: Sequence[float | None], b: Sequence[float | None]) -> Record:
    """Summary of a - b, pair by pair."""
    return summary([[None if x is None or y is None else x - y for x, y in zip(a, b, strict=True)]])


def _against_best(rule: Line, baselines: Sequence[Line], place: tuple[str, int]) -> str:
    means = {line.title: summary([line.losses[place]])["mean"] for line in baselines if place in line.losses}
    means = {title: mean for title, mean in means.items() if mean is not None}
    if not means:
        return ""
    best = min(means, key=lambda title: means[title])
    (other,) = (line for line in baselines if line.title == best)
    return f"{place[0]} {_signed(difference(rule.losses[place], other.losses[place]))} ({best})"


def _against_rival(rule: Line, rival: Line, lines: Sequence[Line]) -> str:
    shared = [
        place for kind in ("seen", "unseen") for place in places(lines, kind)
        if place in rule.losses and place in rival.losses
    ]  # fmt: skip
    if not shared:
        return ""
    each = "; ".join(f"{p[0]} {_signed(difference(rule.losses[p], rival.losses[p]))}" for p in shared)
    return f"{rule.title} minus {rival.title}, same meta-budget: {each}"


def _growing(rule: Line) -> str:
    said = []
    for setting in SETTINGS:
        short, long = (rule.losses.get((setting, n * HORIZON)) for n in (1, LONGER))
        if short and long:
            grown = [math.inf if b is None or a is None else b / a for a, b in zip(short, long, strict=True)]
            said.append(f"{setting} {max(grown):.2f}" if math.isfinite(max(grown)) else f"{setting} diverges")
    return ", ".join(said)


def _chosen(lines: Sequence[Line]) -> str:
    columns = [place for kind in _titles() for place in places(lines, kind)]
    rows = [
        "| setting, steps | optimizer | learning rate | schedule | weight decay |",
        "|---|---|---:|---|---:|",
    ]
    for place in columns:
        for line in lines:
            if config := line.configs.get(place):
                rows.append(
                    f"| {place[0]}, {place[1]} | {line.title} | {config['learning_rate']:g} | "
                    f"{config['schedule']} | {config['weight_decay']:g} |"
                )
    return "\n".join(rows)


def _settings(lines: Sequence[Line]) -> str:
    labels = dict.fromkeys(setting for kind in _titles() for setting, _ in places(lines, kind))
    return "\n".join(f"- {label}: {SETTINGS[label].about}" for label in labels)


def _cell(found: Record) -> str:
    if found["mean"] is None:
        return "diverges"
    return f"{found['mean']:.3f}" + ("" if found["half"] is None else f" ± {found['half']:.3f}")


def _signed(found: Record) -> str:
    if found["mean"] is None:
        return "not finite"
    return f"{found['mean']:+.3f}" + ("" if found["half"] is None else f" ± {found['half']:.3f}")


def _all(numbers: Sequence[Any]) -> str:
    return " or ".join(str(number) for number in numbers) or "no"
