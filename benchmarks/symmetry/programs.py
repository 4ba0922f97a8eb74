"""Random programs, as tests/symmetry/test_random_networks.py has them, but more; no claim may be wrong."""

from __future__ import annotations

import hashlib
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from amortopt.symmetry import extract
from amortopt.testing import assert_function_preserved
from benchmarks.harness.command import Part
from benchmarks.harness.store import ROOT, Record, Records
from benchmarks.harness.tables import document, machines, table
from benchmarks.symmetry.coverage import code_digest
from tests.symmetry.programs import Program, refused, settled, shows

BENCHMARK = "symmetry_programs"
_AT_ONCE = 100


def parts(count: int) -> list[Part]:
    """A part per hundred programs; those of other code or other steps are measured anew."""
    digest = hashlib.sha256()
    for file in sorted(Path(ROOT / "tests" / "symmetry" / "programs").glob("*.py")):
        digest.update(file.read_bytes())
    identity = {"code": code_digest(), "steps": digest.hexdigest()[:16]}
    return [
        Part(f"{start:06d}", {**identity, "programs": _AT_ONCE}, partial(_measured, start))
        for start in range(0, count, _AT_ONCE)
    ]


def _measured(start: int, advance: Any = None) -> Record:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    started = time.perf_counter()
    result: dict[str, Any] = {
        "held": 0,
        "show_nothing": 0,
        "refused": 0,
        "movable": 0,
        "unsound": [],
        "failed": [],
    }
    try:
        for seed in range(start, start + _AT_ONCE):
            torch.manual_seed(seed)
            program = Program([1000 * seed + step for step in range(4 + 2 * (seed % 5))]).eval()
            x = torch.randn(3, 3, 6)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if not shows(program, x):
                    result["show_nothing"] += 1
                    continue
                try:
                    spec = extract(program, x)
                    assert_function_preserved(
                        program, x, spec, low=0.3, high=3, rtol=1e-6, control=False, drawn=True
                    )
                except AssertionError:
                    if settled(program, x):
                        result["unsound"].append(seed)
                    else:
                        result["show_nothing"] += 1
                except Exception as error:
                    if refused(program, error):
                        result["refused"] += 1
                        continue
                    result["failed"].append([seed, f"{type(error).__name__}: {error}"[:300]])
                else:
                    result["held"] += 1
                    result["movable"] += any(not group.trivial for group in spec.groups)
    finally:
        torch.set_default_dtype(before)
    return result | {"seconds": round(time.perf_counter() - started, 1)}


def block(records: Records) -> str:
    """The sums: the table of the docs."""
    results = [record["result"] for record in records.values()]
    keys = ("held", "show_nothing", "refused", "movable")
    total = {key: sum(r.get(key, 0) for r in results) for key in keys}
    lists = {key: [entry for r in results for entry in r[key]] for key in ("unsound", "failed")}
    programs = sum(total[key] for key in keys[:3]) + sum(map(len, lists.values()))
    row = [programs, total["held"], total["movable"], len(lists["unsound"]), len(lists["failed"])]
    row += [total["refused"], total["show_nothing"]]
    head = ("programs", "claim holds", "of these with symmetry", "unsound", "failed", "refused")
    head += ("output shows nothing",)
    text = (
        "Programs drawn at random from the steps of tests/symmetry/programs, which call all but six of the "
        "operations that have a rule; every claim is checked with three random elements, in float64, to a "
        "relative 1e-6, with random numbers of eval mode drawn from one seed. Refused: numbers are computed "
        "with how many elements a mask holds, or a branch depends on it. Output shows nothing: not "
        "finite, zero, the same for every input, decided by rounding, as that of a comparison of equals, or "
        "none for another number of examples. "
        f"{machines(records)}."
    )
    return table(head, [[f"{n:,}" for n in row]]) + "\n\n" + text


def markdown(records: Records) -> str:
    """Everything, for people."""
    results = [record["result"] for record in records.values()]
    faults = [f"- unsound: {seed}" for result in results for seed in result["unsound"]]
    faults += [f"- {seed}: {text}" for result in results for seed, text in result["failed"]]
    return document(["# Symmetry of random programs", block(records), "\n".join(faults)])
