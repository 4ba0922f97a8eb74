"""Functions of libraries that choose between two ways to compute the same, by the number of their elements.

Tracing has to refuse such a choice, as it does not see that both ways agree. While a network is traced, they
are replaced by one that chooses nothing, and ``len`` by a size that may be a symbol.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Boxes that are kept, of [N, 4]; torchvision moves classes apart, or goes through them, by N.

    Which boxes are kept differs from what torchvision keeps, not what that depends on: the values of boxes,
    scores and classes, none of which a symmetry may change.
    """
    moved = boxes + idxs.to(boxes)[:, None]
    return torch.ops.torchvision.nms(moved, scores, iou_threshold)


def _length(x: Any) -> Any:
    """``len(x)``, which has to be a number, where the size of a tensor is none yet."""
    return x.shape[0] if isinstance(x, Tensor) else len(x)


_REPLACED: dict[str, tuple[str, Callable[..., Any]]] = {
    "torchvision.ops.boxes": ("batched_nms", _batched_nms),
    "torchvision.ops.poolers": ("len", _length),
    "torchvision.models.detection.roi_heads": ("len", _length),
}
"""Module -> name and replacement."""


@contextlib.contextmanager
def without_choices() -> Iterator[None]:
    """Replace these functions in the modules that are loaded."""
    with contextlib.ExitStack() as stack:
        for module, (name, replacement) in _REPLACED.items():
            if (loaded := sys.modules.get(module)) is not None:
                stack.enter_context(mock.patch.object(loaded, name, replacement, create=True))
        yield
