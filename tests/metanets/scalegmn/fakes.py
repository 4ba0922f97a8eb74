"""A stand-in for torch_scatter, which takes minutes to compile: slow, plain and with the same signatures."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor


class FakeScatter(ModuleType):
    """Counts its calls; refuses an index that decreases where torch_scatter would compute nonsense."""

    def __init__(self) -> None:
        super().__init__("torch_scatter")
        self.calls = 0

    def segment_coo(
        self, src: Tensor, index: Tensor, out: None = None, dim_size: int | None = None, reduce: str = "sum"
    ) -> Tensor:
        assert bool((index.diff() >= 0).all()), "segment_coo needs an index that never decreases"
        return self.scatter(src, index, 0, None, dim_size, reduce)

    def scatter(
        self,
        src: Tensor,
        index: Tensor,
        dim: int = -1,
        out: None = None,
        dim_size: int | None = None,
        reduce: str = "sum",
    ) -> Tensor:
        self.calls += 1
        assert dim == 0 and dim_size is not None
        rows = [src[index == segment] for segment in range(dim_size)]
        if reduce == "sum":
            return torch.stack([part.sum(0) for part in rows])
        empty = src.new_zeros(src.shape[1:])
        return torch.stack([part.amax(0) if len(part) else empty for part in rows])
