"""Sizes that depend on values: a tensor may have one, but no number may be computed with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from amortopt.symmetry import extract
from amortopt.testing import assert_function_preserved
from tests.symmetry.between import Between


class OfWeights(Between):
    """Hidden units, times the number of weights before them that are large."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu() * (self.a.weight > 0.2).nonzero().shape[0])


def _above(h: Tensor) -> int:
    return h[h > 0.3].numel()


READ: dict[str, Callable[[Tensor], Tensor]] = {
    "a factor": lambda h: h / (_above(h) + 1),
    "a factor, of nonzero": lambda h: h * (h > 0.3).nonzero().shape[0],
    "a factor, of where": lambda h: h * torch.where(h > 0.3)[0].size(0),
    "a factor, of masked_select": lambda h: h * torch.masked_select(h, h > 0.3).numel(),
    "a factor, of unique": lambda h: h * torch.unique((3 * h).round()).numel(),
    "a factor, of unique_consecutive": lambda h: h * torch.unique_consecutive((3 * h).round()).shape[0],
    "a factor, of bincount": lambda h: h * torch.bincount((3 * h[:, 0]).long()).shape[0],
    "a factor, of copies": lambda h: (
        h * torch.repeat_interleave(torch.ones(len(h)), (3 * h[:, 0]).long()).shape[0]
    ),
    "a term": lambda h: h + _above(h),
    "a power": lambda h: h ** (_above(h) / 100),
    "a bound": lambda h: h.clamp(max=_above(h)),
    "a float": lambda h: h * float(_above(h)),
    "a tensor": lambda h: h * torch.tensor(_above(h)),
    "what fills a tensor": lambda h: h * torch.full((1,), _above(h)),
    "the mean of a range": lambda h: h * torch.arange(_above(h)).float().mean(),
    "a sum of ones": lambda h: h * torch.ones(_above(h)).sum(),
    "a norm of ones": lambda h: h * torch.ones(_above(h), 1).norm(),
    "the trace of ones": lambda h: h * torch.eye(_above(h)).sum(),
    "an index": lambda h: h * h.flatten()[h[h > 1.0].numel()],
    "where to cut units": lambda h: torch.cat(
        [h[:, : h[h > 2.0].numel()], 2 * h[:, h[h > 2.0].numel() :]], 1
    ),
    "how far to roll": lambda h: h.roll(_above(h), 0),
    "copies": lambda h: h * torch.ones(1).repeat(_above(h) + 1).sum(),
    "a diagonal": lambda h: h + torch.ones_like(h).tril(_above(h) % 5 - 2),
}
"""What such a size becomes -> function of hidden units."""


@pytest.mark.parametrize("what", READ)
def test_numbers_of_such_a_size_are_refused(what: str) -> None:
    with pytest.raises(ValueError, match="number of elements"):
        extract(Between(lambda h: READ[what](h.relu())), torch.randn(50, 4))


def test_numbers_of_such_a_size_of_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="number of elements"):
        extract(OfWeights(torch.relu), torch.randn(50, 4))


ONLY_SIZES: dict[str, Callable[[Tensor], Tensor]] = {
    "copies of ones, added up": lambda h: h * torch.ones(3, 3).expand(_above(h), 3, 3).sum(),
    "copies of units, added up": lambda h: h[None].expand(_above(h), *h.shape).sum(0),
    "ones, and units, added up": lambda h: (torch.ones(_above(h), 1, 1) * h).sum(0),
    "how many are the largest": lambda h: h * h.flatten().topk(_above(h))[0].sum(),
    "a mean": lambda h: h * h[h > 0.3].mean(),
    "a view": lambda h: h * h[h > 0.3].view(-1, 1).sum(),
    "zeros to add to": lambda h: h * (torch.zeros(_above(h)) + h[h > 0.3]).sum(),
    "zeros like it": lambda h: h * torch.ones(_above(h)).new_zeros(6).add(1),
    "rows that are put back": lambda h: torch.zeros_like(h).index_put(
        ((h[:, 0] > 0.1).nonzero().squeeze(1),), h[h[:, 0] > 0.1]
    ),
}


@pytest.mark.parametrize("what", ONLY_SIZES)
def test_tensors_of_such_a_size_are_followed(what: str) -> None:
    net, x = Between(lambda h: ONLY_SIZES[what](h.relu())), torch.randn(50, 4)
    assert_function_preserved(net, x, extract(net, x))


class Chosen(nn.Module):
    """Hidden units, times the number that a buffer chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("chosen", torch.arange(6) % 3 > 0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.b(h * h[:, self.chosen].shape[1] * torch.ones(6)[torch.arange(6) > 1].numel())


def test_a_size_that_depends_on_constants_is_a_number_like_others() -> None:
    net, x = Chosen(), torch.randn(50, 4)
    spec = extract(net, x)
    assert [group.kind for group in spec.groups] == ["none", "positive", "none"]
    assert_function_preserved(net, x, spec)


class Powers(nn.Module):
    """Hidden units to a power that is an input, beside a mean of as many of them as values say."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, power: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h ** int(power)) + x[x > 0.3].mean()


def test_an_exponent_that_is_an_input_is_refused_where_sizes_need_values() -> None:
    # An odd one would allow signs, an even one would not.
    with pytest.raises(ValueError, match="takes a number out"):
        extract(Powers(), (torch.randn(50, 4), torch.tensor(3)))
