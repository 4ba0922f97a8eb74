"""The results file: one json with a record per part, written whole after every part."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import stats

from amortopt._version import __version__
from amortopt.meta.one_pass.results import commit, hardware
from amortopt.system.files import write_whole

FORMAT = 1
BENCHMARK = "sgd_vs_amortized"
FILE = f"{BENCHMARK}.json"
Record: TypeAlias = dict[str, Any]


class Store:
    """Records by key, ``CELL/PART``; each knows what it depends on (its identity) and what made it.

    Args:
        path: The file; read if it is there.
        quick: Whether the records are of a quick run.

    Raises:
        ValueError: The file is no json, or of another format or benchmark, or quick where this is not.
    """

    def __init__(self, path: Path, *, quick: bool = False) -> None:
        self.path, self.quick, self.commit = path, quick, commit()
        self.records: dict[str, Record] = {}
        if path.is_file():
            everything = read_results(path)
            if everything["quick"] != quick:
                kinds = {False: "a full run", True: "a quick run"}
                raise ValueError(
                    f"{path} is of {kinds[everything['quick']]} and this is {kinds[quick]}; pass another "
                    "--out"
                )
            self.records = everything["records"]

    def have(self, key: str, identity: Any) -> bool:
        """Whether the part was measured, by the same plan on the same thing."""
        return key in self.records and self.records[key]["identity"] == plain(identity)

    def measure(self, key: str, identity: Any, work: Callable[[], Any]) -> Any:
        """Do the work, and write the file with its result in it."""
        began = time.perf_counter()
        result = plain(work())
        self.records[key] = {
            "identity": plain(identity),
            "result": result,
            "made": {"seconds": round(time.perf_counter() - began, 2), "commit": self.commit}
            | circumstances(),
        }
        self.write()
        return result

    def write(self) -> None:
        """Write the file whole; a record per line, so that versions of it can be compared."""
        lines = [
            f"  {json.dumps(key)}: {json.dumps(self.records[key], allow_nan=False)}"
            for key in sorted(self.records)
        ]
        head = json.dumps({"format": FORMAT, "benchmark": BENCHMARK, "quick": self.quick})[1:-1]
        text = "{" + head + ', "records": {\n' + ",\n".join(lines) + "\n}}\n"
        write_whole(self.path, text.encode())


def read_results(path: Path) -> dict[str, Any]:
    """A whole results file.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is no json, or of another format or benchmark.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; run benchmarks/{BENCHMARK}.py first")
    try:
        everything = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is no JSON ({error}); delete it and run benchmarks/{BENCHMARK}.py"
        ) from error
    found = (everything.get("benchmark"), everything.get("format")) if isinstance(everything, dict) else None
    if found != (BENCHMARK, FORMAT):
        raise ValueError(
            f"{path}: got (benchmark, format) {found}, expected {(BENCHMARK, FORMAT)}; delete it, or pass "
            f"another --out, and run benchmarks/{BENCHMARK}.py"
        )
    return everything


def plain(value: Any) -> Any:
    """The value as json gives it back: dataclasses as dicts, tuples as lists, NaN and infinity as null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def circumstances() -> Record:
    """What a record was made by and on."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": hardware(torch.device("cpu")),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": {
            "amortopt": __version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def values(tensor: torch.Tensor, digits: int) -> list[float | None]:
    """A tensor [B] as numbers with so many decimals; None for NaN and infinity."""
    return [round(v, digits) if math.isfinite(v) else None for v in tensor.double().tolist()]


def summary(per_seed: Sequence[Sequence[float | None]]) -> Record:
    r"""Mean and 95 % interval over meta-training seeds and networks.

    With values a[s, b] of seeds s = 1..S on the same networks b = 1..B, seed means a[s, .] and network means
    a[., b], the interval is :math:`\bar a \pm t_\nu \sqrt{v_S + v_B}`. There, :math:`v_S =
    \operatorname{var}_s(a_{s\cdot})/S` (0 for one seed), :math:`v_B = \operatorname{var}_b(a_{\cdot b})/B`,
    t is Student's 97.5 % quantile and :math:`\nu = (v_S+v_B)^2 / (v_S^2/(S-1) + v_B^2/(B-1))` (Welch and
    Satterthwaite).

    Args:
        per_seed: S sequences of B values; None is a value that is not finite.

    Returns:
        ``mean``, ``half`` (half-width of the interval), ``max`` (largest of a network, mean over seeds) and
        ``seeds`` (means per seed); None where a value is not finite, ``half`` also for one network.
    """
    array = np.array([[math.nan if v is None else v for v in row] for row in per_seed], dtype=np.float64)
    seeds, networks = array.shape
    result = {
        "mean": float(array.mean()),
        "half": None,
        "max": float(array.max(1).mean()),
        "seeds": array.mean(1).tolist(),
    }
    if networks > 1:
        over_seeds = float(array.mean(1).var(ddof=1)) / seeds if seeds > 1 else 0.0
        over_networks = float(array.mean(0).var(ddof=1)) / networks
        total = over_seeds + over_networks
        weights = over_networks**2 / (networks - 1) + (over_seeds**2 / (seeds - 1) if seeds > 1 else 0.0)
        freedom = total**2 / weights if weights else 1.0
        result["half"] = float(stats.t.ppf(0.975, freedom)) * math.sqrt(total)
    return plain(result)
