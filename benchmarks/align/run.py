"""Loss along the line between two networks that were trained apart, before and after alignment.

    python benchmarks/align              # 4 min on one core
    python benchmarks/align --quick      # 1 min; one epoch
    python benchmarks/align --only cnn   # one architecture
    python benchmarks/align --report     # tables and picture anew

Two networks of one architecture are trained on MNIST-1D from different seeds and batches. For b as it is, and
for b brought into a's gauge by every method, the loss is measured at 11 points of the line from a to b.
Running statistics of batch norms are measured anew at every point, for all methods. The barrier is the loss
at the midpoint less the mean of the losses at both ends. The package rebasin is measured where it is
installed.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amortopt.cli.picture import COLOURS, GREY, STAR, TWIN, Figures
from amortopt.symmetry import align, measure_batch_norms
from amortopt.tasks import make_problem
from benchmarks.align.networks import NETWORKS, TABLES, TITLES
from benchmarks.align.rebasins import by_package, weight_matching
from benchmarks.harness.command import Part, command_line, measure, parse, results, write_report
from benchmarks.harness.numbers import mean
from benchmarks.harness.store import Records
from benchmarks.harness.tables import bullets, document, made_by, table

BENCHMARK = "align"
PAIRS = 8
POINTS = 11
EPOCHS = 4
EXAMPLES = 128
MEASURED = 1000
STEPS = 100
METHODS = {
    "none": "as trained",
    "rebasin": "rebasin (package)",
    "git-re-basin": "git-re-basin, hand-written table",
    "weights": 'align, by="weights"',
    "activations": 'align, by="activations"',
    "halfway": 'align, by="weights", halfway=100',
}
LINES = {
    "none": GREY,
    "rebasin": COLOURS["adam", False],
    "git-re-basin": COLOURS["sgd", True],
    "weights": STAR,
    "activations": TWIN,
    "halfway": "#3f8f4f",
}


@cache
def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and labels to train on and to test on."""
    problem = make_problem("mnist1d")
    train, test = problem.split("train"), problem.split("test")
    return train.x, train.y, test.x, test.y


