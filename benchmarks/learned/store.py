"""The results file: one json with a record per part, written whole after every part."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from comparison.store import circumstances, plain

from amortopt.meta.one_pass.results import commit, hardware
from amortopt.system.files import write_whole

FORMAT = 1
BENCHMARK = "learned_optimizers"
FILE = f"{BENCHMARK}.json"
Record: TypeAlias = dict[str, Any]


class Store:
    """Records by key; each knows what it depends on (its identity) and what made it.

    Args:
        path: The file; read if it is there.
        quick: Whether the records are of a quick run.
        also: Another such file; its records are taken where they are of the same identity, so that baselines
            that were tuned once serve every rule.
        device: That new records are made on.

    Raises:
        ValueError: The file is no results file of this benchmark, or quick where this is not.
    """

    def __init__(
        self, path: Path, *, quick: bool = False, also: Path | None = None, device: str = "cpu"
    ) -> None:
        self.path, self.quick, self.commit = path, quick, commit()
        self._hardware = hardware(torch.device(device))
        self.records: dict[str, Record] = _read(path, quick=quick) if path.is_file() else {}
        self._also = _read(also, quick=None) if also is not None and also.is_file() else {}

    def have(self, key: str, identity: Any) -> bool:
        """Whether the part was measured on the same thing."""
        wanted = plain(identity)
        if key not in self.records or self.records[key]["identity"] != wanted:
            if key not in self._also or self._also[key]["identity"] != wanted:
                return False
            self.records[key] = self._also[key]
            self.write()
        return True

    def measure(self, key: str, identity: Any, work: Callable[[], Any]) -> None:
        """Do the work, and write the file with its result in it."""
        began = time.perf_counter()
        result = plain(work())
        if self.path.is_file():  # another process may have measured other parts meanwhile
            self.records = self.records | _read(self.path, quick=self.quick)
        self.records[key] = {
            "identity": plain(identity),
            "result": result,
            "made": {"seconds": round(time.perf_counter() - began, 2), "commit": self.commit}
            | circumstances()
            | {"hardware": self._hardware},
        }
        self.write()

    def drop(self, start: str) -> int:
        """Forget the records whose key begins so; returns how many."""
        gone = [key for key in self.records if key.startswith(start)]
        for key in gone:
            del self.records[key]
        if gone:
            self.write()
        return len(gone)

    def write(self) -> None:
        """Write the file whole; a record per line, so that versions of it can be compared."""
        lines = [
            f"  {json.dumps(key)}: {json.dumps(self.records[key], allow_nan=False)}"
            for key in sorted(self.records)
        ]
        head = json.dumps({"format": FORMAT, "benchmark": BENCHMARK, "quick": self.quick})[1:-1]
        text = "{" + head + ', "records": {\n' + ",\n".join(lines) + "\n}}\n"
        write_whole(self.path, text.encode())


def _read(path: Path, *, quick: bool | None) -> dict[str, Record]:
    advice = f"delete it, or pass another --out, and run benchmarks/{BENCHMARK}.py"
    try:
        everything = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); {advice}") from error
    found = (everything.get("benchmark"), everything.get("format")) if isinstance(everything, dict) else None
    if found != (BENCHMARK, FORMAT):
        raise ValueError(f"{path}: got (benchmark, format) {found}, expected {(BENCHMARK, FORMAT)}; {advice}")
    if quick is not None and everything["quick"] != quick:
        kinds = {False: "a full run", True: "a quick run"}
        raise ValueError(f"{path} is of {kinds[not quick]} and this is {kinds[quick]}; pass another --out")
    return everything["records"]
