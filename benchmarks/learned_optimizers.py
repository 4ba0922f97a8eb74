"""Learned optimizers against tuned ones: SGD with momentum, Adam and AdamW, on problems seen and unseen.

    python benchmarks/learned_optimizers.py            # everything -> benchmarks/results
    python benchmarks/learned_optimizers.py --quick    # little of everything -> runs/learned_optimizers_quick
    python benchmarks/learned_optimizers.py --parts baselines    # needs no rule
    python benchmarks/learned_optimizers.py --rules FOLDER --only mlp cnn --out runs/try
    python benchmarks/learned_optimizers.py --rivals runs/nfn/release runs/deepset/release runs/mlp/release
    python benchmarks/learned_optimizers.py --readme    # measures nothing: tables, pictures, README

Rules are names of shipped ones or folders of releases; rivals are rules with other metanets that were trained
at the same budget. The results file is written after every part, and parts that it has already, of the same
plan and the same weights, are kept: a run that was stopped goes on, and tuned baselines serve every rule
(those in benchmarks/results also with another --out).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import learned_step_cost
from jsonargparse import ArgumentParser
from learned import pictures, tables
from learned.parts import Entry, Part, baseline_parts, read_rules, rule_part
from learned.settings import QUICK, QUICK_UNSEEN, ROOT, SEEN, SETTINGS, Plan, Setting
from learned.store import BENCHMARK, FILE, Store
from learned.training import Starts
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from amortopt import list_shipped
from amortopt.system.files import write_whole
from amortopt.system.memory import keep_freed_memory

RESULTS = ROOT / "benchmarks" / "results"


def chosen_settings(only: Sequence[str], *, quick: bool) -> list[Setting]:
    """The settings, those that were seen in meta-training first.

    Raises:
        ValueError: One is asked for that there is not.
    """
    if unknown := [label for label in only if label not in SETTINGS]:
        raise ValueError(f"only: got {', '.join(unknown)}, expected some of {', '.join(SETTINGS)}")
    labels = (
        list(only) or [*(s.label for s in SEEN), *QUICK_UNSEEN] if quick else list(only) or list(SETTINGS)
    )
    return [setting for label, setting in SETTINGS.items() if label in labels]


def all_parts(
    settings: Sequence[Setting], entries: Sequence[Entry], plan: Plan, store: Store, kinds: Sequence[str]
) -> list[Part]:
    """Everything to measure, in an order in which nothing misses what it depends on."""
    parts: list[Part] = []
    for setting in settings:
        if "baselines" in kinds:
            parts += baseline_parts(setting, plan, store)
        if "rules" in kinds:
            parts += [rule_part(entry, setting, plan) for entry in entries]
    return parts


def measure(parts: Sequence[Part], store: Store, *, again: bool) -> None:
    """Measure what the results file lacks, one part after the other."""
    settings = {part.setting.label: part.setting for part in parts}
    seconds = {label: speed(setting) for label, setting in settings.items()}
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns) as bar:
        job = bar.add_task("", total=sum(part.cost * seconds[part.setting.label] for part in parts) or 1e-9)
        for part in parts:
            rate, done = seconds[part.setting.label], bar.tasks[0].completed
            bar.update(job, description=part.key)
            identity = part.identity()
            if again or not store.have(part.key, identity):
                advance = partial(_advance, bar, job, rate)
                store.measure(part.key, identity, partial(part.work, advance))
            bar.update(job, completed=done + part.cost * rate)


def _advance(bar: Progress, job: TaskID, rate: float, network_steps: int) -> None:
    bar.advance(job, network_steps * rate)


def speed(setting: Setting) -> float:
    """Seconds of a step of one network among others, as of now."""
    starts = Starts(setting.inner, "speed", 4)
    x, y = starts.stream()()
    setting.inner.losses_and_grads(starts.flat, x, y)
    began = time.perf_counter()
    setting.inner.losses_and_grads(starts.flat, x, y)
    return (time.perf_counter() - began) / starts.seeds


def report(store: Store) -> str:
    """Write tables and pictures beside the results file; returns the tables."""
    text = tables.markdown(store.records, step_cost(store), quick=store.quick)
    write_whole(store.path.with_suffix(".md"), text.encode())
    for suffix, png in pictures.all_pictures(store.records, quick=store.quick).items():
        write_whole(store.path.with_name(f"{BENCHMARK}{suffix}.png"), png)
    return text


def step_cost(store: Store) -> str:
    """The table of learned_step_cost.py beside the results; empty if there is none."""
    path = store.path.with_name("learned_step_cost.md")
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0], exit_on_error=True)
    parser.add_argument(
        "--rules", type=str, nargs="*", default=None, help="Names or folders; by default the shipped ones."
    )
    parser.add_argument(
        "--rivals", type=str, nargs="*", default=[], help="Rules of other metanets, likewise."
    )
    parser.add_argument("--quick", action="store_true", help="Little of everything, in under five minutes.")
    parser.add_argument("--out", type=Path | None, help="Folder for the results.")
    parser.add_argument("--parts", type=Literal["baselines", "rules", "cost", "all"], default="all")
    parser.add_argument("--only", type=str, nargs="*", default=[], help=f"Settings: {', '.join(SETTINGS)}.")
    parser.add_argument(
        "--again", action="store_true", help="Measure also what the results file has already."
    )
    parser.add_argument("--drop", type=str, nargs="*", default=[], help="Rules to be forgotten, by name.")
    parser.add_argument("--device", type=str, default="cpu", help="Of the base networks and rules.")
    parser.add_argument("--readme", action="store_true", help="Only make tables, pictures and README anew.")
    given = parser.parse_args(args)
    keep_freed_memory()
    out = given.out or (ROOT / "runs" / f"{BENCHMARK}_quick" if given.quick else RESULTS)
    try:
        store = Store(out / FILE, quick=given.quick, also=RESULTS / FILE, device=given.device)
        for name in given.drop:
            print(f"{name}: {store.drop(f'rule/{name}/')} records dropped")
        if not given.readme:
            _measure(store, given)
        if not store.records:
            raise ValueError(f"{store.path} holds no results to report; measure first, without --readme")
        print(report(store))
        if given.readme:
            block = tables.readme_block(store.records, step_cost(store), quick=store.quick)
            tables.rewrite_readme(ROOT / "README.md", block)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _measure(store: Store, given: Any) -> None:
    kinds = ("baselines", "rules", "cost") if given.parts == "all" else (given.parts,)
    entries: list[Entry] = []
    sources = list_shipped("rule") if given.rules is None else given.rules
    if "rules" in kinds:
        entries = read_rules(given.rivals, "rival") + read_rules(sources, "main")
        if not entries and kinds == ("rules",):
            raise ValueError("rules: got none, expected at least one; pass --rules with names or folders")
        names = [entry.name for entry in entries]
        if len(set(names)) < len(names):
            raise ValueError(
                f"rules: got the names {', '.join(names)}, expected all different; train with --name"
            )
    settings = chosen_settings(given.only, quick=given.quick)
    for moved in (*(setting.inner for setting in settings), *(entry.rule for entry in entries)):
        moved.to(given.device)
    parts = all_parts(settings, entries, QUICK if given.quick else Plan(), store, kinds)
    began = time.perf_counter()
    measure(parts, store, again=given.again)
    if "cost" in kinds and sources and (given.again or not step_cost(store)):
        quick = ["--quick"] if given.quick else []
        learned_step_cost.main([*quick, "--rule", sources[0], "--out", str(store.path.parent)])
    print(f"{len(parts)} parts, {(time.perf_counter() - began) / 60:.1f} min; {store.path}")


if __name__ == "__main__":
    main()
