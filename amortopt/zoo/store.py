"""Files of a zoo: written whole or not at all, checked when read, never unpickled.

- ``zoo.json``: format, recipe, names and shapes of the params
- ``shard-00001-of-00016.safetensors``: params of up to ``shard_size`` networks, stacked
- ``shard-00001-of-00016.json``: the shard's table and checksums; written last, so it says "finished"
- ``metadata.csv``: all tables in one, for people; derived, never read

Every file is written under a temporary name and renamed, so a process that dies leaves no half-written file
under a final name, and processes that build different shards of one zoo need no lock.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from safetensors import SafetensorError

from amortopt._types import Params
from amortopt.system.files import write_whole
from amortopt.zoo.config import Table, differing_keys

FORMAT = 1
_MANIFEST = "zoo.json"
_AGAIN = "finished shards are kept: make room (or mend access), then run the same command again"
_ADVICE = "run `amortopt zoo build` again with the same recipe and folder: it rebuilds damaged shards"


@dataclass(frozen=True)
class Manifest:
    """What a zoo folder is meant to hold.

    Args:
        config: Recipe as plain json values.
        shapes: Parameter name -> shape of one network's parameter.
        fingerprint: Checksum of the recipe, by which a shard knows its zoo.
    """

    config: dict[str, Any]
    shapes: dict[str, list[int]]
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", _sha256(_canonical(self.config)))

    @property
    def shards(self) -> int:
        """Number of shard files."""
        return math.ceil(self.config["count"] / self.config["shard_size"])

    def bounds(self, shard: int) -> tuple[int, int]:
        """First and one past the last network index of a shard (shards count from 1)."""
        size = self.config["shard_size"]
        return (shard - 1) * size, min(shard * size, self.config["count"])

    def stem(self, shard: int) -> str:
        """File name of a shard, without its suffix."""
        return f"shard-{shard:05d}-of-{self.shards:05d}"

    def finished(self, folder: Path) -> list[int]:
        """Shards whose files are there."""
        files = (".json", ".safetensors")
        numbers = range(1, self.shards + 1)
        return [n for n in numbers if all((folder / f"{self.stem(n)}{end}").is_file() for end in files)]

    def missing(self, folder: Path) -> list[int]:
        """Shards that are not finished."""
        return sorted(set(range(1, self.shards + 1)) - set(self.finished(folder)))


def open_folder(folder: Path, manifest: Manifest) -> Manifest:
    """Make ``folder`` a zoo folder of this recipe, or check that it is one; returns its manifest.

    Raises:
        ValueError: If it holds a zoo of another recipe, or files that are no zoo.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out: {folder} is a file, expected a folder; choose another one")
    # Looked at before the manifest: another process may be writing that one right now.
    occupied = folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())
    if (folder / _MANIFEST).is_file():
        stored = read_manifest(folder)
        if differing := differing_keys(stored.config, manifest.config):
            raise ValueError(
                f"out: {folder} holds a zoo of another recipe:\n  "
                + "\n  ".join(differing)
                + "\nchoose another folder, or build with the recipe of this one"
            )
        return stored
    if occupied:
        raise ValueError(f"out: {folder} is not empty and holds no zoo; choose a new or an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "config": manifest.config, "shapes": manifest.shapes}
    write_whole(folder / _MANIFEST, (json.dumps(content, indent=2) + "\n").encode(), _AGAIN)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read what a folder is meant to hold.

    Raises:
        FileNotFoundError: If it is no zoo folder.
        ValueError: If its manifest is damaged or of another format.
    """
    path = folder / _MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"folder: {folder} holds no zoo ({_MANIFEST} is missing); build one with `amortopt zoo build`"
        )
    try:
        content = json.loads(path.read_text())
        version, manifest = content["format"], Manifest(content["config"], content["shapes"])
        if "task" in manifest.config:  # what earlier versions called the problem
            renamed = {"problem" if key == "task" else key: v for key, v in manifest.config.items()}
            manifest = Manifest(renamed, manifest.shapes, manifest.fingerprint)
        _ = manifest.shards
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); restore it or build the zoo anew in another folder"
        ) from error
    if version != FORMAT:
        raise ValueError(
            f"{path}: got format {version}, expected {FORMAT}; build the zoo anew with this version"
        )
    return manifest


def write_shard(
    folder: Path, manifest: Manifest, shard: int, params: Params, table: Table, **notes: str
) -> None:
    """Write a shard's params [n, ...], then its record: the table and ``notes`` (device, versions).

    Raises:
        OSError: If the disk is full or the folder cannot be written; nothing half-written is left.
    """
    data = safetensors.torch.save({name: p.cpu().contiguous() for name, p in params.items()})
    # Json has no infinity and no NaN: a diverged network's loss is null.
    rows: dict[str, list[Any]] = {
        name: [None if isinstance(v, float) and not math.isfinite(v) else v for v in column.tolist()]
        for name, column in table.items()
    }
    record = {
        "recipe_sha256": manifest.fingerprint,
        "params_sha256": _sha256(data),
        "table_sha256": _sha256(_canonical(rows)),
        "notes": notes,
        "table": rows,
    }
    stem = manifest.stem(shard)
    write_whole(folder / f"{stem}.safetensors", data, _AGAIN)
    write_whole(folder / f"{stem}.json", (json.dumps(record) + "\n").encode(), _AGAIN)


def read_shard(folder: Path, manifest: Manifest, shard: int) -> tuple[Params, Table]:
    """Params [n, ...] of a shard, on the CPU, and its table, checked against record and manifest.

    Raises:
        ValueError: If a file was truncated, altered, or belongs to another zoo.
    """
    record, table = _read_record(folder, manifest, shard)
    path = folder / f"{manifest.stem(shard)}.safetensors"
    data = path.read_bytes()
    if _sha256(data) != record.get("params_sha256"):
        raise ValueError(f"{path} was truncated or altered (its sha256 is not the recorded one); {_ADVICE}")
    try:
        params = safetensors.torch.load(data)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}); {_ADVICE}") from error
    start, stop = manifest.bounds(shard)
    got = {name: list(p.shape) for name, p in params.items()}
    expected = {name: [stop - start, *shape] for name, shape in manifest.shapes.items()}
    if got != expected:
        raise ValueError(f"{path}: got shapes {got}, expected {expected}; {_ADVICE}")
    return {name: params[name] for name in manifest.shapes}, table


def _read_record(folder: Path, manifest: Manifest, shard: int) -> tuple[dict[str, Any], Table]:
    path = folder / f"{manifest.stem(shard)}.json"
    try:
        record = json.loads(path.read_text())
        rows = record["table"]
        intact = record["table_sha256"] == _sha256(_canonical(rows))
        intact = intact and rows["index"] == list(range(*manifest.bounds(shard)))
        of_this_zoo = record["recipe_sha256"] == manifest.fingerprint
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {_ADVICE}") from error
    if not of_this_zoo:
        raise ValueError(f"{path} belongs to a zoo of another recipe than {folder / _MANIFEST}; {_ADVICE}")
    if not intact:
        raise ValueError(f"{path} was altered (its table is not the recorded one); {_ADVICE}")
    table = {name: np.array([math.nan if v is None else v for v in rows[name]]) for name in rows}
    return record, table


def write_summary(folder: Path, manifest: Manifest) -> None:
    """Write ``metadata.csv``, one row per network of the whole zoo, from the shards' records."""
    tables = [_read_record(folder, manifest, shard)[1] for shard in range(1, manifest.shards + 1)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(tables[0])
    for table in tables:
        writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))
    write_whole(folder / "metadata.csv", text.getvalue().encode(), _AGAIN)


def remove_leftovers(folder: Path, manifest: Manifest, shard: int) -> None:
    """Remove temporary files that a killed process left for a shard."""
    for path in folder.glob(f".{manifest.stem(shard)}.*.tmp"):
        path.unlink(missing_ok=True)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
