"""Learned optimizers against tuned ones: SGD with momentum, Adam, AdamW and Muon, on many problems.

    python benchmarks/optimizers            # everything -> benchmarks/results/learned_optimizers.*; 80 min
    python benchmarks/optimizers --quick    # little of everything -> runs/learned_optimizers_quick; 5 min
    python benchmarks/optimizers --parts search             # how the numbers of unf-small were found; 6 min
    python benchmarks/optimizers --parts drawn              # how its default rate was chosen; 10 min
    python benchmarks/optimizers --parts learned --rivals FOLDER ...   # what a network adds; 10 min
    python benchmarks/optimizers --parts baselines          # needs no rule
    python benchmarks/optimizers --parts cost --threads 1   # what a step costs, against Adam's; 2 min
    python benchmarks/optimizers --parts baselines --baselines nadam
    python benchmarks/optimizers --parts suite              # networks that no meta-training saw; see suite.py
    python benchmarks/optimizers --rules FOLDER --only mlp cnn --out runs/try
    python benchmarks/optimizers --rivals runs/nfn/release runs/deepset/release runs/mlp/release
    python benchmarks/optimizers --report    # measures nothing: tables and pictures

Times are of one core. Rules are names of shipped ones or folders of releases; rivals are rules with other
metanets that were trained at the same budget. Tuned baselines in benchmarks/results serve every rule, also
with another --out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from amortopt import list_shipped
from benchmarks.harness.command import Part, command_line, measure, parse, results, write_report
from benchmarks.harness.store import RESULTS, Store
from benchmarks.optimizers import pictures, tables
from benchmarks.optimizers.cost import cost_parts
from benchmarks.optimizers.drawn import drawn_parts
from benchmarks.optimizers.learned import learned_parts
from benchmarks.optimizers.parts import Entry, all_parts, muon, read_rules
from benchmarks.optimizers.search import search_parts
from benchmarks.optimizers.settings import QUICK, QUICK_SETTINGS, SETTINGS, Plan, Setting
from benchmarks.optimizers.suite import suite_parts
from benchmarks.optimizers.suite_tasks import TASKS

BENCHMARK = "learned_optimizers"
QUICK_TASKS = ("resnet", "friedman", "logistic")
PARTS = ("search", "drawn", "learned", "baselines", "rules", "suite", "cost")


def chosen_settings(only: Sequence[str], *, quick: bool) -> list[Setting]:
    """The settings, the known tasks first."""
    labels = list(only) or (list(QUICK_SETTINGS) if quick else list(SETTINGS))
    return [setting for label, setting in SETTINGS.items() if label in labels]


def parts_of(options: Any, store: Store) -> list[Part]:
    """Everything that the options ask for.

    Raises:
        ValueError: There is no rule to measure, or two have one name.
    """
    sources = list_shipped("rule") if options.rules is None else options.rules
    entries: list[Entry] = []
    if {"rules", "suite", "cost"} & set(options.parts):
        entries = [muon(), *read_rules(options.rivals, "rival"), *read_rules(sources, "main")]
        if len(entries) == 1 and {"rules", "cost"} & set(options.parts) and "baselines" not in options.parts:
            raise ValueError("rules: got none, expected at least one; pass --rules with names or folders")
        names = [entry.name for entry in entries]
        if len(set(names)) < len(names):
            raise ValueError(
                f"rules: got the names {', '.join(names)}, expected all different; train with --name"
            )
    known = [name for name in options.only if name in SETTINGS]
    wanted = {"baselines", "rules"} & set(options.parts) and (known or not options.only)
    settings = chosen_settings(known, quick=options.quick) if wanted else []
    for moved in (*(setting.inner for setting in settings), *(entry.rule for entry in entries)):
        moved.to(options.device)
    plan = QUICK if options.quick else Plan()
    if options.baselines:
        plan = replace(plan, baselines=tuple(options.baselines))
    parts = search_parts(quick=options.quick) if "search" in options.parts and not options.only else []
    if "drawn" in options.parts and not options.only:
        parts += drawn_parts(quick=options.quick)
    if "learned" in options.parts and not options.only:
        parts += learned_parts(options.rivals, quick=options.quick)
    parts += all_parts(settings, entries, plan, store, options.parts)
    tasks = [name for name in options.only if name in TASKS]
    if "suite" in options.parts and (tasks or not options.only):
        parts += suite_parts(
            entries, quick=options.quick, only=tasks or (QUICK_TASKS if options.quick else ())
        )
    for entry in [entry for entry in entries if entry.role == "main" and "cost" in options.parts][:1]:
        parts += cost_parts(entry.rule.cpu(), quick=options.quick)
    return parts


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(__doc__, parts=PARTS, only=[*SETTINGS, *TASKS])
    parser.add_argument("--rules", nargs="*", help="names or folders; by default the shipped ones")
    parser.add_argument("--rivals", nargs="*", default=[], help="rules of other metanets, likewise")
    parser.add_argument("--baselines", nargs="*", choices=tables.OPTIMIZERS, help="in place of the plan's")
    parser.add_argument("--drop", nargs="*", default=[], help="rules to delete from the results, by name")
    parser.add_argument("--device", default="cpu", help="device of the base networks and rules")
    options = parse(parser, args, [*SETTINGS, *TASKS])
    also = RESULTS / f"{BENCHMARK}.json"
    with results(BENCHMARK, options, also=also, device=options.device) as store:
        for name in options.drop:
            print(f"{name}: {store.drop(f'rule/{name}/')} records deleted")
        if not options.report:
            measure(store, parts_of(options, store), again=options.again)
        if not store.records:
            raise ValueError(f"{store.path} holds no results to report; measure first, without --report")
        text = tables.markdown(store.records, quick=store.quick)
        write_report(store, text, pictures.all_pictures(store.records, quick=store.quick))
