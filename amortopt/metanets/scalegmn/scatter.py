"""Sums, maxima and softmax over segments: rows of a table that belong together.

Segments are given by an index per row. torch-scatter does the reductions where it is installed and works,
torch's own operations otherwise; the results are the same up to rounding.
"""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor


@cache
def torch_scatter() -> ModuleType | None:
    """The torch_scatter module, or None where it is not installed or does not work.

    Looked for once per process. A wheel that was compiled against another torch fails with an OSError, or
    only when it is called.

    Warns:
        UserWarning: It is installed but broken.
    """
    try:
        module = importlib.import_module("torch_scatter")
        ones, index = torch.ones(3, 1), torch.tensor([0, 0, 1])
        found = [
            module.segment_coo(ones, index, dim_size=2, reduce="sum"),
            module.scatter(ones, index, dim=0, dim_size=2, reduce="max"),
        ]
        if [x.tolist() for x in found] != [[[2.0], [1.0]], [[1.0], [1.0]]]:
            raise RuntimeError("it computes wrong sums")
    except ModuleNotFoundError as error:
        if error.name == "torch_scatter":
            return None
        return _report(error)
    except Exception as error:
        return _report(error)
    return module


def _report(error: Exception) -> None:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    warnings.warn(
        f"torch-scatter is installed but broken ({text}): using torch's own; reinstall it against this torch "
        f"({torch.__version__}) or uninstall it",
        stacklevel=4,
    )


def segment_sum(values: Tensor, index: Tensor, size: int, *, ordered: bool = False) -> Tensor:
    """Sum the rows of every segment.

    Args:
        values: Rows [E, ...].
        index: Segment of every row, int64 [E], 0 <= index < size.
        size: Number of segments.
        ordered: Whether ``index`` never decreases, which torch-scatter makes use of.

    Returns:
        Sums [size, ...]; zero for a segment without rows.
    """
    return _segment(values, index, size, "sum", ordered)


def segment_max(values: Tensor, index: Tensor, size: int, *, ordered: bool = False) -> Tensor:
    """Maximum of the rows of every segment, without gradient; arguments as for [segment_sum].

    Returns:
        Maxima [size, ...]; zero for a segment without rows.
    """
    return _segment(values.detach(), index, size, "max", ordered)


def segment_softmax(logits: Tensor, index: Tensor, size: int, *, ordered: bool = False) -> Tensor:
    """Softmax over the rows of every segment; arguments as for [segment_sum].

    Returns:
        Weights [E, ...] that sum to one over each segment.
    """
    # The maximum only guards against overflow: it cancels, so no gradient needs to pass through it.
    weights = (logits - segment_max(logits, index, size, ordered=ordered).index_select(0, index)).exp()
    return weights / segment_sum(weights, index, size, ordered=ordered).index_select(0, index)


def _segment(values: Tensor, index: Tensor, size: int, reduce: str, ordered: bool) -> Tensor:
    rows = values.flatten(1) if values.ndim > 1 else values[:, None]
    scatter = torch_scatter()
    if scatter is None or len(rows) == 0:
        start = rows.new_zeros(size, rows.shape[1])
        spread = index[:, None].expand_as(rows)
        # scatter_add is up to 3 times faster than index_add on CPU, where several rows go to one segment.
        if reduce == "sum":
            result = start.scatter_add(0, spread, rows)
        else:
            result = start.scatter_reduce(0, spread, rows, "amax", include_self=False)
    elif ordered:
        result = scatter.segment_coo(rows, index, dim_size=size, reduce=reduce)
    else:
        result = scatter.scatter(rows, index, dim=0, dim_size=size, reduce=reduce)
    return result.reshape(size, *values.shape[1:])
