"""Tables and picture of pruned networks. Measures nothing."""

from __future__ import annotations

from typing import Any

from amortopt.cli.picture import COLOURS, GREY, STAR, Figures
from benchmarks.harness.numbers import difference, mean, summary
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import bold, bullets, document, made_by, plus_minus, table

ROWS = {
    "pass": "one pass",
    "pass, by layer": "one pass, then magnitude, each layer on its own",
    "pass, fine-tuned": "one pass, then 25 epochs of fine-tuning",
    "function": "its function alone, no data, from the trained network",
    "usual pass": "one pass of `curves-cnn-relu`, then magnitude",
    "imp": "IMP, 5 x 25 epochs, from the trained network",
    "prototype, imp": "IMP, 5 x 25 epochs, from the learned prototype, trained as long",
    "short prototype, imp": "IMP, 5 x 25 epochs, from the learned prototype, trained 10 or 25 epochs",
    "dense prototype, imp": "IMP, 5 x 25 epochs, from that of `curves-cnn-relu`, trained 10 or 25 epochs",
    "masked prototype, trained": "learned sparse prototype, trained with its mask, 10 or 25 epochs",
    "l1": "trained with L1 (proximal SGD), then magnitude",
    "trained": "trained, then magnitude",
    "prototype, trained": "learned prototype, trained as long, then magnitude",
    "short prototype, trained": "learned prototype, trained 10 or 25 epochs, then magnitude",
    "dense prototype, trained": "that of `curves-cnn-relu`, trained 10 or 25 epochs, then magnitude",
    "start": "start, then magnitude",
    "pass, swapped": "one pass that reads another problem's examples",
}
DENSE = {
    "pass, dense": "one pass at λ = 0, all weights",
    "usual pass, dense": "one pass of `curves-cnn-relu`, all weights",
    "trained, dense": "trained by SGD, all weights",
    "prototype, trained, dense": "learned prototype, trained by SGD as long, all weights",
    "short prototype, trained, dense": "learned prototype, trained by SGD 10 or 25 epochs, all weights",
    "dense prototype, trained, dense": "that of `curves-cnn-relu`, trained 10 or 25 epochs, all weights",
    "start, dense": "start, all weights",
}
OURS = ("pass", "function")
RIVALS = {
    "imp": "IMP",
    "prototype, imp": "IMP from the learned prototype, trained as long",
    "short prototype, imp": "IMP from the learned prototype, trained 10 or 25 epochs",
    "dense prototype, imp": "IMP from the learned prototype of `curves-cnn-relu`",
    "masked prototype, trained": "the learned sparse prototype, trained with its mask",
    "l1": "L1 training",
    "usual pass": "a pass without λ",
}
"""What the pass is compared with, network by network."""


def sizes_of(records: Records) -> list[int]:
    """Numbers N of examples that were measured."""
    return sorted({int(key.split("/")[-1]) for key in records})


def rows_of(records: Records, size: int) -> dict[str, Record]:
    """Row -> scores, loss and zeros of every network."""
    rows: dict[str, Record] = {}
    for kind in ("baselines", "prototype", "prototype/short", "prototype/dense", "masked", "passes", "after"):
        key = f"{kind}/{size}"
        if key in records:
            rows |= records[key]["result"]["rows"]
    if f"l1/sgd/{size}" in records:
        rows["l1"] = records[f"l1/sgd/{size}"]["result"]["row"]
    return rows


def block(records: Records) -> str:
    """The table of the docs: test accuracy with a fifth of the weights."""
    sizes = sizes_of(records)
    by_size = {size: rows_of(records, size) for size in sizes}
    lines = []
    for names in (ROWS, DENSE):
        for name, title in names.items():
            if any(name in rows for rows in by_size.values()):
                cells = [
                    plus_minus(summary([rows[name]["score"]]), 1) if name in rows else ""
                    for rows in by_size.values()
                ]
                lines.append(bold([title, *cells]) if name in OURS else [title, *cells])
    head = ["test accuracy %, 80 % of the weights are zero", *(f"N = {size:,}" for size in sizes)]
    notes = []
    for size, rows in by_size.items():
        for other, title in RIVALS.items():
            if "pass" in rows and other in rows:
                ahead = summary([difference(rows["pass"]["score"], rows[other]["score"])])
                notes.append(f"N = {size:,}, one pass: {plus_minus(ahead, 1, sign='+')} over {title}")
    return "\n\n".join([table(head, lines), bullets(notes)] if notes else [table(head, lines)])


