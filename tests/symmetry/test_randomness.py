"""Random numbers that a network draws in eval mode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.symmetry import extract


class Drawn(nn.Module):
    """A hidden layer that ``function`` does something random to."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(4, 6), nn.Linear(6, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda h: F.dropout(h.relu(), 0.3, training=True), "positive"),
        (lambda h: torch.feature_dropout(h.tanh()[..., None], 0.3, True)[..., 0], "sign"),
        (lambda h: F.rrelu(h, training=True), "positive"),
        (lambda h: h.tanh() * torch.bernoulli(torch.full((8, 6), 0.7)), "sign"),
        (lambda h: torch.bernoulli(h.sigmoid()), "none"),
    ],
    ids=["dropout", "feature-dropout", "rrelu", "mask", "bernoulli"],
)
def test_units_that_random_numbers_meet_in_eval_mode_keep_their_order(
    function: Callable[[Tensor], Tensor], kind: str
) -> None:
    net, x = Drawn(function), torch.randn(8, 4)
    spec = extract(net, x, strict=True)
    assert (spec.group("h1").kind, spec.group("h1").permutable) == (kind, False)
    proof = spec.verify(net, x)
    assert proof.holds
    # What it could be is judged with numbers drawn, which permuted units would not get.
    assert not proof.larger
    assert "replaced by their mean" in " ".join(proof.notes)
