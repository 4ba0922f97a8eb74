"""What a network adds to the rule: releases of several nets and meta-seeds against the rule without one.

    python benchmarks/optimizers --parts learned --rivals runs/unf-0/release runs/unf-1/release ...

All take the same minibatches from the same starts, on the tasks of `drawn`, none of which is in the recipe
``unf_whole``. Keys of the records are ``learned/TASKS/NAME``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.optim.stepwise import LEARNING_RATE
from amortopt.release import Release, load_release
from benchmarks.harness.command import Advance, Part
from benchmarks.harness.numbers import mean, summary
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import plus_minus, table
from benchmarks.optimizers.drawn import HOW, NUMBERS, TASKS, Candidate, log_ratios, losses_at, measured
from benchmarks.optimizers.parts import numbers_of

FALLING = (0.02, 0.03, 0.04, 0.06)
CONSTANT = (0.02,)
NONE = "none"
"""Name of the rule without a network."""
NETS = {"mlp": "per-parameter MLP", "deepset": "Deep Set", "unf": "UNF"}
WAYS = {
    "cosine, default rate": ("cosine", (LEARNING_RATE,)),
    "cosine, best of 4 rates": ("cosine", FALLING),
    "constant rate": ("constant", CONSTANT),
}
"""Column -> schedule, and rates of which the best counts."""


def learned_parts(sources: Sequence[str], *, quick: bool) -> list[Part]:
    """A part for the rule without a network, and one per release; none if there is no release.

    Raises:
        FileNotFoundError: There is no release of that name.
    """
    releases = [load_release(source, "rule") for source in sources]
    if not releases:
        return []
    tasks, shrink = (3, 10) if quick else (TASKS, 1)

    def part(name: str, rule: UNFRule, release: Release | None) -> Part:
        candidate = Candidate(name, rule, FALLING, CONSTANT)
        identity = {
            "numbers": numbers_of(rule),
            **{"falling": FALLING, "constant": CONSTANT, "shrink": shrink},
            **({"sha256": release.sha256} if release else {}),
        }
        work = partial(_measured, candidate, release, tasks, shrink)
        return Part(f"learned/{tasks}/{name}", identity, work, float(tasks))

    none = part(NONE, UNFRule("none", **NUMBERS), None)
    return [none, *(part(release.name, release.module, release) for release in releases)]


def _measured(
    candidate: Candidate, release: Release | None, tasks: int, shrink: int, advance: Advance = lambda _: None
) -> Record:
    """Losses as of `drawn`, and what the meta-training was."""
    training = {} if release is None else dict(release.results.get("training", {})) | {"seeds": release.seeds}
    return {"training": training, "tasks": measured(candidate, tasks, shrink, advance)}


def learned_table(records: Records) -> str:
    """Markdown of the records: a row per net; empty if there are none."""
    by_name = {key.split("/", 2)[2]: record for key, record in records.items() if key.startswith("learned/")}
    if NONE not in by_name:
        return ""
    rows = []
    for net, title in NETS.items():
        many = [record for record in by_name.values() if record["identity"]["numbers"]["net"] == net]
        if many:
            minutes = mean([one["result"]["training"].get("seconds", 0.0) for one in many]) / 60
            cells = [_against(many, by_name[NONE], *way) for way in WAYS.values()]
            rows.append([title, str(len(many)), f"{minutes:.1f}", *cells])
    rates = ", ".join(f"{rate:g}" for rate in FALLING)
    explanation = (
        "Mean logarithm of the final loss over that of the same rule without a network, at the default rate "
        f"{LEARNING_RATE:g}, at the best of {rates}, and at {CONSTANT[0]:g} constant; 95 % interval over "
        "meta-seeds and tasks; on how many tasks it is below 0 on average over meta-seeds; and the mean of "
        "every meta-seed."
    )
    return explanation + "\n\n" + table(["network", "meta-seeds", "minutes each", *WAYS], rows)


def _against(many: Sequence[Record], none: Record, how: str, chosen: Sequence[float]) -> str:
    """Mean logarithm of the ratio of losses, with its interval, and on how many tasks it is below zero."""

    def losses(record: Record) -> list[float]:
        return losses_at(record["identity"][HOW[how]], record["result"]["tasks"], how, chosen)

    logs = [log_ratios(losses(record), losses(none)) for record in many]
    lower = sum(sum(task) < 0 for task in zip(*logs, strict=True))
    each = ", ".join(f"{sum(row) / len(row):+.3f}" for row in logs)
    return f"{plus_minus(summary(logs), 3, sign='+')}; {lower} of {len(logs[0])} ({each})"


def block(records: Records) -> str:
    """The table of the docs."""
    return learned_table(records)
