"""Table of the digits that are read from image networks. Measures nothing."""

from __future__ import annotations

from benchmarks.harness.numbers import mean, summary
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import document, made_by, plus_minus, table

TITLES = {
    "scalegmn_b": "ScaleGMN-B: scale-equivariant, messages both ways",
    "scalegmn": "ScaleGMN: scale-equivariant, messages forward",
    "twin": "its symmetry-broken twin: permutations only",
    "unf": "UNF: permutations only",
    "mlp": "MLP on canonicalised weights",
    "statistics": "statistics of the weights",
}
FITS = {"independent": "independent fits", "one-pass": "one-pass fits"}
PUBLISHED = {"scalegmn_b": "96.6"}
OTHERS = {"NG-GNN": "91.4", "DWS": "85.7"}
"""Accuracy in %, on 60,000 other networks of as many images, as Kalogeropoulos et al. 2024 report it."""


def runs(records: Records, zoo: str, reader: str) -> list[Record]:
    """Records of the runs that count, by seed."""
    start = f"{zoo}/{reader}/run/"
    return [record for key, record in sorted(records.items()) if key.startswith(start)]


def accuracy(records: Records, zoo: str, reader: str) -> str:
    """Mean test accuracy in % with its interval over seeds."""
    found = runs(records, zoo, reader)
    if not found:
        return "not measured"
    return plus_minus(summary([[100 * run["result"]["accuracy"] for run in found]]), 1)


def block(records: Records) -> str:
    """The table of the docs."""
    zoos = [zoo for zoo in FITS if f"{zoo}/zoo" in records]
    readers = [name for name in TITLES if any(runs(records, zoo, name) for zoo in zoos)]
    head = ["test accuracy, %", *(FITS[zoo] for zoo in zoos), "published, 60,000 networks"]
    rows = [
        [TITLES[name], *(accuracy(records, zoo, name) for zoo in zoos), PUBLISHED.get(name, "")]
        for name in readers
    ]
    rows += [[name, *[""] * len(zoos), value] for name, value in OTHERS.items()]
    seeds = sorted({len(runs(records, zoo, name)) for zoo in zoos for name in readers} - {0})
    interval = ", ± 95 % over seeds" if seeds[-1] > 1 else ", one seed"
    counts = "; ".join(
        f"{FITS[zoo]}: {n['train']} networks to learn from, {n['test']} to test"
        for zoo in zoos
        for n in [records[f"{zoo}/zoo"]["result"]["networks"]]
    )
    note = f"{records[f'{zoos[0]}/zoo']['identity']['images']} images; {counts}{interval}. Chance is 10 %."
    return table(head, rows) + f"\n\n{note}"


def markdown(records: Records) -> str:
    """Everything, for people."""
    parts = ["# Which digit an image network shows, from its weights", block(records)]
    for zoo in FITS:
        if f"{zoo}/zoo" not in records:
            continue
        about = records[f"{zoo}/zoo"]["result"]
        family, psnr = about["family"], about["psnr"]
        rows = []
        for name in TITLES:
            found = runs(records, zoo, name)
            if found:
                identity, results = found[0]["identity"], [run["result"] for run in found]
                budget = identity["budget"]
                rows.append(
                    [
                        TITLES[name],
                        accuracy(records, zoo, name),
                        f"{100 * mean([r['val_accuracy'] for r in results]):.1f}",
                        str(len(found)),
                        f"{budget['steps']} of {budget['batch']}",
                        f"{identity['learning_rate']:g}",
                        str(results[0]["parameters"]),
                        f"{mean([r['cpu_seconds'] for r in results]):.0f}",
                    ]
                )
        widths = "-".join(map(str, family["widths"]))
        head = ["reader", "test, % (95 % over seeds)", "val, %", "seeds", "steps, networks each"]
        head += ["learning rate", "parameters", "CPU seconds per run"]
        parts += [
            f"## {FITS[zoo].capitalize()}",
            f"SIREN {widths}, w0 {family['w0']:g}; {about['networks']['train']} networks to train on, "
            f"{about['networks']['val']} to choose by, {about['networks']['test']} to test. PSNR "
            f"{psnr['mean']:.1f} dB in the mean, {psnr['min']:.1f} at least.",
            table(head, rows, "lrrrrrrr"),
        ]
    parts += ["Made by: " + made_by(records)]
    return document(parts)
