"""Results files: one JSON with a record per measurement, written after every measurement.

``{"format": 2, "benchmark": NAME, "quick": false, "records": {KEY: RECORD, ...}}``, where a record has

- ``identity``: everything that the result depends on (problem, plan, seeds, digest of weights). A record of
  another identity is measured again, all others are kept, so a run that was stopped goes on.
- ``result``: numbers; NaN and infinity are null.
- ``made``: commit, date, hardware, load, versions and seconds of the measurement.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from amortopt._version import __version__
from amortopt.meta.one_pass.results import commit, hardware
from amortopt.system.files import write_whole

Record: TypeAlias = dict[str, Any]
Records: TypeAlias = Mapping[str, Record]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
FORMAT = 2


class Store:
    """The records of a results file, by key.

    Several processes may write to one file: every write merges with what the others have written meanwhile.

    Args:
        path: The file; read if it exists.
        benchmark: Name of the benchmark.
        quick: Whether the records are of a quick run.
        also: Another results file of the benchmark; a record of it that has the wanted identity is copied
            instead of measured, so that a baseline that was tuned once serves every comparison.
        device: Device of the measurements, for their provenance.

    Raises:
        ValueError: The file is no JSON, or of another format or benchmark, or quick where this is not.
    """

    def __init__(
        self,
        path: Path,
        benchmark: str,
        *,
        quick: bool = False,
        also: Path | None = None,
        device: str = "cpu",
    ) -> None:
        self.path, self.benchmark, self.quick = path, benchmark, quick
        self._commit, self._device = commit(), torch.device(device)
        self.records: dict[str, Record] = read_records(path, benchmark, quick=quick) if path.is_file() else {}
        self._also = read_records(also, benchmark) if also is not None and also.is_file() else {}

    def has(self, key: str, identity: Any) -> bool:
        """Whether there is a record of this identity whose result has no ``error``."""
        wanted = plain(identity)

        def fits(records: Records) -> bool:
            record = records.get(key)
            if record is None or record["identity"] != wanted:
                return False
            return not (isinstance(record["result"], dict) and "error" in record["result"])

        if not fits(self.records) and fits(self._also):
            self._update({key: self._also[key]})
        return fits(self.records)

    def measure(self, key: str, identity: Any, work: Callable[[], Any], *, again: bool = False) -> Any:
        """Return the stored result if there is one, else do the work and write the file.

        Args:
            key: Key of the record.
            identity: What the result depends on.
            work: Returns the result.
            again: Whether to measure even if the result is stored.
        """
        if again or not self.has(key, identity):
            began = time.perf_counter()
            result = plain(work())
            seconds = {"seconds": round(time.perf_counter() - began, 2), "commit": self._commit}
            made = seconds | circumstances(self._device)
            self._update({key: {"identity": plain(identity), "result": result, "made": made}})
        return self.records[key]["result"]

    def drop(self, start: str) -> int:
        """Delete the records whose key begins with ``start``; returns how many."""
        keys = [key for key in self.records if key.startswith(start)]
        self._update(dict.fromkeys(keys))
        return len(keys)

    def _update(self, changes: Mapping[str, Record | None]) -> None:
        """Merge with the file and write it, a record per line; None deletes a record."""
        with _locked(self.path.parent):
            stored = read_records(self.path, self.benchmark, quick=self.quick) if self.path.is_file() else {}
            merged = {**self.records, **stored, **changes}
            self.records = {key: record for key, record in merged.items() if record is not None}
            head = json.dumps({"format": FORMAT, "benchmark": self.benchmark, "quick": self.quick})[:-1]
            lines = [
                f"  {json.dumps(key)}: {json.dumps(self.records[key], allow_nan=False)}"
                for key in sorted(self.records)
            ]
            write_whole(self.path, (head + ', "records": {\n' + ",\n".join(lines) + "\n}}\n").encode())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_records(path: Path, benchmark: str, *, quick: bool | None = None) -> dict[str, Record]:
    """The records of a results file.

    Args:
        path: The file.
        benchmark: Its benchmark.
        quick: Whether the records have to be of a quick run or of a full one; None allows both.

    Raises:
        ValueError: It is no JSON, or of another format or benchmark, or of the other kind of run.
    """
    advice = "delete it, or pass another --out, and measure again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); {advice}") from error
    got = (content.get("benchmark"), content.get("format")) if isinstance(content, dict) else None
    if got != (benchmark, FORMAT):
        raise ValueError(f"{path}: got (benchmark, format) {got}, expected {(benchmark, FORMAT)}; {advice}")
    if quick is not None and content["quick"] != quick:
        kinds = {False: "a full run", True: "a quick run"}
        raise ValueError(f"{path} is of {kinds[not quick]} and this is {kinds[quick]}; pass another --out")
    return content["records"]


def committed(benchmark: str) -> dict[str, Record]:
    """The records that the repository has of a benchmark; empty before its first run."""
    path = RESULTS / f"{benchmark}.json"
    return read_records(path, benchmark, quick=False) if path.is_file() else {}


def plain(value: Any) -> Any:
    """The value as JSON gives it back: dataclasses as dicts, tuples as lists, NaN and infinity as null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def circumstances(device: torch.device | str = "cpu") -> Record:
    """Date, hardware, load and versions of a measurement that is made now."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(torch.device(device)),
        "load": round(os.getloadavg()[0], 2),
        "versions": {
            "amortopt": __version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
