"""Table and picture of edited image networks. Measures nothing."""

from __future__ import annotations

import io

import numpy as np

from amortopt.system.extras import needed_for
from benchmarks.harness.numbers import mean, summary
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import document, made_by, plus_minus, table

TITLES = {
    "scalegmn_b_8": "ScaleGMN-B, mean of 8 proposals",
    "scalegmn_b": "ScaleGMN-B, k = 1",
    "descent_8": "ScaleGMN by descent on answers at learned inputs, mean of 8 proposals",
    "descent": "ScaleGMN by descent on answers at learned inputs, k = 1",
    "scalegmn": "ScaleGMN, forward messages, k = 1",
    "twin": "symmetry-broken twin, k = 1",
    "picture": "picture editor, four gradients: runs the network, has learned the edit",
    "adam_10": "10 steps of Adam to its picture, dilated: runs the network, knows the edit",
    "adam_100": "100 steps of Adam to its picture, dilated: runs the network, knows the edit",
}
FITS = {"independent": "independent fits", "one-pass": "one-pass fits"}
PUBLISHED = {"scalegmn_b": "1.89", "scalegmn_b_8": "1.06 (another metanet; 1.96 with one)"}
OTHERS = {"NG-GNN": "2.06", "NFN": "2.55"}
"""MSE x100 on other networks: Kalogeropoulos et al. 2024, and arXiv 2602.01083 for averages of proposals."""


def runs(records: Records, zoo: str, editor: str) -> list[Record]:
    """Records of the runs, by seed."""
    return [record for key, record in sorted(records.items()) if key.startswith(f"{zoo}/{editor}/run/")]


def error(records: Records, zoo: str, editor: str) -> str:
    """Mean test error with its interval over seeds."""
    found = runs(records, zoo, editor)
    if not found:
        return "not measured"
    return plus_minus(summary([[run["result"]["mse_x100"] for run in found]]), 2)


def block(records: Records) -> str:
    """The table of the docs."""
    zoos = [zoo for zoo in FITS if f"{zoo}/unedited" in records]
    editors = [name for name in TITLES if any(runs(records, zoo, name) for zoo in zoos)]
    head = ["dilation, MSE x100", *(FITS[zoo] for zoo in zoos), "published, other networks"]
    rows = [
        [TITLES[name], *(error(records, zoo, name) for zoo in zoos), PUBLISHED.get(name, "")]
        for name in editors
    ]
    unedited = [f"{records[f'{zoo}/unedited']['result']['mse_x100']:.2f}" for zoo in zoos]
    rows += [[name, *[""] * len(zoos), value] for name, value in OTHERS.items()]
    rows.append(["as they are, unedited", *unedited, ""])
    return table(head, rows)


def markdown(records: Records) -> str:
    """Everything, for people."""
    parts = [
        "# Image networks, edited by their weights: dilation",
        block(records),
        "Squared error to the dilated image, of 784 grey levels in [0, 1], mean over test networks: the "
        "scale of the published errors. The editors of weights read nothing else, and change the given "
        "weights. The picture editor and Adam run the network on the grid of pixels; the picture editor has "
        "learned the edit, Adam is given it.",
    ]
    for zoo in FITS:
        rows = []
        for name in TITLES:
            found = runs(records, zoo, name)
            if found:
                identity, results = found[0]["identity"], [run["result"] for run in found]
                trained = "cpu_seconds" in results[0]
                timed, steps = "ms_per_network" in results[0], ""
                if trained:
                    steps = f"{identity['steps']} of {identity['batch']}, {identity['pixels']} pixels"
                rows.append(
                    [
                        TITLES[name],
                        error(records, zoo, name),
                        f"{mean([r['val_mse_x100'] for r in results]):.2f}",
                        str(len(found)),
                        steps,
                        str(results[0]["parameters"]) if trained else "",
                        f"{mean([r['cpu_seconds'] for r in results]):.0f}" if trained else "",
                        f"{mean([r['ms_per_network'] for r in results]):.1f}" if timed else "",
                    ]
                )
        if rows:
            counts = records[f"{zoo}/unedited"]["result"]["networks"]
            head = ["editor", "test (95 % over seeds)", "val", "seeds", "steps, networks each"]
            head += ["parameters", "CPU seconds per run", "ms per network, of 64 at once"]
            parts += [
                f"## {FITS[zoo].capitalize()}",
                f"{counts['train']} networks to train on, {counts['test']} to test.",
                table(head, rows, "lrrrrrrr"),
            ]
    return document([*parts, "Made by: " + made_by(records)])


def picture(records: Records) -> bytes:
    """Before, target and after, of some test images, for every editor that kept pictures."""
    with needed_for("a picture", extra="demo"):
        from matplotlib.figure import Figure
    shown = [
        (TITLES[name], record["result"]["pictures"])
        for zoo in FITS
        for name in TITLES
        for record in runs(records, zoo, name)
        if "pictures" in record["result"]
    ]
    rows = [("before", shown[0][1]["before"]), ("target", shown[0][1]["target"])]
    rows += [(title, pictures["after"]) for title, pictures in shown]
    columns = len(rows[0][1])
    figure = Figure(figsize=(1.1 * columns + 2.2, 1.1 * len(rows)), layout="constrained")
    for r, (title, pictures) in enumerate(rows):
        for c, picture in enumerate(pictures):
            axes = figure.add_subplot(len(rows), columns, r * columns + c + 1)
            axes.imshow(np.array(picture).reshape(28, 28), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            if c == 0:
                axes.set_ylabel("\n".join(title.split(", ")), rotation=0, ha="right", va="center", fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
