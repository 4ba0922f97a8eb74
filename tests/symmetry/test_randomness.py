"""Random numbers that a network draws in eval mode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.symmetry import extract
from amortopt.testing import assert_function_preserved


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


class LeftOn(nn.Module):
    """Two layers of a recurrent network, or heads of attention, whose dropout is on in eval mode."""

    def __init__(self, kind: str, dropout: float) -> None:
        super().__init__()
        self.kind, self.dropout = kind, dropout
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
        self.layers = nn.GRU(6, 6, num_layers=2, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.kind == "recurrent":
            self.layers.train()
            return self.b(self.layers(h)[0])
        heads = [h.unflatten(-1, (3, 2)).transpose(1, 2) for _ in range(3)]
        return self.b(
            F.scaled_dot_product_attention(*heads, dropout_p=self.dropout).transpose(1, 2).flatten(2)
        )


@pytest.mark.parametrize("kind", ["recurrent", "attention"])
def test_dropout_inside_of_fused_operations_in_eval_mode_keeps_the_order_of_what_it_meets(kind: str) -> None:
    x = torch.randn(3, 5, 4)
    for dropout, permuted in ((0.0, True), (0.3, False)):
        net = LeftOn(kind, dropout)
        spec = extract(net, x, strict=True)
        name = "layers.bias_ih_l0" if kind == "recurrent" else "a.bias"
        group = spec.group(spec.blocks_of(name)[0].groups[0])
        # Weights of attention are left out head by head.
        assert spec.group(group.within or group.name).permutable is permuted
        assert_function_preserved(net, x, spec, drawn=True)
        proof = spec.verify(net, x)
        assert proof.holds
        assert not proof.larger
        assert ("replaced by their mean" in " ".join(proof.notes)) is not permuted
