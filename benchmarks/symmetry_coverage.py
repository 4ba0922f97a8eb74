"""Symmetry of whole networks: what extraction finds, what it costs, and whether it holds.

    python benchmarks/symmetry_coverage.py                  # everything -> benchmarks/results
    python benchmarks/symmetry_coverage.py --quick          # small ones -> runs/symmetry_coverage_quick
    python benchmarks/symmetry_coverage.py --only vit_b_16  # this, whatever the results file has
    python benchmarks/symmetry_coverage.py --readme         # measures nothing: tables, README

The networks stand in _coverage_cases.py. Each runs in a process of its own, with a time limit. The results
file is written after every network; records that it has of the same network, settings and code of
amortopt/symmetry are kept, so a run that was stopped goes on with the same command.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _coverage_report as report
import torch
from _coverage_cases import CASES, Case, case
from _readme import rewrite_readme
from comparison.store import circumstances, plain
from jsonargparse import ArgumentParser

import amortopt.symmetry
from amortopt.meta.one_pass.results import commit
from amortopt.system.files import write_whole

ROOT = Path(__file__).parents[1]
FORMAT = 1
BENCHMARK = "symmetry_coverage"
PROGRAM = Path(__file__).with_name("_coverage_measure.py")


class Store:
    """Records by case, each with what it depends on (its identity) and what made it.

    Args:
        path: The file; read if it is there.

    Raises:
        ValueError: The file is no JSON, or of another format or benchmark.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.commit = path, commit()
        self.records: dict[str, dict[str, Any]] = read_results(path) if path.is_file() else {}

    def have(self, name: str, identity: dict[str, Any]) -> bool:
        """Whether the case was measured to its end, with the same settings and code."""
        record = self.records.get(name)
        return record is not None and record["identity"] == plain(identity) and "proof" in record["result"]

    def add(self, name: str, identity: dict[str, Any], result: dict[str, Any], seconds: float) -> None:
        """Add a record, and write the file with it."""
        made = {"seconds": round(seconds, 1), "commit": self.commit} | circumstances()
        self.records[name] = {"identity": plain(identity), "result": plain(result), "made": made}
        known = [each.name for each in CASES if each.name in self.records]
        lines = [f"  {json.dumps(key)}: {json.dumps(self.records[key], allow_nan=False)}" for key in known]
        head = json.dumps({"format": FORMAT, "benchmark": BENCHMARK})[1:-1]
        write_whole(self.path, ("{" + head + ', "records": {\n' + ",\n".join(lines) + "\n}}\n").encode())


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """The records of a results file.

    Raises:
        ValueError: It is no JSON, or of another format or benchmark.
    """
    try:
        everything = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); delete it and measure again") from error
    found = (everything.get("benchmark"), everything.get("format")) if isinstance(everything, dict) else None
    if found != (BENCHMARK, FORMAT):
        raise ValueError(
            f"{path}: got (benchmark, format) {found}, expected {(BENCHMARK, FORMAT)}; delete it, or pass "
            "another --out, and measure again"
        )
    return everything["records"]


def code_digest() -> str:
    """Digest of what extracts and proves: records of other code are measured anew."""
    folder = Path(amortopt.symmetry.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def measure(each: Case, settings: dict[str, Any], limit: float) -> dict[str, Any]:
    """The stages of a case, run in a process of its own.

    Args:
        each: The network.
        settings: ``threads``, ``elements`` and ``probes``.
        limit: Seconds after which it is stopped.

    Returns:
        The fields of the stages that ended, and ``"error"`` if not all did.
    """
    request = json.dumps({"case": each.name} | settings)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM.resolve()), request],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    ended = None
    try:
        out, errors = process.communicate(timeout=limit)
        if process.returncode:
            said = " ".join(errors.split())[-500:]
            ended = f"ended with code {process.returncode}: {said}"
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        ended = f"not done after {limit:.0f} s"
    except BaseException:
        process.kill()
        raise
    result: dict[str, Any] = {}
    for line in out.splitlines():
        if line.startswith("{") and line.endswith("}"):
            result |= json.loads(line)
    return result if ended is None else result | {"error": ended}


def progress_line(each: Case, result: dict[str, Any], seconds: float) -> str:
    """What a person wants to see of a case when it is done."""
    parts = [f"{each.title}:"]
    if "groups" in result:
        unknown = sum(result["without_rule"].values())
        parts.append(
            f"{sum(result['groups'].values())} groups, {100 * result['moved_share']:.1f} % moved, "
            f"{unknown} operations without a rule, {result['extract_seconds']:.1f} s,"
        )
    if "proof" in result:
        proof = result["proof"]
        worst = max([*proof["errors"].values(), proof["statistics"] or 0.0], default=0.0)
        verdict = "holds" if proof["holds"] else "DOES NOT HOLD"
        parts.append(f"{verdict} to {worst:.0e}, {len(proof['larger'])} could be larger,")
    if "error" in result:
        parts.append(f"{result['error'][:200]},")
    return " ".join([*parts, f"{seconds:.0f} s in all"])


def run(store: Store, cases: Sequence[Case], settings: dict[str, Any], *, limit: float, again: bool) -> None:
    """Measure what the results file lacks, one network after the other."""
    code = code_digest()
    for position, each in enumerate(cases):
        identity = {"shape": each.shape, "code": code} | settings
        if not again and store.have(each.name, identity):
            print(f"{position + 1}/{len(cases)} {each.title}: kept", flush=True)
            continue
        started = time.perf_counter()
        result = measure(each, settings, limit)
        seconds = time.perf_counter() - started
        store.add(each.name, identity, result, seconds)
        print(f"{position + 1}/{len(cases)} {progress_line(each, plain(result), seconds)}", flush=True)


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0], exit_on_error=True)
    names = ", ".join(each.name for each in CASES)
    parser.add_argument("--quick", action="store_true", help="The small ones, with few probes.")
    parser.add_argument("--only", type=str, nargs="*", default=[], help=f"Measure these anew: {names}.")
    parser.add_argument("--again", action="store_true", help="Measure also what the results file has.")
    parser.add_argument("--out", type=Path | None, help="Folder for the results.")
    parser.add_argument("--threads", type=int, default=2, help="Threads of each network's process.")
    parser.add_argument("--elements", type=int, default=3, help="Random elements of a proof.")
    parser.add_argument("--probes", type=int, default=64, help="Elements outside the spec to try.")
    parser.add_argument("--limit", type=float, default=900.0, help="Seconds per network.")
    parser.add_argument("--readme", action="store_true", help="Only make tables and README anew.")
    given = parser.parse_args(args)
    torch.set_num_threads(given.threads)
    default = ROOT / "runs" / f"{BENCHMARK}_quick" if given.quick else ROOT / "benchmarks" / "results"
    try:
        store = Store((given.out or default) / f"{BENCHMARK}.json")
        cases = [case(name) for name in given.only] or [c for c in CASES if c.quick or not given.quick]
        if not given.readme:
            probes = min(given.probes, 8) if given.quick else given.probes
            settings = {"threads": given.threads, "elements": given.elements, "probes": probes}
            run(store, cases, settings, limit=given.limit, again=given.again or bool(given.only))
        write_whole(store.path.with_suffix(".md"), report.markdown(store.records).encode())
        if given.readme:
            rewrite_readme(ROOT / "README.md", report.readme_block(store.records))
        print(f"{len(store.records)} networks; {store.path}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
