"""The command line that all benchmarks have, and the loop over what they measure."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from amortopt.system.files import write_whole
from amortopt.system.memory import keep_freed_memory
from benchmarks.harness.store import RESULTS, ROOT, Store

Advance: TypeAlias = Callable[[float], None]
"""Called with the work that was done since, in the unit of [Part][benchmarks.harness.command.Part]'s cost."""


@dataclass(frozen=True)
class Part:
    """Something to measure.

    Attributes:
        key: Key of its record.
        identity: What the result depends on, or a function that returns it when earlier parts are done.
        work: Measures it; called with a function that moves the progress bar.
        cost: Expected work, for the progress bar, in any unit that all parts share.
    """

    key: str
    identity: Any
    work: Callable[[Advance], Any]
    cost: float = 1.0


def command_line(
    doc: str | None, *, parts: Sequence[str] = (), only: Sequence[str] = (), threads: int | None = None
) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share.

    Args:
        doc: The benchmark's purpose, commands and measured times: what ``--help`` prints.
        parts: Values of ``--parts``.
        only: Values of ``--only``.
        threads: Default of ``--threads``; None for torch's.
    """
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="little of everything; results go to runs/")
    parser.add_argument("--out", type=Path, help="folder for the results")
    if parts:
        parser.add_argument("--parts", nargs="*", choices=parts, default=list(parts), help="what to measure")
    if only:
        parser.add_argument("--only", nargs="*", default=[], help=f"some of: {', '.join(only)}")
    parser.add_argument("--again", action="store_true", help="measure also what the results file has already")
    parser.add_argument("--threads", type=int, default=threads or torch.get_num_threads())
    parser.add_argument(
        "--report", action="store_true", help="measure nothing, only make tables and pictures anew"
    )
    return parser


def parse(
    parser: argparse.ArgumentParser, args: Sequence[str] | None, only: Sequence[str] = ()
) -> argparse.Namespace:
    """Parse and check the shared options, and set torch's threads and the allocator accordingly."""
    options = parser.parse_args(args)
    if options.threads < 1:
        parser.error(f"--threads: got {options.threads}, expected at least 1")
    if only and (unknown := [name for name in options.only if name not in only]):
        parser.error(f"--only: got {', '.join(unknown)}, expected some of {', '.join(only)}")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    return options


@contextmanager
def results(benchmark: str, options: argparse.Namespace, **more: Any) -> Iterator[Store]:
    """The results file that the options name; wrong arguments and files end the program with one line."""
    folder = options.out or (ROOT / "runs" / f"{benchmark}_quick" if options.quick else RESULTS)
    try:
        yield Store(folder / f"{benchmark}.json", benchmark, quick=options.quick, **more)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def measure(store: Store, parts: Sequence[Part], *, again: bool = False) -> None:
    """Measure what the results file lacks, one part after the other, with a progress bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    kept = 0
    with Progress(*columns) as bar:
        job = bar.add_task("", total=sum(part.cost for part in parts))
        done = 0.0
        for part in parts:
            bar.update(job, description=part.key)
            identity = part.identity() if callable(part.identity) else part.identity
            kept += not again and store.has(part.key, identity)
            store.measure(
                part.key, identity, lambda p=part: p.work(lambda work: bar.advance(job, work)), again=again
            )
            done += part.cost
            bar.update(job, completed=done)
    print(
        f"{store.path}: {kept} of {len(parts)} parts were there already and are kept; --again measures anew"
    )


def write_report(store: Store, text: str, pictures: Mapping[str, bytes] | None = None) -> None:
    """Write tables and pictures beside the results file, and print the tables.

    Args:
        store: The results.
        text: Markdown.
        pictures: Suffix of the file's name, such as ``_time`` -> PNG.
    """
    write_whole(store.path.with_suffix(".md"), text.encode())
    for suffix, png in (pictures or {}).items():
        write_whole(store.path.with_name(f"{store.benchmark}{suffix}.png"), png)
    print(text)