def trained(build: Callable[[], nn.Module], seed: int, epochs: int) -> nn.Module:
    """A network from its own seed, by Adam with a cosine schedule."""
    torch.manual_seed(seed)
    network, (x, y, _, _) = build(), data()
    steps = epochs * (len(x) // 100)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: len(x) // 100 * 100].split(100):
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def line(a: nn.Module, b: nn.Module) -> dict[str, list[float]]:
    """Training loss, test loss and test accuracy at points of the line from a to b."""
    x, y, test_x, test_y = (t[:MEASURED] for t in data())
    between, (ends_a, ends_b) = copy.deepcopy(a), (dict(net.named_parameters()) for net in (a, b))
    normed = any(isinstance(part, nn.BatchNorm1d) for part in a.modules())
    measured: dict[str, list[float]] = {"train": [], "test": [], "accuracy": []}
    with torch.no_grad():
        for t in torch.linspace(0, 1, POINTS).tolist():
            for name, parameter in between.named_parameters():
                parameter.copy_(torch.lerp(ends_a[name], ends_b[name], t))
            if normed:
                measure_batch_norms(between, x.split(500))
            logits = between(test_x)
            measured["train"].append(round(float(F.cross_entropy(between(x), y)), 4))
            measured["test"].append(round(float(F.cross_entropy(logits, test_y)), 4))
            measured["accuracy"].append(round(100 * float((logits.argmax(1) == test_y).double().mean()), 2))
    return measured


def barrier(losses: Sequence[float]) -> float:
    """Loss at the midpoint less the mean of both ends."""
    return losses[len(losses) // 2] - (losses[0] + losses[-1]) / 2


def measured(name: str, pair: int, epochs: int) -> dict[str, Any]:
    """All methods on one pair of networks."""
    a, b = (trained(NETWORKS[name], 2 * pair + k, epochs) for k in (0, 1))
    inputs = data()[0][:EXAMPLES]
    methods: dict[str, Callable[[], nn.Module]] = {
        "none": lambda: b,
        "git-re-basin": lambda: weight_matching(a, b, TABLES[name]),
        "weights": lambda: align(a, b, inputs),
        "activations": lambda: align(a, b, inputs, by="activations"),
        "halfway": lambda: align(a, b, inputs, halfway=STEPS),
    }
    lines = {method: line(a, aligned()) for method, aligned in methods.items()}
    if importlib.util.find_spec("rebasin") is None:
        return {"lines": lines, "rebasin": "not installed"}
    try:
        lines["rebasin"] = line(a, by_package(a, b, inputs))
    except Exception as error:  # of the package: what it says is its result
        return {"lines": lines, "rebasin": f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"}
    return {"lines": lines, "rebasin": "measured"}


def parts(options: Any) -> list[Part]:
    """One part per pair of networks."""
    epochs, pairs = (1, 1) if options.quick else (EPOCHS, PAIRS)
    return [
        Part(
            f"{name}/{pair}",
            {
                "epochs": epochs,
                "points": POINTS,
                "examples": [EXAMPLES, MEASURED],
                "halfway": STEPS,
                "seeds": [2 * pair, 2 * pair + 1],
            },
            lambda _, name=name, pair=pair: measured(name, pair, epochs),
        )
        for pair in range(pairs)
        for name in options.only or NETWORKS
    ]


def _lines(records: Records, name: str, method: str) -> list[dict[str, list[float]]]:
    return [
        record["result"]["lines"][method]
        for key, record in records.items()
        if key.split("/")[0] == name and method in record["result"]["lines"]
    ]


def block(records: Records) -> str:
    """The table of the docs."""
    names = [name for name in NETWORKS if _lines(records, name, "none")]
    rows = []
    for method, title in METHODS.items():
        cells = []
        for name in names:
            lines = _lines(records, name, method)
            cells.append(f"{mean([barrier(one['train']) for one in lines]):.3f}" if lines else "fails")
        rows.append([f"**{title}**" if method in ("weights", "activations", "halfway") else title, *cells])
    ends = [
        f"{mean([(one['train'][0] + one['train'][-1]) / 2 for one in _lines(records, name, 'none')]):.3f}"
        for name in names
    ]
    rows.append(["loss of the networks themselves", *ends])
    pairs = max(len(_lines(records, name, "none")) for name in names)
    notes = [
        f"Barrier of the training loss on MNIST-1D: loss at the midpoint less the mean of both ends; "
        f"{'one pair' if pairs == 1 else f'mean of {pairs} pairs'} of networks, {EPOCHS} epochs each.",
        "git-re-basin: Algorithm 1 of the paper with a table written by hand for each architecture; align "
        "needs none.",
        f"halfway: scales fitted to the answers of both networks on {EXAMPLES} inputs, without labels; "
        "losses are measured on other inputs too. tanh has no scales to fit.",
    ]
    if failed := sorted({
        f"{TITLES[key.split('/')[0]]}: {record['result']['rebasin']}"
        for key, record in records.items()
        if record["result"]["rebasin"] != "measured"
    }):  # fmt: skip
        notes.append(f"rebasin fails on: {'; '.join(failed)}.")
    return table(["barrier", *(TITLES[name] for name in names)], rows) + "\n\n" + bullets(notes)


def picture(records: Records) -> bytes:
    """Training loss along the line, one panel per architecture."""
    names = [name for name in NETWORKS if _lines(records, name, "none")]
    t = [k / (POINTS - 1) for k in range(POINTS)]
    with Figures([TITLES[name] for name in names], "Loss between two networks trained apart") as figures:
        for ax, name in zip(figures.axes, names, strict=True):
            for method, title in METHODS.items():
                if lines := _lines(records, name, method):
                    losses = [mean(values) for values in zip(*(one["train"] for one in lines), strict=True)]
                    ax.plot(t, losses, color=LINES[method], label=title, linewidth=1.7)
        figures.label("from a (0) to b (1)", "training loss")
        return figures.png("MNIST-1D; batch norms measured anew at every point.")


def markdown(records: Records) -> str:
    """Everything, for people."""
    return document(["# Loss between networks trained apart", block(records), made_by(records)])


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    names = list(NETWORKS)
    options = parse(command_line(__doc__, only=names, threads=1), args, names)
    with results(BENCHMARK, options) as store:
        if not options.report:
            measure(store, parts(options), again=options.again)
        write_report(store, markdown(store.records), {"": picture(store.records)})
