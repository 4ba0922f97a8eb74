"""What networks of a zoo are judged by: a column of its table, or values that their functions should have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amortopt.metanets import Classes, Head
from amortopt.system.registry import Registry
from amortopt.tasks.mnist5k import images
from amortopt.tasks.problem_families.images import pixel_coordinates
from amortopt.zoo import Zoo


@dataclass(frozen=True)
class Values:
    """Values that edited networks should have.

    Attributes:
        x: Inputs that all networks share, [N, ...].
        y: What each should answer there, [n, N, k].
    """

    x: Tensor
    y: Tensor


EDITS: Registry[Values] = Registry("edit")
"""Functions from a zoo to `Values`, by name; add one with ``@EDITS.register("name")``."""


def labels(zoo: Zoo, column: str, head: Head) -> Tensor:
    """A column of a zoo's table as targets of a head: int64 for classes, else float32, [n].

    Raises:
        ValueError: There is no such column, it holds text, or some of its values are missing.
    """
    if column not in zoo.table:
        numbers = [name for name, values in zoo.table.items() if values.dtype.kind in "bif"]
        raise ValueError(
            f"data.label: got {column!r}, which the zoo's table lacks; its columns of numbers are "
            f"{', '.join(numbers)}"
        )
    values = np.asarray(zoo.table[column])
    if values.dtype.kind not in "bif":
        raise ValueError(f"data.label: column {column!r} holds {values.dtype}, expected numbers")
    missing = int((~np.isfinite(values.astype(np.float64))).sum())
    if missing:
        raise ValueError(
            f"data.label: column {column!r} is missing or not finite for {missing} of {len(values)} "
            "networks; leave these out of the zoo, or name another column"
        )
    if not isinstance(head, Classes):
        return torch.from_numpy(values.astype(np.float32))
    whole = values.astype(np.int64)
    if (whole != values).any():
        raise ValueError(
            f"data.label: column {column!r} has values such as {values[whole != values][0]}, expected whole "
            "numbers for the head 'classes'; use the head 'regression'"
        )
    return torch.from_numpy(whole)


def edited(zoo: Zoo, edit: str) -> Values:
    """What the networks of a zoo should answer after an edit.

    Raises:
        ValueError: There is no such edit, or it is not for such a zoo.
    """
    return EDITS.make(edit, zoo)


def _pictures(zoo: Zoo) -> Tensor:
    """Images [n, 28, 28] that the networks of an ``mnist-inr`` zoo show."""
    if "image" not in zoo.table or zoo.config["problem"]["name"] != "mnist_5k":
        raise ValueError(
            "data.edit: got a zoo without the column 'image', expected one of `amortopt zoo mnist-inr`"
        )
    pictures, _ = images()
    return pictures.view(-1, 28, 28)[torch.from_numpy(np.asarray(zoo.table["image"], dtype=np.int64))]


def _picture_edit(change: Callable[[Tensor], Tensor]) -> Callable[[Zoo], Values]:
    def make(zoo: Zoo) -> Values:
        return Values(pixel_coordinates(28), change(_pictures(zoo)).flatten(1)[..., None])

    return make


def dilate(pictures: Tensor) -> Tensor:
    """Every pixel takes the largest grey level of its 3x3 neighbourhood: [n, H, W] -> [n, H, W]."""
    return F.max_pool2d(pictures[:, None], 3, stride=1, padding=1)[:, 0]


EDITS.register("dilation")(_picture_edit(dilate))
EDITS.register("erosion")(_picture_edit(lambda pictures: -dilate(-pictures)))
EDITS.register("inversion")(_picture_edit(lambda pictures: 1 - pictures))
