"""The table of models.py. Measures nothing."""

from __future__ import annotations

from statistics import median

from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import document, machines, table
from benchmarks.symmetry.library import LIBRARIES

HEAD = (
    "library", "networks", "extracted", "proof holds", "proof fails", "median % movable", "without a rule",
    "median seconds",
)  # fmt: skip


def markdown(records: Records) -> str:
    """Everything, for people."""
    parts = ["# Symmetry of the networks of libraries", summary(records), explanation(records)]
    parts += ["## Networks", _networks(records)]
    if faults := [line for name, record in records.items() for line in _faults(name, record["result"])]:
        parts += ["## What falls short", "\n".join(faults)]
    return document(parts)


def block(records: Records) -> str:
    """The table of the docs: a row per library."""
    return summary(records) + "\n\n" + explanation(records)


def summary(records: Records) -> str:
    """A row per library, and one of all."""
    rows = []
    for library in [*LIBRARIES, ""]:
        results = [
            r["result"] for name, r in records.items() if name.startswith(f"{library}_" * bool(library))
        ]
        if not results:
            continue
        proofs = [r["proof"]["holds"] for r in results if "proof" in r]
        shares = [100 * r["moved_share"] for r in results if "moved_share" in r]
        seconds = [r["extract_seconds"] for r in results if "extract_seconds" in r]
        unknown = sorted({op for r in results for op in r.get("without_rule", ())})
        rows.append(
            [
                library or "**all**",
                str(len(results)),
                str(len(shares)),
                str(sum(proofs)),
                str(len(proofs) - sum(proofs)),
                f"{median(shares):.1f}" if shares else "–",
                ", ".join(unknown) or "none",
                f"{median(seconds):.1f}" if seconds else "–",
            ]
        )
    return table(HEAD, rows)


def explanation(records: Records) -> str:
    """What the numbers are."""
    return (
        "Networks as the libraries give them, of small configurations with random weights. Extracted: a "
        "table was found. Proof holds: the network computes the same, in float64, at weights moved by random "
        "elements; a proof that fails would be a wrong claim. Movable: share of the parameters that some "
        "element moves or rescales. Tied: share of those that nothing can move, since all of their axes are "
        "along inputs, outputs (many networks return their residual stream) or fixed positions, or since "
        "forward does not read them. Without a rule: operations whose groups are taken as trivial. Seconds: "
        "of extraction, on a machine that does other work beside. "
        f"{machines(records)}."
    )


def _networks(records: Records) -> str:
    rows = []
    for name, record in records.items():
        result, versions = record["result"], record["identity"]["version"]
        cells = [name.replace("_", " ", 1), versions, f"{result.get('parameters', 0) / 1e3:.0f} k"]
        proof = result.get("proof")
        cells.append(f"{100 * result['moved_share']:.1f}" if "moved_share" in result else "–")
        ends = result.get("unmoved")
        cells.append("–" if ends is None else f"{100 * (ends['tied'] + ends['unused']):.1f}")
        cells.append("–" if proof is None else "holds" if proof["holds"] else "**does not hold**")
        cells.append("–" if proof is None else f"{len(proof['larger'])} of {proof['probes']}")
        cells += [
            f"{result[key]:.1f}" if key in result else "–" for key in ("extract_seconds", "proof_seconds")
        ]
        rows.append(cells)
    head = (
        "network",
        "version",
        "parameters",
        "% movable",
        "% tied",
        "proof",
        "could be larger",
        "extract s",
        "proof s",
    )
    return table(head, rows)


def _faults(name: str, result: Record) -> list[str]:
    faults = [result["error"]] if "error" in result else []
    faults += [f"no rule: {message}" for message in result.get("messages", ())]
    held = result.get("unmoved", {}).get("held", {})
    faults += [
        f"{100 * share:.1f} % does not move, along {origin}" for origin, share in held.items() if share > 0.02
    ]
    if proof := result.get("proof"):
        faults += [f"could be larger: {text}" for text in proof["larger"]]
        if not proof["holds"]:
            faults.append("**the proof does not hold**")
    return [f"- {name}", *(f"  - {text}" for text in faults)] if faults else []
