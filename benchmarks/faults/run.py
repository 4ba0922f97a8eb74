"""What a meta-training run survives, and whether the same run twice is the same.

    python benchmarks/faults                # 3 min on one core; needs root for the full disk
    python benchmarks/faults --quick        # 3 kills; results go to runs/
    python benchmarks/faults --parts disk   # only the full disk
    python benchmarks/faults --report       # measures nothing: the table

A tiny recipe saves its state after every step. ``kills``: the run is killed (SIGKILL) at random moments
after it has saved, and goes on with ``--ckpt_path last``; temporary files are on another file system where
there is one. ``disk``: it writes to a file system of its own that is full after the first state, and goes on
when there is room. ``twice``: the same recipe and seed, once with a limit of time and beside a busy process.
In all, the weights and the optimizer's moments at the end are compared bit by bit with those of a run that
nothing disturbed, and the exit status of every process is recorded.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from amortopt.meta.state import LAST
from benchmarks.faults.runs import ended, finish, kill, same, start, state, succeeded, write_recipe
from benchmarks.harness.command import Part, command_line, measure, parse, results, write_report
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import document, machines, made_by, table

BENCHMARK = "faults"
KILLS, STEPS = 30, 300
LONGEST = 0.15
"""Seconds, at most, between a saved state and the kill."""
FAULTS = {
    "kills": "killed at a random moment",
    "disk": "disk full",
    "twice": "the same seed a second time, beside a busy process",
}
"""Key of a record -> what it is called in the table."""


def kills(count: int, steps: int, advance: Any = None) -> Record:
    """Kill a run again and again, then let it end."""
    moment = random.Random(0)
    shared = Path("/dev/shm")
    if shared.is_dir():
        os.environ["TMPDIR"] = str(shared)  # a move from there to the run's folder is a copy
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        root = Path(folder)
        recipe = write_recipe(root, steps)
        exits = [finish(recipe, root / "whole")]
        runs = root / "killed"
        saved = runs / "tiny" / LAST
        seen: list[int] = []
        writing = 0
        for _ in range(count):
            more = ("--ckpt_path", "last") if saved.exists() else ()
            run = kill(start(recipe, runs, *more), saved, moment.uniform(0, LONGEST))
            if run.status != "SIGKILL":
                exits.append(succeeded(run))  # it came to its end before
                break
            exits.append(run.status)
            writing += bool(list(saved.parent.glob(f".{LAST}.*")))
            seen.append(int(state(runs)["global_step"]))  # raises if it is cut off
        if int(state(runs)["global_step"]) < steps:
            exits.append(finish(recipe, runs, "--ckpt_path", "last"))
        return {
            "kills": len(seen),
            "exits": Counter(exits),
            "while_writing": writing,
            "steps_at_kills": seen,
            "steps": steps,
            "same": same(state(root / "whole"), state(runs)),
            "leftovers": len(list(saved.parent.glob(".*"))),
        }


def disk(steps: int, advance: Any = None) -> Record:
    """Fill the disk under a run, make room, let it end."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        root = Path(folder)
        recipe, place = write_recipe(root, steps), root / "disk"
        exits = [finish(recipe, root / "whole")]
        size = (root / "whole" / "tiny" / LAST).stat().st_size
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={int(1.5 * size)}", "tmpfs", str(place)]
        if done := subprocess.run(mount, capture_output=True, text=True, check=False).stderr:
            return {"error": f"a file system cannot be mounted here: {done.strip()}"}
        try:
            full = ended(start(recipe, place))
            exits.append(full.status)
            if full.status == "0":
                return {"error": "the run came to its end although its disk should have been full"}
            step = int(state(place)["global_step"])
            subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
            leftovers = len(list((place / "tiny").glob(".*")))
            exits.append(finish(recipe, place, "--ckpt_path", "last"))
            equal = same(state(root / "whole"), state(place))
        finally:
            subprocess.run(["umount", str(place)], check=True)
    return {
        "error_of_run": full.error.replace(str(place), "RUNS"), "step": step, "steps": steps, "same": equal,
        "leftovers": leftovers, "exits": Counter(exits),
    }  # fmt: skip


def twice(steps: int, advance: Any = None) -> Record:
    """The same recipe and seed, the second time with a limit of time and beside another process."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        root = Path(folder)
        recipe = write_recipe(root, steps)
        exits = [finish(recipe, root / "one")]
        busy = start(recipe, root / "other", "--seed_everything", "1")
        exits.append(finish(recipe, root / "two", "--trainer.max_time", "00:01:00:00"))
        exits.append(succeeded(ended(busy)))
        one, two, other = (state(root / name) for name in ("one", "two", "other"))
        return {
            "steps": steps, "same": same(one, two), "another_seed_differs": not same(one, other),
            "exits": Counter(exits),
        }  # fmt: skip


def markdown(records: Records) -> str:
    """The table."""
    return document(["# Faults", block(records), *(["Made by: " + made_by(records)] if records else [])])


def block(records: Records) -> str:
    """A row per fault."""
    head = ("fault", "how often", "exit status of every process", "left behind", "weights at the end")
    results = {name: record["result"] for name, record in records.items()}
    rows: list[list[str]] = []
    for name, r in results.items():
        if "error" in r:
            continue
        often, left = "once", f"{r['leftovers']} files" if "leftovers" in r else ""
        if name == "kills":
            often = f"{r['kills']} times, {r['while_writing']} of them while a state was written"
        elif name == "disk":
            often = f"once, after step {r['step']}"
        rows.append([FAULTS[name], often, exits(r), left, "equal to the bit" if r["same"] else "**differ**"])
    steps = sorted({r["steps"] for r in results.values() if "steps" in r})
    text = (
        f"Meta-training of {' or '.join(map(str, steps))} steps with a state saved after every step, "
        "continued with `--ckpt_path last` and compared with a run that nothing disturbed: weights and the "
        "optimizer's moments. Every state that was there after a fault could be read. Exit statuses are of "
        "all processes, undisturbed and continued runs among them: 0 of a run that came to its end, 1 of one "
        "that raised an error. "
        f"{machines(records)}."
    )
    parts = [table(head, rows, "lllll"), text]
    if message := results.get("disk", {}).get("error_of_run"):
        parts.append(f"What the run says on a full disk: `{message}`")
    return "\n\n".join(parts)


def exits(r: Record) -> str:
    """Exit statuses of a record, such as ``30 x SIGKILL, 2 x 0``."""
    return ", ".join(f"{count} x {status}" for status, count in sorted(r["exits"].items(), reverse=True))


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(__doc__, parts=("kills", "disk", "twice"), threads=1)
    options = parse(parser, args)
    count, steps = (3, 40) if options.quick else (KILLS, STEPS)
    identity = {"steps": steps, "longest": LONGEST}
    parts = [
        Part("kills", {**identity, "kills": count}, partial(kills, count, steps)),
        Part("disk", identity, partial(disk, min(steps, 40))),
        Part("twice", identity, partial(twice, min(steps, 40))),
    ]
    with results(BENCHMARK, options) as store:
        if not options.report:
            measure(store, [part for part in parts if part.key in options.parts], again=options.again)
        write_report(store, markdown(store.records))
