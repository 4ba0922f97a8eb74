"""Whole networks: their symmetry is extracted, counted and proved, each in a separate process."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import amortopt.symmetry
from benchmarks.harness.command import Part
from benchmarks.harness.store import Record
from benchmarks.harness.timing import in_process
from benchmarks.symmetry.coverage_cases import CASES

BENCHMARK = "symmetry_coverage"
PROGRAM = "benchmarks.symmetry.coverage_measure"


def code_digest() -> str:
    """Digest of what extracts and proves, alignment aside: records of other code are measured anew."""
    folder = Path(amortopt.symmetry.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(set(folder.rglob("*.py")) - set(folder.glob("alignment/*"))):
        digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def parts(options: Any) -> list[Part]:
    """A part per network that the options ask for."""
    probes = min(options.probes, 8) if options.quick else options.probes
    settings = {"threads": options.threads, "elements": options.elements, "probes": probes}
    code = code_digest()
    return [
        Part(
            case.name,
            {"shape": case.shape, "code": code} | settings,
            partial(_measured, case.name, settings, options.limit),
        )
        for case in CASES
        if (case.name in options.only if options.only else case.quick or not options.quick)
    ]


def _measured(name: str, settings: Record, limit: float, advance: object = None) -> Record:
    return in_process(PROGRAM, {"case": name} | settings, limit=limit)
