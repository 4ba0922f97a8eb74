"""Table of the digits that are read from image networks. Measures nothing."""

from __future__ import annotations

from benchmarks.harness.store import Records
from benchmarks.harness.tables import document, made_by, table
from benchmarks.weights.reader_tables import TITLES, all_rows, measured, scored, seeds

FITS = {"independent": "independent fits", "one-pass": "one-pass fits"}
PUBLISHED = {"scalegmn_b": "96.6"}
OTHERS = {"NG-GNN": "91.4", "DWS": "85.7"}
"""Accuracy in %, on 60,000 other networks of as many images, as Kalogeropoulos et al. 2024 report it."""

START = (
    "ScaleGMN and its twin start as the network's own pass at inputs that they learn, except in rows that "
    "say otherwise."
)


def block(records: Records) -> str:
    """The table of the docs."""
    zoos = [zoo for zoo in FITS if f"{zoo}/zoo" in records]
    head = ["test accuracy, %", *(FITS[zoo] for zoo in zoos), "published, 60,000 networks"]
    rows = [
        [
            TITLES[name],
            *(scored(records, zoo, name, "accuracy", unit=100, digits=1) for zoo in zoos),
            PUBLISHED.get(name, ""),
        ]
        for name in measured(records, zoos)
    ]
    rows += [[name, *[""] * len(zoos), value] for name, value in OTHERS.items()]
    counts = "; ".join(
        f"{FITS[zoo]}: {n['train']} networks to learn from, {n['test']} to test"
        for zoo in zoos
        for n in [records[f"{zoo}/zoo"]["result"]["networks"]]
    )
    images = records[f"{zoos[0]}/zoo"]["identity"]["images"]
    return (
        table(head, rows)
        + f"\n\n{images} images; {counts}, {seeds(records, zoos)}. Chance is 10 %.\n\n{START}"
    )


def markdown(records: Records) -> str:
    """Everything, for people."""
    parts = ["# Which digit an image network shows, from its weights", block(records)]
    for zoo in FITS:
        if f"{zoo}/zoo" not in records:
            continue
        about = records[f"{zoo}/zoo"]["result"]
        family, psnr = about["family"], about["psnr"]
        widths = "-".join(map(str, family["widths"]))
        parts += [
            f"## {FITS[zoo].capitalize()}",
            f"SIREN {widths}, w0 {family['w0']:g}; {about['networks']['train']} networks to train on, "
            f"{about['networks']['val']} to choose by, {about['networks']['test']} to test. PSNR "
            f"{psnr['mean']:.1f} dB in the mean, {psnr['min']:.1f} at least.",
            all_rows(records, zoo, "accuracy", unit=100, digits=1),
        ]
    parts += ["Made by: " + made_by(records)]
    return document(parts)
