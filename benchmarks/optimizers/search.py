"""The search for the numbers of ``unf-small``: whole runs on problems of the recipe, one change at a time.

Every candidate gets the same four rates with a cosine to zero, on initialisations that no other table uses;
its score is the mean over problems of the logarithm of the final training loss at its best rate, minus
Muon's. Keys of the records are ``search/STEPS/CANDIDATE``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import amortopt.meta.rule.problems  # noqa: F401  # registers smooth_function
from amortopt.metanets.update_rule.rule import UNFRule
from benchmarks.harness.command import Advance, Part
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import table
from benchmarks.optimizers.settings import KNOWN, Setting
from benchmarks.optimizers.steppers import Learned
from benchmarks.optimizers.training import Starts, train, train_loss

STEPS = 500
RATES = (0.02, 0.035, 0.06, 0.1)
SEEDS = 2
_MLP = {"name": "mlp", "activation": "relu", "widths": [8, 64, 64, 1]}
REGRESSION = Setting("regression", {"name": "smooth_function"}, _MLP, 64)
MUON = "Muon and Adam"


@dataclass(frozen=True)
class Candidate:
    """Numbers of a rule without a network, and what they are a change of."""

    title: str
    numbers: Mapping[str, Any]

    @property
    def rule(self) -> UNFRule:
        """The rule."""
        return UNFRule("none", **self.numbers)


_MIX = {"vector_rate": 0.4, "table_rate": 0.4}
CANDIDATES = (
    Candidate(MUON, {}),
    Candidate("vectors at .1", {"vector_rate": 0.1}),
    Candidate("vectors at .4", {"vector_rate": 0.4}),
    Candidate("embeddings and heads at .1", {"table_rate": 0.1}),
    Candidate("embeddings and heads at .4", {"table_rate": 0.4}),
    Candidate("momentum .9", {"mix": (0.1, 0.9, 0, 0)}),
    Candidate("momentum .99", {"mix": (0.05, 0, 0, 0.95)}),
    Candidate("momentum without the gradient", {"mix": (0, 0, 1, 0)}),
    Candidate("gradient .2", {"mix": (0.2, 0, 0.8, 0)}),
    Candidate("both at .4, gradient .2", {"mix": (0.2, 0, 0.8, 0), **_MIX}),
    Candidate("both at .4, gradient .3", {"mix": (0.3, 0, 0.7, 0), **_MIX}),
    Candidate("both at .4, gradient .4", {"mix": (0.4, 0, 0.6, 0), **_MIX}),
    Candidate("both at .4, gradient .2, momentum .9", {"mix": (0.2, 0.8, 0, 0), **_MIX}),
    Candidate(
        "vectors at .8, heads at .4, gradient .3", {"mix": (0.3, 0, 0.7, 0), **_MIX, "vector_rate": 0.8}
    ),
)


def search_parts(*, quick: bool) -> list[Part]:
    """A part per candidate."""
    settings = (KNOWN[0], REGRESSION) if quick else (*KNOWN, REGRESSION)
    candidates = CANDIDATES[:1] + CANDIDATES[10:11] if quick else CANDIDATES
    steps = STEPS // 10 if quick else STEPS
    return [
        Part(
            f"search/{steps}/{candidate.title}",
            {
                "numbers": candidate.rule.config,
                "settings": [setting.identity for setting in settings],
                **{"rates": RATES, "seeds": SEEDS, "steps": steps},
            },
            partial(_measured, candidate, settings, steps),
            float(steps * len(settings) * len(RATES) * SEEDS),
        )
        for candidate in candidates
    ]


def _measured(
    candidate: Candidate, settings: tuple[Setting, ...], steps: int, advance: Advance = lambda _: None
) -> Record:
    """Losses of every setting, per rate a list over initialisations."""
    found: Record = {}
    for setting in settings:
        starts = Starts(setting.inner, "search", SEEDS)
        rate = torch.tensor(RATES, dtype=torch.float64).repeat_interleave(SEEDS)
        stepper = Learned(candidate.rule, setting.inner.layout, rate, "cosine")
        run = train(starts, stepper, steps, repeats=len(RATES), advance=advance)
        losses = train_loss(setting.inner, run.params[steps], 1024)
        found[setting.label] = losses.view(len(RATES), SEEDS).tolist()
    return found


def search_table(records: Records) -> str:
    """Markdown of the records of the search; empty if there are none."""
    found = {
        key.split("/", 2)[2]: record["result"] for key, record in records.items() if key.startswith("search/")
    }
    if MUON not in found:
        return ""
    labels = list(found[MUON])
    muon = {label: _best(found[MUON][label])[0] for label in labels}
    rows = []
    for candidate in CANDIDATES:
        if (result := found.get(candidate.title)) is None:
            continue
        best = {label: _best(result[label]) for label in labels}
        differences = {label: best[label][0] - muon[label] for label in labels}
        mean = sum(differences.values()) / len(labels)
        cells = [f"{differences[label]:+.3f} ({best[label][1]:g})" for label in labels]
        rows.append([candidate.title, f"{mean:+.3f}", *cells])
    return table(["candidate", "mean", *labels], rows)


def _best(losses: list[list[float | None]]) -> tuple[float, float]:
    """Mean logarithm of the loss at the best rate, and that rate."""
    means = [
        (
            math.inf if None in row else sum(math.log(loss) for loss in row if loss is not None) / len(row),
            rate,
        )
        for row, rate in zip(losses, RATES, strict=True)
    ]
    return min(means)
