"""Problems that are files of the user's own: one ``.npz`` each."""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortopt.tasks.problem import Which
from amortopt.tasks.problem_families.base import register_problem_family
from amortopt.tasks.problem_families.finite import KEYS, FiniteFamily, Label, checked_shares

_LARGEST = 2**31
"""Bytes that one array may have."""
_BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, NotImplementedError)
"""What reading a file that is no archive of arrays raises; encrypted and unknown archives included."""


@register_problem_family("folder")
class Folder(FiniteFamily[Path]):
    """One ``.npz`` file per problem: ``x_train``, ``y_train``, ``x_test``, ``y_test``.

    All files are checked when the family is made, by their headers; arrays are read when they are drawn.
    Problems may have different numbers of examples. Which part a file belongs to follows from its name alone,
    so that adding files moves none; only where a part would have no file, one is moved to it. Inputs are
    taken as they are: standardise them.

    Args:
        path: The folder; every ``*.npz`` in it is a problem. None: no data, as in a checkpoint.
        objective: As ``objective.to_config()``; by default cross-entropy for integer targets, with one class
            more than the largest label, squared error for real ones.
        val: Share of the files that are for validation.
        test: Share of the files that are for testing.
        input_shape: Shape of one input, in place of data.

    Raises:
        ValueError: If a file is broken, lacks a key, or does not fit the others; file and key are named.
        FileNotFoundError: If there is no such folder, or no file in it.
    """

    def __init__(
        self,
        path: str | None = None,
        objective: Mapping[str, Any] | None = None,
        val: float = 0.15,
        test: float = 0.15,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        checked_shares(val, test)
        self.path, self.val, self.test = None if path is None else str(path), val, test
        if path is None:
            super().__init__(None, (), objective, lambda: None, (), input_shape)
            return
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"path: got {path}, which is no folder; expected one with .npz files")
        files = sorted(folder.glob("*.npz"))
        if not files:
            raise FileNotFoundError(f"path: {path} has no .npz files; write one per problem with numpy.savez")
        headers = [_headers(file) for file in files]
        first = headers[0]
        for file, header in zip(files, headers, strict=True):
            for key in KEYS:
                _check_like(file, key, header[key], first[f"{key[0]}_train"])
        shape, dtype = first["y_train"][0][1:], first["y_train"][1]

        def largest_label() -> Label | None:
            if np.issubdtype(dtype, np.floating):
                return None
            return max(
                Label(int(_array(file, key).max()), f"{file}: {key}")
                for file in files
                for key in ("y_train", "y_test")
            )

        super().__init__(
            _parts(files, val, test),
            first["x_train"][0][1:],
            objective,
            largest_label,
            shape,
            input_shape,
        )

    def to_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "path": self.path,
            "objective": self.objective.to_config(),
            "val": self.val,
            "test": self.test,
            "input_shape": list(self.input_shape),
        }

    def read(self, item: Path, part: str, most: int) -> tuple[Tensor, Tensor]:
        """Examples of one file; see [FiniteFamily][amortopt.tasks.problem_families.FiniteFamily]."""
        x, y = (torch.from_numpy(_array(item, f"{letter}_{part}")[:most]) for letter in "xy")
        if y.is_floating_point() and y.ndim == 1:
            y = y.unsqueeze(1)
        self.objective.check_targets(y, f"{item}: y_{part}")
        return x, y


def _parts(files: Sequence[Path], val: float, test: float) -> dict[Which, list[Path]]:
    """Files by part. The hash of a file's name is uniform in [0, 1): test, val and train divide that."""
    places = {
        file: int.from_bytes(hashlib.sha256(file.name.encode()).digest()[:8], "big") / 2**64 for file in files
    }
    parts: dict[Which, list[Path]] = {"train": [], "val": [], "test": []}
    for file, place in places.items():
        parts["test" if place < test else "val" if place < test + val else "train"].append(file)
    wanted: list[tuple[Which, float]] = [("val", test), ("test", 0.0)]
    for which, start in wanted:
        share = val if which == "val" else test
        if share and not parts[which] and len(parts["train"]) > 1:
            nearest = min(parts["train"], key=lambda file: places[file] - start)
            parts["train"].remove(nearest)
            parts[which].append(nearest)
    return parts


def _headers(file: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every array of a file, without reading the arrays."""
    headers, sizes = {}, {}
    try:
        with zipfile.ZipFile(file) as archive:
            members = set(archive.namelist())
            missing = [key for key in KEYS if f"{key}.npy" not in members]
            for key in KEYS if not missing else ():
                with archive.open(f"{key}.npy") as member:
                    version = np.lib.format.read_magic(member)
                    read = {
                        (1, 0): np.lib.format.read_array_header_1_0,
                        (2, 0): np.lib.format.read_array_header_2_0,
                    }
                    if version not in read:
                        raise ValueError(f"{key} has the npy version {version}, expected 1.0 or 2.0")
                    shape, _, dtype = read[version](member)
                    sizes[key] = archive.getinfo(f"{key}.npy").file_size - member.tell()
                headers[key] = (shape, dtype)
    except _BROKEN as error:
        raise ValueError(f"{file}: is no .npz file, or a damaged one ({error}); write it again") from error
    if missing:
        raise ValueError(
            f"{file}: lacks {', '.join(missing)}; write it with numpy.savez(file, x_train=..., ...)"
        )
    for key, (shape, dtype) in headers.items():
        if dtype.kind not in "fiub":
            raise ValueError(f"{file}: {key} has the dtype {dtype}, expected numbers, real ones or integers")
        if not shape or 0 in shape:
            raise ValueError(f"{file}: {key} has the shape {shape}, expected at least one example")
        size = math.prod(shape) * dtype.itemsize
        if size > _LARGEST:
            raise ValueError(f"{file}: {key} has the shape {shape}, more than {_LARGEST} bytes")
        if size != sizes[key]:
            raise ValueError(
                f"{file}: {key} has {sizes[key]} bytes, expected {size} for the shape {shape} and {dtype}; "
                "the file is damaged, write it again"
            )
    for key, (shape, dtype) in headers.items():
        if key[0] == "y" and len(shape) == 1 and np.issubdtype(dtype, np.floating):
            headers[key] = ((*shape, 1), dtype)  # as read() returns them
    for part in ("train", "test"):
        x, y = headers[f"x_{part}"][0], headers[f"y_{part}"][0]
        if x[0] != y[0]:
            raise ValueError(f"{file}: y_{part} has {y[0]} targets for {x[0]} inputs in x_{part}")
    return headers


def _check_like(
    file: Path, key: str, got: tuple[tuple[int, ...], np.dtype], expected: tuple[tuple[int, ...], np.dtype]
) -> None:
    if key[0] == "y" and np.issubdtype(got[1], np.floating) != np.issubdtype(expected[1], np.floating):
        raise ValueError(
            f"{file}: {key} has the dtype {got[1]}, expected {expected[1]} as in the other files"
        )
    if got[0][1:] != expected[0][1:]:
        raise ValueError(
            f"{file}: {key} has examples of shape {got[0][1:]}, expected {expected[0][1:]} as in the other "
            "files; problems of one family have one input and one target shape"
        )


def _array(file: Path, key: str) -> np.ndarray:
    """One array of a file, float32 and finite, or int64; never unpickled."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            array = archive[key]
    except _BROKEN as error:
        raise ValueError(f"{file}: {key} cannot be read ({error}); write the file again") from error
    if key[0] == "y" and not np.issubdtype(array.dtype, np.floating):
        return array.astype(np.int64)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{file}: {key} has NaN or infinite values; leave those examples out")
    return array
