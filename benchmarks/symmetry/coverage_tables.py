"""The table of coverage.py. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import document, machines, table
from benchmarks.symmetry.coverage_cases import CASES

HEAD = (
    "network", "parameters", "groups", "positive / sign / free / none", "scalings", "discrete bits",
    "weights moved %", "without a rule", "extract s", "GB", "eval", "training", "could be larger", "proof s",
)  # fmt: skip
IN_DOCS = (
    "network", "parameters", "positive / sign / free / none", "scalings", "discrete bits", "without a rule",
    "extract s", "GB", "eval", "training",
)  # fmt: skip
MISSING = "–"


def markdown(records: Records) -> str:
    """Everything, for people."""
    parts = ["# Symmetry of whole networks, found by tracing and proved by running"]
    parts += [coverage_table(records), explanation(records)]
    if details := [
        line for case in CASES if case.name in records for line in _details(case.title, records[case.name])
    ]:
        parts += ["## What falls short", "\n".join(details)]
    return document(parts)


def block(records: Records) -> str:
    """The table of the docs: some of the columns."""
    return coverage_table(records, IN_DOCS) + "\n\n" + explanation(records)


def coverage_table(records: Records, columns: Sequence[str] = HEAD) -> str:
    """A row per network."""
    rows = []
    for case in CASES:
        if case.name in records:
            cells = dict.fromkeys(HEAD, MISSING) | _cells(records[case.name]["result"], case.scalings)
            rows.append([(cells | {"network": case.title})[name] for name in columns])
    return table(columns, rows)


def explanation(records: Records) -> str:
    """What the numbers are."""
    return (
        "Groups: those that may be permuted or rescaled, by scale kind. Scalings: independent continuous "
        "directions; where counting by hand gives more, that number stands beside it (?: not counted). "
        "Discrete bits: log2 of the number of permutations and sign flips. Weights moved: share of the "
        "parameters that some element moves or rescales. Without a rule: operations whose groups are taken "
        "as trivial. GB: peak of the process that imports, builds, extracts. Eval, training: largest "
        "relative difference of an output, in float64, between the network and itself at weights moved by "
        "random elements; in training mode also of the running statistics. Could be larger: elements one "
        "step outside the table, of those tried, that left the function as it is. "
        f"{machines(records)}; the seconds of extraction include what torch.export loads when first used."
    )


def _cells(result: Record, by_hand: int | None) -> dict[str, str]:
    """Column -> text, of what was measured: a process that was ended may have measured little."""
    cells = {}
    if "parameters" in result:
        count = result["parameters"]
        cells["parameters"] = f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"
    if "groups" in result:
        kinds = result["groups"].values()
        cells |= {
            "groups": str(sum(kinds)),
            "positive / sign / free / none": " / ".join(map(str, kinds)),
            "weights moved %": f"{100 * result['moved_share']:.1f}",
            "without a rule": ", ".join(sorted(result["without_rule"])) or "none",
            "extract s": f"{result['extract_seconds']:.1f}",
            "GB": f"{result['extract_peak_bytes'] / 1e9:.1f}",
        }
    if gauge := result.get("gauge"):
        scalings = f"{gauge['continuous']:,}"
        if gauge["continuous"] != by_hand:
            scalings = f"{scalings} (?)" if by_hand is None else f"**{scalings}** of {by_hand:,}"
        cells["scalings"] = scalings
        cells["discrete bits"] = f"{gauge['permutation_bits'] + gauge['sign_bits']:,.0f}"
    if proof := result.get("proof"):
        training = [e for e in (proof["errors"].get("training"), proof["statistics"]) if e is not None]
        errors = {"eval": proof["errors"].get("eval"), "training": max(training, default=None)}
        for name, error in errors.items():
            if error is not None:
                cells[name] = f"{error:.0e}" if error <= proof["rtol"] else f"**{error:.0e}**"
        cells["could be larger"] = f"{len(proof['larger'])} of {proof['probes']}"
        cells["proof s"] = f"{proof['seconds']:.0f}"
    else:
        cells["eval"] = f"**{result.get('error', 'not run').partition(':')[0]}**"
    return cells


def _details(title: str, record: Record) -> Iterator[str]:
    """What one should know about a network beyond its row."""
    result = record["result"]
    details = [result["error"]] if "error" in result else []
    details += [f"no rule: {message}" for message in result.get("messages", ())]
    if proof := result.get("proof"):
        details += [f"could be larger: {text}" for text in proof["larger"]]
        details += [f"note: {text}" for text in proof["notes"]]
        if not proof["holds"]:
            details.append("**the proof does not hold**")
    if details:
        yield f"- {title}"
        yield from (f"  - {text}" for text in details)
