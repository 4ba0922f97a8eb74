"""How long something takes: repeated, in turns, in a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.harness.store import ROOT, Record


class Seconds(NamedTuple):
    """Time of one call: by the clock, and of the processor in the whole process."""

    wall: float
    cpu: float


def timed(work: Callable[[], object], calls: int = 1) -> list[Seconds]:
    """Time of every call."""
    times = []
    for _ in range(calls):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        times.append(Seconds(time.perf_counter() - wall, time.process_time() - cpu))
    return times


def in_turns(
    works: Mapping[str, Callable[[], object]], rounds: int, *, seconds: float = 0.0
) -> dict[str, list[float]]:
    """Time several things in turns, so that a change of the machine's load meets all of them.

    Args:
        works: Name -> what to call.
        rounds: Least number of rounds; in each everything is called once.
        seconds: Further rounds follow until so much time has passed.

    Returns:
        Name -> seconds of every call, by the clock.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    end = time.perf_counter() + seconds
    while rounds > 0 or time.perf_counter() < end:
        for name, work in works.items():
            times[name].append(timed(work)[0].wall)
        rounds -= 1
    return times


def best_of(work: Callable[[], object], rounds: int) -> float:
    """Shortest time in seconds, after one call that does not count."""
    work()
    return min(second.wall for second in timed(work, rounds))


def in_process(module: str, request: Record, *, limit: float | None = None) -> Record:
    """Run a module as a program in a fresh process.

    Args:
        module: Its name; it reads the request, as JSON, from its first argument, and prints lines of JSON.
        request: The request.
        limit: Seconds after which the process is ended.

    Returns:
        The fields of all lines, also of those before a failure; after one there is an ``"error"``.
    """
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
    process = subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(request)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    failure: dict[str, str] = {}
    try:
        out, errors = process.communicate(timeout=limit)
        if process.returncode:
            last = " ".join(errors.split())[-500:]
            failure = {"error": f"ended with code {process.returncode}: {last}"}
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        failure = {"error": f"not done after {limit:.0f} s"}
    except BaseException:
        process.kill()
        raise
    result: dict[str, Any] = {}
    for line in out.splitlines():
        if line.startswith("{") and line.endswith("}"):
            result |= json.loads(line)
    return result | failure
