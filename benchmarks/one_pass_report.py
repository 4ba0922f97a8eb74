"""Table, picture and README block from the results files of one_pass.py. Measures nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from scipy import stats

from amortopt.files import write_whole
from amortopt.picture import COLOURS, Curve, Panel, draw, duration

FORMAT = 1
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
Results: TypeAlias = dict[str, Any]
_ACTIVATIONS = {"tanh": "tanh", "relu": "ReLU"}
_OPTIMIZERS = {"sgd": "SGD", "adam": "Adam"}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, extremes and 95 % interval of the mean (Student's t) over networks, and the values themselves."""
    array = np.asarray(values, dtype=np.float64)
    count = len(array)
    half = float(stats.t.ppf(0.975, count - 1) * array.std(ddof=1) / math.sqrt(count)) if count > 1 else None
    return {
        "mean": finite(float(array.mean())),
        "min": finite(float(array.min())),
        "max": finite(float(array.max())),
        "half_interval": None if half is None else finite(half),
        "per_network": [finite(float(value)) for value in array],
    }


def finite(value: float) -> float | None:
    """The value to five decimals; None for what json cannot hold."""
    return round(value, 5) if math.isfinite(value) else None


def read_results(folder: Path) -> list[Results]:
    """All results files of a folder, tanh first.

    Raises:
        FileNotFoundError: There is none.
        ValueError: One has another format.
    """
    found = []
    for path in sorted(folder.glob("one_pass_*.json"), reverse=True):
        try:
            results = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is no JSON ({error}); run benchmarks/one_pass.py again") from error
        if results.get("format") != FORMAT or results.get("benchmark") != "one_pass":
            raise ValueError(
                f"{path}: got format {results.get('format')!r}, expected {FORMAT} of the benchmark one_pass; "
                "run benchmarks/one_pass.py again"
            )
        found.append(results)
    if not found:
        raise FileNotFoundError(f"{folder} holds no one_pass_*.json; run benchmarks/one_pass.py first")
    return found


def markdown(everything: Sequence[Results]) -> str:
    """A table per results file, with all that was measured, for people."""
    parts = ["# One forward pass against tuned SGD and Adam", _explanation(everything[0])]
    for results in everything:
        lines = [
            f"## {_title(results)}",
            "",
            "Checkpoint `{name}` ({parameters:,} parameters).".format(**results["checkpoint"]),
            "",
            "| method | accuracy, mean % (95 % interval) | max % | loss | time per network | chosen |",
            "|---|---|---|---|---|---|",
        ]
        for row in results["rows"]:
            chosen = f"{row['learning_rate']:g}, {row['schedule']}" if "schedule" in row else ""
            accuracy = row["accuracy"]
            cells = [
                _method(row),
                f"{accuracy['mean']:.1f}{_half(accuracy)}",
                f"{accuracy['max']:.1f}",
                _loss(row),
                _time(row),
                chosen,
            ]
            lines.append(_line(cells, bold=row["method"] == "one_pass"))
        parts.append("\n".join([*lines, "", _latency(results)]))
    return "\n\n".join(parts) + "\n"


def readme_block(everything: Sequence[Results]) -> str:
    """What stands between the README's marks, marks included."""
    methods = list(dict.fromkeys(_method(row) for results in everything for row in results["rows"]))
    heads = [_activation(results) for results in everything]
    header = ["test data, mean of the networks"]
    for head in heads:
        header += [f"{head}: accuracy %", "loss", "time per network"]
    lines = [_line(header), "|---|" + "---:|" * (len(header) - 1)]
    for method in methods:
        cells = [method]
        for results in everything:
            row = next((row for row in results["rows"] if _method(row) == method), None)
            if row is None:
                cells += ["", "", ""]
                continue
            accuracy = row["accuracy"]
            cells += [f"{accuracy['mean']:.1f}{_half(accuracy)}", _loss(row), _time(row)]
        lines.append(_line(cells, bold=method == "one forward pass"))
    notes = [_explanation(everything[0]), *(f"{_activation(r)}: {_latency(r)}" for r in everything)]
    return "\n".join([BEGIN, *lines, "", *notes, END])


