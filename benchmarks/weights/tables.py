"""Table and picture of the predictors. Measures nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from amortopt.cli.picture import COLOURS, GREY, Figures
from benchmarks.harness.numbers import mean, summary
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import bullets, document, made_by, plus_minus, table

TITLES = {"unf": "UNF", "statnn": "StatNN", "deep_set": "Deep Set"}
PUBLISHED = {"unf": 0.8968, "statnn": 0.8839, "deep_set": 0.8306}


@dataclass(frozen=True)
class Scored:
    """A predictor that was scored at least once.

    Attributes:
        name: Its name.
        records: All of its records.
    """

    name: str
    records: Records

    @property
    def runs(self) -> list[Record]:
        """Records of the runs that count, by seed."""
        return [record for key, record in sorted(self.records.items()) if "/run/" in key]

    @property
    def tau(self) -> Record:
        """Summary of Kendall's tau over seeds."""
        return summary([[run["result"]["tau"] for run in self.runs]])


def scored(records: Records) -> list[Scored]:
    """The predictors, the best first."""
    names = {key.split("/")[0] for key in records if "/run/" in key}
    all_scored = [
        Scored(name, {key: record for key, record in records.items() if key.startswith(f"{name}/")})
        for name in names
    ]
    return sorted(all_scored, key=lambda one: -one.tau["mean"])


def markdown(records: Records) -> str:
    """Everything, for people."""
    zoo, recipe = records["zoo"]["result"], records["zoo"]["identity"]["zoo"]
    counts, problem = zoo["networks"], recipe["problem"]
    rows, made = [], []
    for one in scored(records):
        first = one.runs[0]
        setting, budget = first["identity"], first["identity"]["budget"]
        seconds = mean([run["result"]["cpu_seconds"] for run in one.runs])
        settings = f"{setting['learning_rate']}, {setting['width']}"
        numbers = [plus_minus(one.tau, 4), str(len(one.runs)), f"{PUBLISHED[one.name]:.4f}"]
        rows.append(
            [TITLES[one.name], *numbers, str(first["result"]["parameters"]), settings, f"{seconds:.0f}"]
        )
        tries = [record["identity"]["budget"] for key, record in one.records.items() if "/try/" in key]
        made.append(
            f"{TITLES[one.name]}: {budget['steps']} steps of {budget['batch']} networks, settings chosen by "
            f"{len(tries)} runs of {tries[0]['steps']} steps; {made_by(one.records)}"
        )
    head = ["predictor", "Kendall τ, test (95 % over seeds)", "seeds", "published τ, other networks"]
    head += ["parameters", "learning rate, width", "CPU seconds per run"]
    return document(
        [
            "# Success rates of the Tiny RNN Zoo, predicted from the weights",
            f"{sum(counts.values())} GRUs that add {problem['terms']} numbers of {problem['digits']} "
            f"digit(s), {recipe['family']['hidden']} units; {counts['train']} to train on, "
            f"{counts['val']} to choose by, {counts['test']} to test. Success rates: quartiles "
            f"{', '.join(map(str, zoo['quartiles']))}; networks per tenth of [0, 1]: "
            f"{', '.join(map(str, zoo['histogram']))}.",
            table(head, rows, "lrrrrlr"),
            "For scale, τ between the success rate and what is not in the weights:",
            bullets(f"{name}: {value:.3f}" for name, value in zoo["tau_of"].items()),
            "Made by:",
            bullets(made),
        ]
    )


def block(records: Records) -> str:
    """The table of the docs."""
    rows = [[TITLES[one.name], plus_minus(one.tau, 3)] for one in scored(records)]
    counts = records["zoo"]["result"]["networks"]
    head = ["predictor", "Kendall τ, test (95 % over seeds)"]
    return table(head, rows) + f"\n\n{counts['train']} networks to train on, {counts['test']} to test."


def picture(records: Records) -> bytes:
    """Predicted against measured success rates, and how these spread."""
    zoo, predictors = records["zoo"]["result"], scored(records)
    titles = [f"{TITLES[one.name]}: τ = {plus_minus(one.tau, 3)}" for one in predictors]
    with Figures(
        ["Networks", *titles], "Success rates, predicted from the weights of unseen networks"
    ) as figures:
        first, *axes = figures.axes
        first.bar(np.arange(10) / 10 + 0.05, zoo["histogram"], width=0.09, color=GREY)
        first.set(ylabel="networks")
        for ax, one in zip(axes, predictors, strict=True):
            style: Any = {"s": 5, "alpha": 0.5, "linewidths": 0, "color": COLOURS["sgd", True]}
            ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, zorder=0)
            ax.scatter(zoo["test_success_rates"], one.runs[0]["result"]["predicted"], **style)
            ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="predicted")
        for ax in figures.axes:
            ax.set(xlabel="success rate")
        return figures.png("Test networks; the first of the training seeds.")
