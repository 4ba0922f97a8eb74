"""Kinds of operations beside layers: losses, masks and indices that write, random numbers, matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.symmetry import SymmetrySpec, extract

H = 6


class Between(nn.Module):
    """Two hidden values [N, 5, 6] of x [N, 5, 4], what is done with them, and a dense layer."""

    def __init__(self, function: Callable[..., Any], last: bool) -> None:
        super().__init__()
        self.a, self.c, self.b = nn.Linear(4, H), nn.Linear(4, H), nn.Linear(H, 2)
        self.token = nn.Parameter(torch.randn(H))
        self.function, self.last = function, last

    def forward(self, x: Tensor) -> Any:
        hidden = self.function(self.a(x), self.c(x), self.token)
        return self.b(hidden) if self.last else hidden


def _extracted(function: Callable[..., Any], *, last: bool = True) -> SymmetrySpec:
    torch.manual_seed(0)
    net, x = Between(function, last), torch.randn(3, 5, 4)
    spec = extract(net, x, strict=True)
    proof = spec.verify(net, x, elements=2, probes=12)
    assert proof.holds, proof
    return spec


def _of(spec: SymmetrySpec, name: str) -> tuple[str, bool]:
    group = spec.group(spec.blocks_of(name)[0].groups[0])
    return group.kind, group.permutable


MASK = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1], [1, 1, 0, 0, 0]]).bool()

# Losses, which end in a number: units of both sides are permuted alike.

_LOSSES: dict[str, tuple[Callable[..., Tensor], str]] = {
    "mse_loss": (lambda h, g, t: F.mse_loss(h, g), "sign"),
    "l1_loss": (lambda h, g, t: F.l1_loss(h, g, reduction="none").sum(-1), "sign"),
    "smooth_l1_loss": (lambda h, g, t: F.smooth_l1_loss(h, g, reduction="sum"), "sign"),
    "huber_loss": (lambda h, g, t: F.huber_loss(h, g), "sign"),
    "kl_div": (lambda h, g, t: F.kl_div(h.log_softmax(-1), g.softmax(-1), reduction="batchmean"), "none"),
    "binary_cross_entropy": (lambda h, g, t: F.binary_cross_entropy(h.sigmoid(), g.sigmoid()), "none"),
    "with_logits": (
        lambda h, g, t: F.binary_cross_entropy_with_logits(h, g.sigmoid(), pos_weight=t.exp()),
        "none",
    ),
    "poisson_nll_loss": (lambda h, g, t: F.poisson_nll_loss(h, g.exp()), "none"),
    "soft targets": (
        lambda h, g, t: F.cross_entropy(h.flatten(0, 1), g.flatten(0, 1).softmax(-1)),
        "none",
    ),
    "triplet_margin_loss": (lambda h, g, t: F.triplet_margin_loss(h[:, 0], g[:, 0], h[:, 1]), "none"),
    "cosine_embedding_loss": (
        lambda h, g, t: F.cosine_embedding_loss(h[:, 0], g[:, 0], torch.ones(3)),
        "none",
    ),
}


@pytest.mark.parametrize("name", _LOSSES)
def test_a_loss_permutes_units_of_both_sides_alike(name: str) -> None:
    function, kind = _LOSSES[name]
    spec = _extracted(function, last=False)
    assert _of(spec, "a.bias") == _of(spec, "c.bias") == (kind, True)
    assert spec.blocks_of("a.bias")[0].groups == spec.blocks_of("c.bias")[0].groups


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0])])
def test_a_loss_of_classes_keeps_their_order_and_frees_the_layer_before(weight: Tensor | None) -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, H), nn.Linear(H, 2)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.b(self.a(x).relu())
            return {"loss": F.cross_entropy(logits, labels, weight=weight, label_smoothing=0.1)}

    net, x, labels = Classifier(), torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 1])
    batch = {"x": x, "labels": labels}
    spec = extract(net, batch, strict=True)
    assert spec.verify(net, batch, probes=None).holds
    assert _of(spec, "a.bias") == ("positive", True)
    assert _of(spec, "b.bias") == ("none", False)


# What is written by a mask or by indices has the units of the tensor that it is written to.


def _by_mask(h: Tensor, g: Tensor, t: Tensor) -> Tensor:
    h = h.clone()
    h[MASK] = t
    return h.relu()


def _by_list(h: Tensor, g: Tensor, t: Tensor) -> Tensor:
    h = h.clone()
    h[:, [0, 3]] = g[:, :2]
    return h.relu()


_WRITTEN = {
    "mask": _by_mask,
    "list beside a slice": _by_list,
    "masked_scatter": lambda h, g, t: h.masked_scatter(MASK[..., None].expand_as(h), g).relu(),
    "take_along_dim": lambda h, g, t: (
        g + torch.take_along_dim(h, torch.tensor([1, 3, 0])[:, None, None], 1)
    ).relu(),
}


@pytest.mark.parametrize("name", _WRITTEN)
def test_what_is_written_by_index_has_the_units_of_the_tensor(name: str) -> None:
    assert _of(_extracted(_WRITTEN[name]), "a.bias") == ("positive", True)


@pytest.mark.parametrize(
    "mask",
    [
        lambda h: torch.cat([torch.ones(3, 5, 3), torch.zeros(3, 5, 3)], -1).bool(),
        lambda h: h > 0,
        lambda h: F.pad(torch.zeros(3, 5, 4), (1, 1)).bool().logical_not() & (h > 0),
    ],
)
def test_a_mask_that_varies_along_units_holds_what_masked_scatter_moves(mask: Any) -> None:
    spec = _extracted(lambda h, g, t: h.masked_scatter(mask(h), g))
    assert _of(spec, "a.bias") == _of(spec, "c.bias") == ("none", False)


# Random numbers belong to places.


@pytest.mark.parametrize(
    "function",
    [
        lambda h, g, t: h + torch.randn_like(h) * g.exp(),
        lambda h, g, t: torch.distributions.Normal(h, F.softplus(g)).rsample(),
        lambda h, g, t: h * torch.bernoulli(g.sigmoid()),
    ],
    ids=["randn_like", "rsample", "bernoulli"],
)
def test_units_that_meet_random_numbers_keep_their_order(function: Callable[..., Tensor]) -> None:
    spec = _extracted(function)
    assert not spec.group(spec.blocks_of("a.bias")[0].groups[0]).permutable


# Matrices, neighbours, quantiles

_FREE, _POSITIVE, _FIXED = ("free", True), ("positive", True), ("none", False)
_OTHERS: dict[str, tuple[Callable[..., Tensor], tuple[str, bool]]] = {
    "diff": (lambda h, g, t: torch.diff(h, dim=1), _FREE),
    "diff of units": (lambda h, g, t: F.pad(torch.diff(h), (0, 1)), _FIXED),
    "quantile": (lambda h, g, t: h.quantile(0.3, dim=1), _POSITIVE),
    "quantiles": (lambda h, g, t: h.quantile(h.new_tensor([0.3, 0.5]), dim=1), _POSITIVE),
    "rad2deg": (lambda h, g, t: torch.rad2deg(h), _FREE),
    "vecdot": (lambda h, g, t: torch.linalg.vecdot(h[..., None], g[..., None]), _FREE),
    "cross": (lambda h, g, t: torch.linalg.cross(h[:, :3], g[:, :3], dim=1), _FREE),
    "diagonal": (lambda h, g, t: torch.diagonal(h.mT @ g, dim1=-2, dim2=-1), _FREE),
    "diagonal above": (lambda h, g, t: F.pad(torch.diagonal(h.mT @ g, 1, -2, -1), (0, 1)), _FIXED),
    "diag_embed": (lambda h, g, t: torch.diag_embed(h) @ t, _FREE),
    "inverse": (lambda h, g, t: torch.linalg.inv(torch.diag_embed(1 + h * h)) @ t, ("sign", True)),
    "matrix_exp": (lambda h, g, t: torch.linalg.matrix_exp(h.mT @ g) @ t, _FREE),
    "addbmm": (lambda h, g, t: torch.addbmm(h[0, :3], torch.ones(2, 3, 4), h[:2, :4]), _FREE),
    "norm": (lambda h, g, t: h / torch.linalg.norm(h, dim=1, keepdim=True), _POSITIVE),
    "broadcast_tensors": (lambda h, g, t: torch.broadcast_tensors(h, g[:1])[0], _FREE),
    "count": (lambda h, g, t: h * (g > 0).sum(1, keepdim=True), _FREE),
}


@pytest.mark.parametrize("name", _OTHERS)
def test_further_operations_leave_their_scales(name: str) -> None:
    function, left = _OTHERS[name]
    assert _of(_extracted(function), "a.bias") == left


def test_max_unpool_keeps_channels() -> None:
    class Segnet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            pooled, places = F.max_pool2d(self.a(x), 2, return_indices=True)
            return self.b(F.max_unpool2d(pooled, places, 2))

    net, x = Segnet(), torch.randn(2, 3, 4, 4)
    spec = extract(net, x, strict=True)
    assert spec.verify(net, x, elements=2).holds
    assert _of(spec, "a.bias") == ("positive", True)


# What cannot be shown


@pytest.mark.parametrize("value", [None, 3.0, "text"])
def test_a_network_that_returns_no_tensor_is_refused(value: Any) -> None:
    net = Between(lambda h, g, t: value, last=False)
    with pytest.raises(ValueError, match="returns no tensor"):
        extract(net, torch.randn(3, 5, 4))


def test_an_input_without_entries_along_an_inner_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \[3, 0, 4\], expected at least one entry"):
        extract(Between(lambda h, g, t: h, last=True), torch.zeros(3, 0, 4))


def test_an_input_at_which_the_output_is_nan_shows_nothing() -> None:
    net, x = Between(lambda h, g, t: h, last=True), torch.full((3, 5, 4), torch.inf)
    spec = extract(net, x)
    with pytest.raises(ValueError, match="is NaN"):
        spec.verify(net, x)


class Masked(nn.Module):
    """Training mode writes a token to places that numpy draws, as in wav2vec 2.0."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.token = nn.Linear(4, H), nn.Linear(H, 2), nn.Parameter(torch.randn(H))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.training:
            h[torch.from_numpy(np.random.rand(*h.shape[:2]) < 0.5)] = self.token
            if torch.rand(()) < 0.5:  # a layer may be left out
                h = h.tanh()
        return self.b(h.relu())


def test_a_parameter_that_only_training_mode_writes_to_drawn_places_moves_along() -> None:
    torch.manual_seed(0)
    net, x = Masked(), torch.randn(3, 5, 4)
    before = np.random.get_state()[1].copy()  # pyright: ignore[reportAttributeAccessIssue]
    spec = extract(net, x, strict=True)
    assert (np.random.get_state()[1] == before).all()  # pyright: ignore[reportAttributeAccessIssue]
    assert spec.blocks_of("token")[0].groups == spec.blocks_of("a.bias")[0].groups
    proof = spec.verify(net, x, elements=2)
    assert proof.holds and set(proof.errors) == {"eval", "training"}