def rewrite_readme(path: Path, everything: Sequence[Results]) -> None:
    """Put the block between the README's marks.

    Raises:
        ValueError: The README lacks the marks.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} lacks the marks {BEGIN} and {END}; put them where the results belong")
    write_whole(path, (before + readme_block(everything) + after).encode())


def picture(everything: Sequence[Results]) -> bytes:
    """Test accuracy against time: every point is a run of its own, tuned for its length."""
    return draw(
        [_panel(results) for results in everything],
        title="One forward pass against tuned SGD and Adam",
        note=_explanation(everything[0]).replace("`", ""),
    )


def _panel(results: Results) -> Panel:
    rows = results["rows"]
    start, better = (next(r for r in rows if r["method"] == name) for name in ("start", "one_pass"))
    curves = []
    for optimizer in ("sgd", "adam"):
        for noisy in (False, True):
            own = [r for r in rows if r["method"] == optimizer and (r["noise"] > 0) == noisy]
            curves.append(
                Curve(
                    label=_OPTIMIZERS[optimizer] + (" + noise" if noisy else ""),
                    colour=COLOURS[optimizer, noisy],
                    seconds=[r["seconds_per_network"] for r in own],
                    accuracy=[r["accuracy"]["mean"] for r in own],
                    interval=[r["accuracy"]["half_interval"] or 0.0 for r in own],
                    names=[f"{r['epochs']} ep." for r in own] if (optimizer, noisy) == ("sgd", True) else (),
                )
            )
    return Panel(
        _title(results),
        start["accuracy"]["mean"],
        better["seconds_per_network"],
        better["accuracy"]["mean"],
        interval=better["accuracy"]["half_interval"],
        curves=curves,
    )


def _explanation(results: Results) -> str:
    plan, hardware = results["plan"], results["hardware"]
    quick = " A quick run: fewer networks, lengths and rates." if results["quick"] else ""
    return (
        f"{plan['networks']} networks from seeds that no checkpoint was trained on; ±: 95 % interval over "
        "them. SGD (momentum 0.9) and Adam start from the same networks; learning rate and schedule "
        "(constant or cosine) are chosen for each row by validation data on "
        f"{plan['tuning_networks']} other networks; noise: Gaussian, {plan['noise']}, on their training "
        "inputs. All networks train, or are read by the metanet, at once; time per network is that divided "
        f"by their number ({hardware}).{quick}"
    )


def _latency(results: Results) -> str:
    times = ", ".join(f"{duration(r['seconds'])} for {r['batch']}" for r in results["latency"])
    alone = results["seconds_per_epoch_alone"]["sgd"]
    return f"one pass takes {times} networks; one epoch of SGD on a single network {duration(alone)}."


def _title(results: Results) -> str:
    return f"{results['task']['name']}, {results['family']['name']} with {_activation(results)}"


def _activation(results: Results) -> str:
    activation = results["family"]["activation"]
    return _ACTIVATIONS.get(activation, activation)


def _method(row: Results) -> str:
    if row["method"] == "start":
        return "as they start"
    if row["method"] == "one_pass":
        return "one forward pass"
    noise = " + noise" if row["noise"] else ""
    return f"{_OPTIMIZERS[row['method']]}{noise}, {row['epochs']} epochs"


def _half(values: dict[str, Any]) -> str:
    return "" if values["half_interval"] is None else f" ± {values['half_interval']:.1f}"


def _loss(row: Results) -> str:
    mean = row["loss"]["mean"]
    return "not finite" if mean is None else f"{mean:.3f}"


def _time(row: Results) -> str:
    return "" if row["seconds_per_network"] is None else duration(row["seconds_per_network"])


def _line(cells: Sequence[str], *, bold: bool = False) -> str:
    return "| " + " | ".join(f"**{cell}**" if bold and cell else cell for cell in cells) + " |"
