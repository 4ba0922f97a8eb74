"""Problems that are files of the user's own: one ``.npz`` each."""

from __future__ import annotations

import hashlib
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amortopt.tasks.examples import Examples
from amortopt.tasks.objective import CrossEntropy, Objective, SquaredError, make_objective
from amortopt.tasks.problem import SPLITS, Which, check_which
from amortopt.tasks.problem_families.base import ProblemFamily, check_numbers, register_problem_family

KEYS = ("x_train", "y_train", "x_test", "y_test")
_LARGEST = 2**31
"""Bytes that the arrays of one file may have."""


@register_problem_family("folder")
class Folder(ProblemFamily):
    """One ``.npz`` file per problem: ``x_train``, ``y_train``, ``x_test``, ``y_test``.

    All files are checked when the family is made, by their headers; arrays are read when they are drawn.
    Problems may have different numbers of examples. Which part a file belongs to follows from its name alone,
    so that adding files moves none. Inputs are taken as they are: standardise them.

    Args:
        path: The folder; every ``*.npz`` in it is a problem.
        objective: As ``objective.to_config()``; by default cross-entropy for integer targets, with one class
            more than the largest label, squared error for real ones.
        val: Share of the files that are for validation.
        test: Share of the files that are for testing.

    Raises:
        ValueError: If a file is broken, lacks a key, or does not fit the others; file and key are named.
        FileNotFoundError: If there is no such folder, or no file in it.
    """

    def __init__(
        self, path: str, objective: dict[str, Any] | None = None, val: float = 0.15, test: float = 0.15
    ) -> None:
        self.path, self.val, self.test = str(path), val, test
        for key, share in (("val", val), ("test", test)):
            if not 0 <= share < 1:
                raise ValueError(f"{key}: got {share}, expected a share from 0 to below 1")
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
                _check_like(file, key, header[key], first[key])
        self._input_shape = first["x_train"][0][1:]
        self.objective = self._objective_of(files, first["y_train"], objective)
        self._files: dict[Which, list[Path]] = {which: [] for which in SPLITS}
        for file in files:
            self._files[_part_of(file.name, val, test)].append(file)

    @staticmethod
    def _objective_of(
        files: list[Path], y: tuple[tuple[int, ...], np.dtype], config: dict[str, Any] | None
    ) -> Objective:
        if config is not None:
            return make_objective(**config)
        shape, dtype = y[0][1:], y[1]
        if np.issubdtype(dtype, np.floating):
            return SquaredError(shape)
        largest = max(int(_array(file, key).max()) for file in files for key in ("y_train", "y_test"))
        return CrossEntropy(largest + 1, shape)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._input_shape

    def to_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "path": self.path,
            "objective": self.objective.to_config(),
            "val": self.val,
            "test": self.test,
        }

    def count(self, which: Which) -> int:
        check_which(which)
        return len(self._files[which])

    def draw(
        self, which: Which, start: int, problems: int, train: int, test: int
    ) -> tuple[Examples, Examples]:
        """As [ProblemFamily][amortopt.tasks.ProblemFamily]: a file's train examples are there to read.

        Examples are taken from the start of each array; problems that have fewer are padded and masked.
        """
        check_which(which)
        check_numbers(start, problems, train, test)
        files = self._files[which][start : start + problems]
        if len(files) < problems:
            raise ValueError(
                f"start, problems: got {start}, {problems}, expected problems among the {self.count(which)} "
                f"of the {which} part of {self.path}"
            )
        return (
            Examples.from_list([self._examples(file, "train", train) for file in files]),
            Examples.from_list([self._examples(file, "test", test) for file in files]),
        )

    def _examples(self, file: Path, part: str, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = _array(file, f"x_{part}")[:most], torch.from_numpy(_array(file, f"y_{part}")[:most])
        self.objective.check_targets(y, f"{file}: y_{part}")
        return torch.from_numpy(x.astype(np.float32)), y.float() if y.is_floating_point() else y


def _part_of(name: str, val: float, test: float) -> Which:
    """The part of a file by a hash of its name, uniform in [0, 1)."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "test" if place < test else "val" if place < test + val else "train"


def _headers(file: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every array of a file, without reading the arrays."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = set(archive.namelist())
            if missing := [key for key in KEYS if f"{key}.npy" not in members]:
                raise ValueError(
                    f"{file}: lacks {', '.join(missing)}; write it with numpy.savez(file, x_train=..., ...)"
                )
            headers = {}
            for key in KEYS:
                with archive.open(f"{key}.npy") as member:
                    version = np.lib.format.read_magic(member)
                    read = {
                        (1, 0): np.lib.format.read_array_header_1_0,
                        (2, 0): np.lib.format.read_array_header_2_0,
                    }
                    if version not in read:
                        raise ValueError(f"{file}: {key} has the npy version {version}, expected 1.0 or 2.0")
                    shape, _, dtype = read[version](member)
                headers[key] = (shape, dtype)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ValueError(f"{file}: is no .npz file, or a truncated one ({error}); write it again") from error
    for key, (shape, dtype) in headers.items():
        if dtype.hasobject or not (np.issubdtype(dtype, np.number) or dtype.kind == "b"):
            raise ValueError(f"{file}: {key} has the dtype {dtype}, expected numbers")
        if not shape or 0 in shape:
            raise ValueError(f"{file}: {key} has the shape {shape}, expected at least one example")
        if int(np.prod(shape, dtype=object)) * dtype.itemsize > _LARGEST:
            raise ValueError(f"{file}: {key} has the shape {shape}, more than {_LARGEST} bytes")
    for part in ("train", "test"):
        x, y = headers[f"x_{part}"][0], headers[f"y_{part}"][0]
        if len(x) and x[0] != y[0]:
            raise ValueError(f"{file}: y_{part} has {y[0]} targets for {x[0]} inputs in x_{part}")
    return headers


def _check_like(
    file: Path, key: str, got: tuple[tuple[int, ...], np.dtype], expected: tuple[tuple[int, ...], np.dtype]
) -> None:
    if got[0][1:] != expected[0][1:]:
        raise ValueError(
            f"{file}: {key} has examples of shape {got[0][1:]}, expected {expected[0][1:]} as in the other "
            "files; problems of one family have one input and one target shape"
        )
    if key[0] == "y" and np.issubdtype(got[1], np.floating) != np.issubdtype(expected[1], np.floating):
        raise ValueError(
            f"{file}: {key} has the dtype {got[1]}, expected {expected[1]} as in the other files"
        )


@lru_cache(maxsize=2048)
def _array(file: Path, key: str) -> np.ndarray:
    """One array of a file, checked to be finite; never unpickled."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            array = archive[key]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file}: {key} cannot be read ({error}); write the file again") from error
    if not np.issubdtype(array.dtype, np.floating):
        return array.astype(np.int64)
    if not np.isfinite(array).all():
        raise ValueError(f"{file}: {key} has NaN or infinite values; leave those examples out")
    return array