def curves(records: Records) -> str:
    """Points over λ."""
    head = ["", "N", "λ", "accuracy %", "zero weights %", "cut of the L1 norm %", "loss + λ L1", "rate"]
    lines = []
    for _kind, title, size, points in all_points(records):
        for p in points:
            numbers = [
                plus_minus(summary([p[name]]), digits)
                for name, digits in (("score", 1), ("zeros", 1), ("cut", 0), ("objective", 3))
            ]
            rate = f"{p['setting']['rate']:g}" if "setting" in p else ""
            lines.append([title, f"{size:,}", f"{p['l1']:.2g}", *numbers, rate])
    return table(head, lines, "lrrrrrrr")


def all_points(records: Records) -> list[tuple[str, str, int, list[Record]]]:
    """Kind, title, N and points of every curve over λ."""
    found = []
    for key, record in records.items():
        kind, *_, size = key.split("/")
        if kind == "curve":
            found.append((kind, "one checkpoint, one pass", int(size), record["result"]))
        if kind == "l1":
            name = {"sgd": "proximal SGD", "adam": "proximal Adam"}[key.split("/")[1]]
            title = f"{name}, {record['result']['epochs']} epochs, tuned per λ"
            found.append((key, title, int(size), record["result"]["points"]))
    return sorted(found, key=lambda one: (one[2], one[0]))


def settings(records: Records) -> str:
    """What was chosen on validation problems."""
    lines = []
    for size in sizes_of(records):
        if f"baselines/{size}" in records:
            lines.append(f"N = {size:,}: {_chosen(records[f'baselines/{size}']['result'])}")
        if f"l1/sgd/{size}" in records:
            lines[-1:] = [f"{lines[-1]}; λ {records[f'l1/sgd/{size}']['result']['best']:g}"] if lines else []
        for kind in ("prototype", "prototype/short"):
            if f"{kind}/{size}" in records:
                setting = _chosen(records[f"{kind}/{size}"]["result"])
                lines.append(f"N = {size:,}, from the learned prototype: {setting}")
        if f"passes/{size}" in records:
            r = records[f"passes/{size}"]["result"]
            lines.append(
                f"N = {size:,}: passes at λ {min(r['strengths']):.2g} to {max(r['strengths']):.2g}, "
                f"{100 * mean(r['by_pass']):.1f} % of the weights zero before magnitudes decide"
            )
    return bullets(lines)


def _chosen(r: Record) -> str:
    imp = max(r["imp_rates"], key=lambda pair: pair[1])[0]
    return (
        f"SGD {r['epochs']} epochs, rate {r['setting']['rate']:g}, noise {r['setting']['noise']:g}; "
        f"fine-tuning rate {imp:.2g}"
    )


def markdown(records: Records) -> str:
    """Everything, for people."""
    if not records:
        return document(["# Networks with a fifth of their weights", "Nothing is measured yet."])
    first = next(iter(records.values()))["identity"]
    return document(
        [
            "# Networks with a fifth of their weights",
            f"{first['networks']} problems of the family `curves` that no meta-training saw, a network each "
            "(CNN with ReLU, 8, 16 and 32 channels); mean and 95 % interval over networks.",
            block(records),
            "## Over λ",
            curves(records),
            "## Settings",
            settings(records),
            "Made by: " + made_by(records),
        ]
    )


def picture(records: Records) -> bytes:
    """Accuracy against zero weights, and against the cut of the L1 norm, for every λ."""
    lines: list[tuple[str, list[Record], dict[str, Any]]] = []
    styles = {"curve": STAR, "l1/sgd": COLOURS["sgd", True], "l1/adam": COLOURS["adam", False]}
    shown = max((size for kind, _, size, _ in all_points(records) if kind == "curve"), default=0)
    shown = shown or max((size for _, _, size, _ in all_points(records)), default=0)
    for kind, title, size, points in all_points(records):
        if size == shown:
            style = {"color": styles["/".join(kind.split("/")[:2])], "marker": "o", "markersize": 4}
            lines.append((title, points, style))
    titles = ["Weights that are zero", "Cut of the L1 norm from the start"]
    with Figures(titles, f"One checkpoint over λ, on problems never seen, N = {shown:,}") as figures:
        for ax, key in zip(figures.axes, ("zeros", "cut"), strict=True):
            for title, points, style in lines:
                x, y = (
                    [mean([v for v in p[name] if v is not None]) for p in points] for name in (key, "score")
                )
                ax.plot(x, y, label=title, **style)
            ax.set(xlabel="%", ylabel="test accuracy %")
            imp = rows_of(records, shown).get("imp") if key == "zeros" else None
            if imp is not None:
                ax.scatter([80], [mean(imp["score"])], color=GREY, marker="s", label="IMP")
        return figures.png("Mean over networks; a point per λ, before magnitudes decide.")
