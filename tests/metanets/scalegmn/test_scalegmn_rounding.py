"""ScaleGMN under other rounding: every intermediate result may be off by an ulp, on any processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from amortopt._types import Params
from tests.metanets.networks import metanet, relative
from tests.metanets.specs import SPECS, params_like


class OtherRounding(TorchDispatchMode):
    """Multiplies every new float64 result of an operation by 1 + e with random |e| <= 2^-52.

    What is exactly zero stays so, as with any rounding. Views are left alone: they compute nothing.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        computed = not func.is_view and not any(
            r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
        )
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if computed and isinstance(value, Tensor) and value.dtype == torch.float64:
                noise = torch.rand(value.shape, generator=self._generator, dtype=torch.float64) * 2 - 1
                value.mul_(1 + noise * torch.finfo(torch.float64).eps)
                self.count += 1
        return result


def _zeros(params: Params) -> None:
    for p in params.values():
        p *= torch.rand_like(p) > 0.9


def _equal_units(params: Params) -> None:
    for p in params.values():
        p.copy_(p.flatten(1)[:, :1].view(-1, *(1,) * (p.ndim - 1)).expand_as(p))


def _cancelling(params: Params) -> None:
    # Sums along the last axis are zero up to rounding.
    for p in params.values():
        p -= p.mean(-1, keepdim=True)


@pytest.mark.parametrize("prepare", [_zeros, _equal_units, _cancelling])
@pytest.mark.parametrize("name", SPECS)
def test_scalegmn_does_not_depend_on_rounding(name: str, prepare: Callable[[Params], None]) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        params = params_like(SPECS[name])
        prepare(params)
        made = metanet(SPECS[name])
        with torch.no_grad():
            expected = made(params)
            with OtherRounding(seed) as rounding:
                got = made({key: p.clone() for key, p in params.items()})
        assert rounding.count > 100
        assert relative(got, expected) < 1e-9
