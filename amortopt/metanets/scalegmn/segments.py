"""Sums and softmax over segments: rows of a table that belong together, given by an index per row.

torch-scatter does the reductions where it is installed and works, torch's operations otherwise; the results
are the same up to rounding.
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
        sums = [
            module.segment_coo(ones, index, dim_size=2, reduce="sum"),
            module.scatter(ones, index, dim=0, dim_size=2, reduce="sum"),
        ]
        if any(x.tolist() != [[2.0], [1.0]] for x in sums):
            raise RuntimeError("it computes wrong sums")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torch_scatter":
            return None
        text = " ".join(f"{type(error).__name__}: {error}".split())
        warnings.warn(
            f"torch-scatter is installed but broken ({text}): using torch's own; reinstall it against this "
            f"torch ({torch.__version__}) or uninstall it",
            stacklevel=3,
        )
        return None
    return module


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
    rows = values.flatten(1) if values.ndim > 1 else values[:, None]
    scatter = torch_scatter() if len(rows) else None
    if scatter is None:
        # scatter_add is up to 3 times faster than index_add on CPU, where several rows go to one segment.
        sums = rows.new_zeros(size, rows.shape[1]).scatter_add(0, index[:, None].expand_as(rows), rows)
    elif ordered:
        sums = scatter.segment_coo(rows, index, dim_size=size, reduce="sum")
    else:
        sums = scatter.scatter(rows, index, dim=0, dim_size=size, reduce="sum")
    return sums.reshape(size, *values.shape[1:])


def segment_softmax(logits: Tensor, index: Tensor, size: int, *, ordered: bool = False) -> Tensor:
    """Softmax over the rows of every segment; arguments as for ``segment_sum``, logits [E, H]."""
    # The maximum only guards against overflow: it cancels, so no gradient needs to pass through it.
    rows = index[:, None].expand_as(logits)
    highest = logits.new_zeros(size, logits.shape[1]).scatter_reduce(
        0, rows, logits.detach(), "amax", include_self=False
    )
    weights = (logits - highest.index_select(0, index)).exp()
    return weights / segment_sum(weights, index, size, ordered=ordered).index_select(0, index)
