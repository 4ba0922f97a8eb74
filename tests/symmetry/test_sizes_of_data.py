"""Sizes that depend on values: a tensor may have one, but no number may be computed with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from amortopt.symmetry import extract
from amortopt.testing import assert_function_preserved


class Between(nn.Module):
    """Hidden units, and what ``function`` makes of the layer before them and of these."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.function = nn.Linear(4, 6), nn.Linear(6, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a.weight, self.a(x).relu()))


def _above(h: Tensor) -> int:
    return h[h > 0.3].numel()


READ: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a factor": lambda w, h: h / (_above(h) + 1),
    "a factor, of nonzero": lambda w, h: h * (h > 0.3).nonzero().shape[0],
    "a factor, of where": lambda w, h: h * torch.where(h > 0.3)[0].size(0),
    "a factor, of masked_select": lambda w, h: h * torch.masked_select(h, h > 0.3).numel(),
    "a factor, of unique": lambda w, h: h * torch.unique((3 * h).round()).numel(),
    "a factor, of unique_consecutive": lambda w, h: h * torch.unique_consecutive((3 * h).round()).shape[0],
    "a factor, of bincount": lambda w, h: h * torch.bincount((3 * h[:, 0]).long()).shape[0],
    "a factor, of copies": lambda w, h: (
        h * torch.repeat_interleave(torch.ones(len(h)), (3 * h[:, 0]).long()).shape[0]
    ),
    "a factor, of weights": lambda w, h: h * (w > 0.2).nonzero().shape[0],
    "a term": lambda w, h: h + _above(h),
    "a power": lambda w, h: h ** (_above(h) / 100),
    "a bound": lambda w, h: h.clamp(max=_above(h)),
    "a float": lambda w, h: h * float(_above(h)),
    "a tensor": lambda w, h: h * torch.tensor(_above(h)),
    "what fills a tensor": lambda w, h: h * torch.full((1,), _above(h)),
    "the mean of a range": lambda w, h: h * torch.arange(_above(h)).float().mean(),
    "a sum of ones": lambda w, h: h * torch.ones(_above(h)).sum(),
    "a norm of ones": lambda w, h: h * torch.ones(_above(h), 1).norm(),
    "the trace of ones": lambda w, h: h * torch.eye(_above(h)).sum(),
    "an index": lambda w, h: h * h.flatten()[h[h > 1.0].numel()],
    "where to cut units": lambda w, h: torch.cat(
        [h[:, : h[h > 2.0].numel()], 2 * h[:, h[h > 2.0].numel() :]], 1
    ),
    "how far to roll": lambda w, h: h.roll(_above(h), 0),
}
"""What such a size becomes -> function of weights and hidden units."""


@pytest.mark.parametrize("what", READ)
def test_numbers_of_such_a_size_are_refused(what: str) -> None:
    with pytest.raises(ValueError, match="number of elements"):
        extract(Between(READ[what]), torch.randn(50, 4))


ONLY_SIZES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a mean": lambda w, h: h * h[h > 0.3].mean(),
    "a view": lambda w, h: h * h[h > 0.3].view(-1, 1).sum(),
    "zeros to add to": lambda w, h: h * (torch.zeros(_above(h)) + h[h > 0.3]).sum(),
    "zeros like it": lambda w, h: h * torch.ones(_above(h)).new_zeros(6).add(1),
    "rows that are put back": lambda w, h: torch.zeros_like(h).index_put(
        ((h[:, 0] > 0.1).nonzero().squeeze(1),), h[h[:, 0] > 0.1]
    ),
}


@pytest.mark.parametrize("what", ONLY_SIZES)
def test_tensors_of_such_a_size_are_followed(what: str) -> None:
    net, x = Between(ONLY_SIZES[what]), torch.randn(50, 4)
    assert_function_preserved(net, x, extract(net, x))
