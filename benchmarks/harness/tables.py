"""Markdown tables and the numbers in them. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.harness.store import Record, Records


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A Markdown table.

    Args:
        head: Names of the columns.
        rows: Cells, as many as there are columns.
        align: ``l`` or ``r`` per column; by default the first column is left-aligned and all others right.
    """
    align = align or "l" + "r" * (len(head) - 1)
    rule = "|" + "".join("---:|" if side == "r" else "---|" for side in align)
    return "\n".join([_line(head), rule, *(_line(row) for row in rows)])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def bold(cells: Iterable[str]) -> list[str]:
    """The cells in bold, empty ones as they are."""
    return [f"**{cell}**" if cell else "" for cell in cells]


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def plus_minus(summary: Record, digits: int, *, sign: str = "", missing: str = "not finite") -> str:
    """Mean and interval of a summary.

    Args:
        summary: Of [summary][benchmarks.harness.numbers.summary].
        digits: Decimals.
        sign: ``"+"`` to write the sign of positive means.
        missing: Text for a mean that is not finite.
    """
    if summary["mean"] is None:
        return missing
    half = summary["half"]  # of numbers that are all the same it is zero
    return f"{summary['mean']:{sign}.{digits}f}" + (f" ± {half:.{digits}f}" if half else "")


def document(parts: Iterable[str]) -> str:
    """Paragraphs, tables and lists, one below the other."""
    return "\n\n".join(parts) + "\n"


def any_of(numbers: Iterable[object]) -> str:
    """The different numbers, such as ``64`` or ``3 or 5``."""
    return " or ".join(str(number) for number in sorted(set(numbers), key=float)) or "none"  # type: ignore[arg-type]


def machines(records: Records) -> str:
    """Hardware of all records."""
    return "; ".join(sorted({record["made"]["hardware"] for record in records.values()}))


def made_by(records: Records) -> str:
    """Hardware, torch, commits and dates of all records, in one sentence."""
    made = [record["made"] for record in records.values()]
    torch = sorted({m["versions"]["torch"] for m in made})
    hashes = {str(m["commit"]) for m in made}
    commits = sorted(name[:12] + "-dirty" * name.endswith("-dirty") for name in hashes)
    days = sorted({m["date"][:10] for m in made})
    loads = [m["load"] for m in made if m["load"] is not None]
    load = f"; load average up to {max(loads):.1f}" if loads else ""
    return (
        f"{machines(records)}; torch {', '.join(torch)}; commit {', '.join(commits)}; "
        f"{' to '.join(dict.fromkeys([days[0], days[-1]]))}{load}."
    )
