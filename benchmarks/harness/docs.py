"""Write the tables of README.md and docs/ anew from the committed results.

    python benchmarks/harness/docs.py            # writes benchmarks/results/*.md and every block
    python benchmarks/harness/docs.py --check    # writes nothing; fails if something is outdated

A block stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``, in README.md or any Markdown file of
docs/, where NAME is one of ``BLOCKS``. A few seconds; measures nothing.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from amortopt.system.files import write_whole
from benchmarks.harness.store import RESULTS, ROOT, committed

BLOCKS = {
    "one-pass-short": ("one_shot", "one_shot.summary"),
    "one-pass": ("one_shot", "one_shot.tables"),
    "network": ("learned_optimizers", "optimizers.learned"),
    "learned": ("learned_optimizers", "optimizers.tables"),
    "coverage": ("symmetry_coverage", "symmetry.coverage_tables"),
    "gauge": ("gauge_freedom", "symmetry.gauge"),
    "align": ("align", "align.run"),
    "fleet": ("fleet", "fleet.run"),
    "pruning": ("pruning", "pruning.tables"),
    "models": ("symmetry_models", "symmetry.models_tables"),
    "programs": ("symmetry_programs", "symmetry.programs"),
    "tiny-rnn": ("tiny_rnn_zoo", "weights.tables"),
    "inr-classes": ("inr_classes", "weights.inr_tables"),
    "inr-editing": ("inr_editing", "weights.editing_tables"),
    "faults": ("faults", "faults.run"),
    "generalisation": ("generalisation", "weights.generalisation_tables"),
}
"""Name of a block -> benchmark, and the module below benchmarks/ whose ``block(records)`` makes it.

The last module of a benchmark has its ``markdown(records)`` too.
"""
REPORTS = {benchmark: module for benchmark, module in BLOCKS.values()} | {
    "throughput": "cost.throughput",
    "unf_layer": "cost.layer",
}
"""Benchmark -> module whose ``markdown(records)`` makes benchmarks/results/BENCHMARK.md."""


def marks(name: str) -> tuple[str, str]:
    """First and last line of a block."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def block(name: str) -> str:
    """A block of the committed results, marks included."""
    benchmark, module = BLOCKS[name]
    text = importlib.import_module(f"benchmarks.{module}").block(committed(benchmark))
    begin, end = marks(name)
    return f"{begin}\n{text}\n{end}"


def report(benchmark: str) -> str:
    """The whole report on the committed results of a benchmark."""
    return importlib.import_module(f"benchmarks.{REPORTS[benchmark]}").markdown(committed(benchmark))


def places(root: Path) -> dict[Path, list[str]]:
    """Markdown file -> names of the blocks that it holds.

    Raises:
        ValueError: A block begins and does not end.
    """
    held: dict[Path, list[str]] = {}
    for path in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for name in BLOCKS:
            begin, end = marks(name)
            if begin in text:
                if end not in text.partition(begin)[2]:
                    raise ValueError(f"{path}: got {begin} without {end} after it; add the line {end}")
                held.setdefault(path, []).append(name)
    return held


def renewed(text: str, name: str, new: str) -> str:
    """The text with another block in the place of the one of that name."""
    begin, end = marks(name)
    before, _, rest = text.partition(begin)
    return before + new + rest.partition(end)[2]


def outdated(root: Path = ROOT) -> dict[Path, str]:
    """Files that differ from the results -> what they should be."""
    wanted = {RESULTS / f"{benchmark}.md": report(benchmark) for benchmark in REPORTS}
    blocks = {name: block(name) for name in BLOCKS}
    for path, names in places(root).items():
        text = path.read_text(encoding="utf-8")
        for name in names:
            text = renewed(text, name, blocks[name])
        wanted[path] = text
    return {
        path: text
        for path, text in wanted.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    }


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if something is outdated")
    options = parser.parse_args(args)
    changes = outdated()
    for path, text in changes.items():
        print(f"{path.relative_to(ROOT)}: {'outdated' if options.check else 'written'}")
        if not options.check:
            write_whole(path, text.encode())
    if options.check and changes:
        sys.exit("run python benchmarks/harness/docs.py and commit what it writes")


if __name__ == "__main__":
    main()
