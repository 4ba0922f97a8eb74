"""The table of symmetry_coverage.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from _coverage_cases import CASES

Record = dict[str, Any]
BEGIN, END = "<!-- coverage:begin -->", "<!-- coverage:end -->"
HEAD = (
    "network", "parameters", "groups", "positive / sign / free / none", "scalings", "discrete bits",
    "weights moved %", "without a rule", "extract s", "GB", "eval", "training", "could be larger", "proof s",
)  # fmt: skip
IN_README = (
    "network", "parameters", "positive / sign / free / none", "scalings", "discrete bits", "without a rule",
    "extract s", "GB", "eval", "training",
)  # fmt: skip
_MINUS = "–"


def markdown(records: Mapping[str, Record]) -> str:
    """Everything, for people."""
    results = _in_order(records)
    parts = ["# Symmetry of whole networks, found by tracing and proved by running", table(results)]
    parts.append(explanation(records))
    if details := [line for result in results for line in _details(result)]:
        parts += ["## What falls short", "\n".join(details)]
    return "\n\n".join(parts) + "\n"


def readme_block(records: Mapping[str, Record]) -> str:
    """What stands between the README's marks, marks included: some of the columns."""
    shown = table(_in_order(records), IN_README)
    return "\n".join([BEGIN, shown, "", explanation(records), END])


def table(results: Sequence[Record], columns: Sequence[str] = HEAD) -> str:
    """A row per network."""
    lines = [_line(columns), "|---|" + "---:|" * (len(columns) - 1)]
    for result in results:
        cells: dict[str, str] = dict(zip(HEAD, _row(result), strict=True))
        lines.append(_line(cells[name] for name in columns))
    return "\n".join(lines)


def explanation(records: Mapping[str, Record]) -> str:
    """What the numbers are."""
    machines = sorted({record["made"]["hardware"] for record in records.values()})
    return (
        "Groups: those that may be permuted or rescaled, by scale kind. Scalings: independent continuous "
        "directions; where counting by hand gives more, that number stands beside it (?: not counted). "
        "Discrete bits: log2 of the number of permutations and sign flips. Weights moved: share of the "
        "parameters that some element moves or rescales. Without a rule: operations whose groups are taken "
        "as trivial. GB: peak of the process that imports, builds, extracts. Eval, training: largest "
        "relative difference of an output, in float64, between the network and itself at weights moved by "
        "random elements; in training mode also of the running statistics. Could be larger: elements one "
        "step outside the table, of those tried, that left the function as it is. "
        f"{'; '.join(machines)}; the seconds of extraction include what torch.export loads when first used."
    )


def _in_order(records: Mapping[str, Record]) -> list[Record]:
    return [
        {"title": each.title, "by_hand": each.scalings} | records[each.name]["result"]
        for each in CASES
        if each.name in records
    ]


def _row(result: Record) -> Iterable[str]:
    proof, gauge, groups = (result.get(key) for key in ("proof", "gauge", "groups"))
    yield result["title"]
    yield _count(result.get("parameters"))
    yield str(sum(groups.values())) if groups else _MINUS
    yield " / ".join(str(groups[kind]) for kind in groups) if groups else _MINUS
    yield _scalings(gauge["continuous"], result["by_hand"]) if gauge else _MINUS
    yield f"{gauge['permutation_bits'] + gauge['sign_bits']:,.0f}" if gauge else _MINUS
    share = result.get("moved_share")
    yield _MINUS if share is None else f"{100 * share:.1f}"
    unknown = result.get("without_rule")
    yield _MINUS if unknown is None else ", ".join(sorted(unknown)) or "none"
    yield _number(result.get("extract_seconds"), ".1f")
    peak = result.get("extract_peak_bytes")
    yield _MINUS if peak is None else f"{peak / 1e9:.1f}"
    if proof:
        training = [proof["errors"].get("training"), proof["statistics"]]
        yield _error(proof["errors"].get("eval"), proof["rtol"])
        yield _error(max((e for e in training if e is not None), default=None), proof["rtol"])
        yield f"{len(proof['larger'])} of {proof['probes']}"
        yield _number(proof["seconds"], ".0f")
    else:
        yield from (f"**{result.get('error', 'not run').partition(':')[0]}**", _MINUS, _MINUS, _MINUS)


def _details(result: Record) -> Iterable[str]:
    """What one should know about a network beyond its row."""
    found = []
    if "error" in result:
        found.append(result["error"])
    found += [f"no rule: {message}" for message in result.get("messages", ())]
    proof = result.get("proof")
    if proof:
        found += [f"could be larger: {text}" for text in proof["larger"]]
        found += [f"note: {text}" for text in proof["notes"]]
        if not proof["holds"]:
            found.append("**the proof does not hold**")
    if found:
        yield f"- {result['title']}"
        yield from (f"  - {text}" for text in found)


def _scalings(found: int, by_hand: int | None) -> str:
    if found == by_hand:
        return f"{found:,}"
    return f"{found:,} (?)" if by_hand is None else f"**{found:,}** of {by_hand:,}"


def _error(value: float | None, rtol: float) -> str:
    if value is None:
        return _MINUS
    return f"{value:.0e}" if value <= rtol else f"**{value:.0e}**"


def _number(value: float | None, form: str) -> str:
    return _MINUS if value is None else format(value, form)


def _count(value: int | None) -> str:
    if value is None:
        return _MINUS
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
