"""Table and picture of accuracies that are predicted from weights. Measures nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from amortopt.cli.picture import COLOURS, GREY, Figures
from benchmarks.harness.store import Records
from benchmarks.harness.tables import document, made_by, table
from benchmarks.weights.reader_tables import TITLES, all_rows, measured, runs, scored, seeds

ZOOS = {
    "mnist_5k_relu": "MNIST-5k, ReLU",
    "mnist_5k_tanh": "MNIST-5k, tanh",
    "digits_relu": "digits, ReLU",
    "digits_tanh": "digits, tanh",
}
PUBLISHED = {"scalegmn_b": "CIFAR-10 .928 (ReLU), .942 (tanh); SVHN .869, .874"}
"""Kendall's tau on the Small CNN Zoo, other networks, as Kalogeropoulos et al. 2024 report it."""


def block(records: Records) -> str:
    """The table of the docs."""
    zoos = [zoo for zoo in ZOOS if f"{zoo}/zoo" in records]
    about = {zoo: records[f"{zoo}/zoo"]["result"] for zoo in zoos}
    head = ["Kendall τ", *(ZOOS[zoo] for zoo in zoos), "published, other networks"]
    rows = [
        [TITLES[name], *(scored(records, zoo, name, "tau") for zoo in zoos), PUBLISHED.get(name, "")]
        for name in measured(records, zoos)
    ]
    rows.append(["bound by the noise of the labels", *(f"{about[zoo]['bound']:.3f}" for zoo in zoos), ""])
    counts = "; ".join(
        f"{ZOOS[zoo]}: {n['train']} networks to learn from, {n['test']} to test"
        for zoo in zoos
        for n in [about[zoo]["networks"]]
    )
    return table(head, rows) + f"\n\n{counts}, {seeds(records, zoos)}."


def markdown(records: Records) -> str:
    """Everything, for people."""
    parts = ["# How well a CNN generalises, predicted from its weights", block(records)]
    for zoo, title in ZOOS.items():
        if f"{zoo}/zoo" not in records:
            continue
        about = records[f"{zoo}/zoo"]["result"]
        low, middle, high = (100 * value for value in about["quantiles"])
        others = ", ".join(f"{name} {value:.2f}" for name, value in about["tau_of"].items())
        parts += [
            f"## {title}",
            f"{about['networks']['train']} networks to train on, {about['networks']['val']} to choose by, "
            f"{about['networks']['test']} to test. Accuracy on {about['held_out']} held-out images: "
            f"{low:.1f}, {middle:.1f}, {high:.1f} % (10, 50 and 90 % quantiles). τ between the accuracy "
            f"and what is not in the weights: {others}.",
            all_rows(records, zoo, "tau"),
        ]
    return document([*parts, "Made by: " + made_by(records)])


def picture(records: Records) -> bytes:
    """Predicted against measured accuracies, for the first seed of ScaleGMN-B and of the statistics."""
    zoos = [zoo for zoo in ZOOS if f"{zoo}/zoo" in records]
    shown = [
        (zoo, name, found[0])
        for zoo in zoos
        for name in ("scalegmn_b", "statistics")
        if (found := runs(records, zoo, name))
    ]
    titles = [
        f"{ZOOS[zoo]}: {TITLES[name].partition(':')[0]}, τ = {run['result']['tau']:.3f}"
        for zoo, name, run in shown
    ]
    with Figures(titles, "Accuracy of unseen CNNs, predicted from their weights") as figures:
        for ax, (zoo, _, run) in zip(figures.axes, shown, strict=True):
            true = np.array(records[f"{zoo}/zoo"]["result"]["test_accuracies"])
            style: Any = {"s": 5, "alpha": 0.5, "linewidths": 0, "color": COLOURS["sgd", True]}
            ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, zorder=0)
            ax.scatter(true, run["result"]["predicted"], **style)
            ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="accuracy on held-out images", ylabel="predicted")
        return figures.png("Test networks; the first of the training seeds.")
