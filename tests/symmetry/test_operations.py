"""Operations between two layers: which scales and permutations they leave to hidden units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.symmetry import SymmetrySpec, UnknownOperationError, extract
from amortopt.symmetry.rules.base import canonical, rule_for

H: int = 6


class Between(nn.Module):
    """x [N, 5, 4] -> two hidden values [N, 5, 6], something between them, and a dense layer."""

    def __init__(self, function: Callable[..., Tensor], outputs: int = H) -> None:
        super().__init__()
        self.a, self.c, self.b = nn.Linear(4, H), nn.Linear(4, H), nn.Linear(outputs, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x), self.c(x)))


def _extracted(function: Callable[..., Tensor], outputs: int = H) -> SymmetrySpec:
    net, x = Between(function, outputs), torch.randn(3, 5, 4)
    spec = extract(net, x, strict=True)
    proof = spec.verify(net, x, elements=2, probes=16)
    assert proof.holds, proof
    return spec


def _of(spec: SymmetrySpec, name: str = "a.bias") -> tuple[str, bool]:
    group = spec.group(spec.blocks_of(name)[0].groups[0])
    return group.kind, group.permutable


# Two names of one operator

_ALIASES: dict[str, tuple[Callable[..., Tensor], str]] = {
    "multiply": (torch.multiply, "free"),
    "divide": (lambda h, g: torch.divide(h, 2 + g.sigmoid()), "free"),
    "subtract": (torch.subtract, "free"),
    "absolute": (lambda h, g: torch.absolute(h), "positive"),
    "negative": (lambda h, g: torch.negative(h), "free"),
    "greater": (lambda h, g: torch.greater(h, 0) * g, "positive"),
    "arctan": (lambda h, g: torch.arctan(h), "sign"),
    "arcsinh": (lambda h, g: torch.arcsinh(h), "sign"),
    "special.expit": (lambda h, g: torch.special.expit(h), "none"),
    "special.erf": (lambda h, g: torch.special.erf(h), "sign"),
    "special.softmax": (lambda h, g: torch.special.softmax(h, -1), "none"),
    "moveaxis": (lambda h, g: torch.moveaxis(h, 1, 2).mT, "free"),
    "concat": (lambda h, g: torch.concat([h, h], -1)[..., :H], "free"),
    "clip": (lambda h, g: h.clip(-1, 1), "sign"),
    "max of two": (lambda h, g: torch.max(h, g), "positive"),
}


@pytest.mark.parametrize("name", _ALIASES)
def test_an_alias_has_the_rule_of_its_operator(name: str) -> None:
    function, kind = _ALIASES[name]
    assert _of(_extracted(function)) == (kind, True)


def test_every_alias_ends_at_a_rule() -> None:
    names = ("multiply_", "divide", "special_expit", "special_log_softmax", "greater_equal_", "row_stack")
    assert [canonical(f"aten.{name}") for name in names] == [
        *("aten.mul", "aten.div", "aten.sigmoid", "aten.log_softmax", "aten.ge", "aten.vstack")
    ]
    assert all(rule_for(f"aten.{name}") is not None for name in names)


# What the hidden units keep

_PLACES = torch.tensor([0, 1, 1, 4, 3])


def _windows(h: Tensor) -> Tensor:
    """Four windows of two neighbouring positions, as Longformer has them."""
    return h.contiguous().as_strided((len(h), 4, 2, H), (5 * H, H, H, 1))


_OPERATIONS: dict[str, tuple[Callable[..., Tensor], str, bool]] = {
    # Sums and choices
    "addcmul": (lambda h, g: torch.addcmul(h, g, g, value=0.5), "free", True),
    "addcdiv": (lambda h, g: torch.addcdiv(h, h, 2 + g.sigmoid()), "free", True),
    "lerp by a gate": (lambda h, g: torch.lerp(h, 2 * h, g.sigmoid()), "free", True),
    "where with a batch axis": (
        lambda h, g: torch.where(torch.ones(3, 5, 1) > 0, h, 2 * h),
        "free",
        True,
    ),
    "where of numbers": (lambda h, g: torch.where(g > 0, 1.0, 0.0) * h, "free", True),
    "where with zero": (lambda h, g: torch.where(g > 0, h, 0.0), "free", True),
    "where with one": (lambda h, g: torch.where(h > 0, h, 1.0), "none", True),
    "clamp by a tensor": (lambda h, g: torch.clamp(h, min=g), "positive", True),
    # Along positions, and along units
    "cumsum of positions": (lambda h, g: h.relu().cumsum(1), "positive", True),
    "cumsum of units": (lambda h, g: h.cumsum(-1), "none", False),
    "cummax of positions": (lambda h, g: torch.cummax(h, 1)[0], "positive", True),
    "cumprod of positions": (lambda h, g: h.tanh().cumprod(1), "none", True),
    "fft of positions": (lambda h, g: torch.fft.fft(h.relu(), dim=1).real, "positive", True),
    "rfft and back": (lambda h, g: torch.fft.irfft(torch.fft.rfft(h, dim=1), n=5, dim=1), "free", True),
    "fft of units": (lambda h, g: torch.fft.fft(h).real, "none", False),
    "tril of positions and units": (lambda h, g: h.tril(), "free", False),
    # By index
    "list of positions": (lambda h, g: h[:, [0, 2]], "free", True),
    "mask of positions": (lambda h, g: h[:, torch.tensor([True, False, True, True, False])], "free", True),
    "list of units": (lambda h, g: h[..., [0, 1, 2, 3, 4, 5]], "none", False),
    "index_add": (lambda h, g: torch.zeros_like(h).index_add(1, _PLACES, h.relu()), "positive", True),
    "index_copy": (lambda h, g: g.index_copy(1, torch.arange(5).flip(0), h), "free", True),
    "index_put": (lambda h, g: torch.index_put(torch.zeros(3, 5, H), (torch.arange(3),), h), "free", True),
    "scatter_reduce": (
        lambda h, g: torch.zeros_like(h).scatter_reduce(1, _PLACES[:, None].expand(3, 5, H), h, "mean"),
        *("free", True),
    ),
    "scatter_reduce of maxima": (
        lambda h, g: torch.zeros_like(h).scatter_reduce(1, _PLACES[:, None].expand(3, 5, H), h, "amax"),
        *("positive", True),
    ),
    "overlapping windows": (lambda h, g: _windows(h.relu()).mean(2), "positive", True),
    "windows of a transposed tensor": (
        lambda h, g: (
            h.transpose(0, 1)
            .contiguous()
            .transpose(0, 1)
            .as_strided((3, 4, 2, H), (H, 3 * H, 3 * H, 1))
            .mean(2)
        ),
        *("free", True),
    ),
    "windows that cut units": (
        lambda h, g: h.contiguous().as_strided((3, 9, H), (5 * H, 3, 1)).mean(1, keepdim=True) + g,
        *("none", False),
    ),
    "windows over rows of the batch": (
        lambda h, g: h.contiguous().as_strided((3, 2, H), (H, H, 1)) + g[:, :2],
        "free",
        True,
    ),
    # Reductions of several results
    "var_mean": (lambda h, g: h / (1 + torch.var_mean(h, 1, keepdim=True)[0]), "none", True),
    "aminmax": (lambda h, g: h / (1 + h.aminmax(dim=1, keepdim=True)[1] ** 2), "none", True),
    # Products
    "outer": (lambda h, g: h * torch.outer(torch.arange(5.0), torch.arange(6.0)), "free", False),
}


@pytest.mark.parametrize("name", _OPERATIONS)
def test_what_an_operation_leaves_to_hidden_units(name: str) -> None:
    function, kind, permutable = _OPERATIONS[name]
    assert _of(_extracted(function)) == (kind, permutable)


def test_windows_beyond_a_tensor_are_refused() -> None:
    net = Between(lambda h, g: h[:, :2].as_strided((3, 4, H), (5 * H, H, 1)))
    with pytest.raises(UnknownOperationError, match="beyond its tensor"):
        extract(net, torch.randn(3, 5, 4), strict=True)


def test_windows_of_copies_in_one_memory_are_refused() -> None:
    net = Between(lambda h, g: h[:, :1].expand(3, 5, H).as_strided((3, 4, 2, H), (5 * H, 0, 0, 1)).mean(2))
    with pytest.raises(UnknownOperationError, match="share memory"):
        extract(net, torch.randn(3, 5, 4), strict=True)


def test_a_number_from_constants_costs_nothing() -> None:
    net = Between(lambda h, g: h * torch.full((1,), torch.arange(1, 3)[1].item()))
    assert not extract(net, torch.randn(3, 5, 4), strict=True).group("h1").trivial


def test_distances_leave_signs_and_permutations_of_coordinates() -> None:
    assert _of(_extracted(lambda h, g: torch.cdist(h, g), outputs=5)) == ("sign", True)


def test_a_mask_on_scores_costs_the_inner_units_nothing() -> None:
    def attention(h: Tensor, g: Tensor) -> Tensor:
        mask = torch.full((5, 5), -1e9).triu(1)
        return torch.baddbmm(mask, h, g.mT).softmax(-1)

    assert _of(_extracted(attention, outputs=5)) == ("free", True)


class _Image(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 6) -> None:
        super().__init__()
        self.a, self.o, self.function = nn.Conv2d(3, 6, 3), nn.Conv2d(channels, 2, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.function(self.a(x).relu()))


def _grid(h: Tensor) -> Tensor:
    return torch.linspace(-1, 1, 8).view(1, 2, 2, 2).expand(len(h), 2, 2, 2)


@pytest.mark.parametrize(
    ("function", "channels"),
    [
        (lambda h: F.grid_sample(h, _grid(h), align_corners=False), 6),
        (lambda h: F.grid_sample(h, torch.tanh(_grid(h) + h.mean((1, 2, 3))[:, None, None, None])), 6),
        (lambda h: F.unfold(h, 2).unflatten(-1, (3, 3)), 24),
        (lambda h: F.fold(F.unfold(h, 2), (4, 4), 2), 6),
    ],
    ids=["grid", "computed grid", "unfold", "fold"],
)
@pytest.mark.filterwarnings("ignore:Default grid_sample")
def test_patches_and_sampled_places_are_linear_in_every_channel(
    function: Callable[[Tensor], Tensor], channels: int
) -> None:
    net, x = _Image(function, channels), torch.randn(2, 3, 6, 6)
    spec = extract(net, x, strict=True)
    assert spec.verify(net, x).holds and _of(spec)[1]


def test_rotations_by_complex_numbers_leave_a_scale_per_pair() -> None:
    def rotated(h: Tensor, g: Tensor) -> Tensor:
        turn = torch.polar(torch.ones(5, 3), torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.1, 0.01]))
        q, k = (torch.view_as_complex(t.unflatten(-1, (3, 2)).contiguous()) * turn for t in (h, g))
        return (torch.view_as_real(q).flatten(-2) @ torch.view_as_real(k).flatten(-2).mT).softmax(-1)

    spec = _extracted(rotated, outputs=5)
    assert spec.gauge_dimension().continuous == 3 and spec.gauge_dimension().permutation_bits == 0


# Experts


class _Experts(nn.Module):
    """Rows go to the expert with the largest gate, all experts in one product."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.gate, self.o = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 2)
        self.up, self.down = (nn.Parameter(torch.randn(s) / 4) for s in ((4, 8, 16), (4, 16, 8)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x)
        weight, expert = self.gate(x).softmax(-1).max(-1)
        order = expert.argsort()
        ends = torch.histc(expert.float(), 4, 0, 3).cumsum(0).int()
        h = F.grouped_mm(F.silu(F.grouped_mm(x[order], self.up, offs=ends)), self.down, offs=ends)
        return self.o(x + (h * weight[order, None])[order.argsort()])


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped_mm")
def test_experts_in_one_product_keep_their_hidden_units() -> None:
    net, x = _Experts(), torch.randn(12, 8)
    spec = extract(net, x, strict=True)
    proof = spec.verify(net, x)
    assert proof.holds, proof
    assert spec.blocks_of("up")[0].axes[2].group == spec.blocks_of("down")[0].axes[1].group is not None
    assert spec.gauge_dimension().permutation_bits > 40


# Buffers that are weights


class _FrozenNorm(nn.Module):
    """A batch norm whose weights are buffers too, as detectors use it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "mean", "var"):
            self.register_buffer(name, torch.rand(size) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (t.view(1, -1, 1, 1) for _, t in self.named_buffers())
        scale = weight * (var + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


def test_buffers_that_training_leaves_alone_move_like_weights() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), _FrozenNorm(6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    spec = extract(net, torch.randn(2, 3, 5, 5), strict=True)
    assert spec.verify(net, torch.randn(2, 3, 5, 5)).holds and _of(spec, "0.bias")[1]
    assert spec.buffers == ("1.weight", "1.bias", "1.mean", "1.var")


@pytest.mark.parametrize("normed", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated")
def test_vectors_of_a_spectral_norm_are_permuted_with_its_rows(normed: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(normed(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2)), torch.randn(5, 4)
    spec = extract(net, x)
    proof = spec.verify(net, x)
    assert proof.holds, proof
    assert spec.group(spec.blocks_of("2.weight")[0].groups[1]).permutable


def test_constants_are_not_moved() -> None:
    net = Between(lambda h, g: h)
    net.register_buffer("scale", torch.rand(H), persistent=False)
    net.function = lambda h, g: h * net.scale
    assert not extract(net, torch.randn(3, 5, 4)).buffers


# Zeros have every scale, whether they are written as a number or as a tensor without dimensions.

_ZEROS: dict[str, Callable[..., Tensor]] = {
    "tensor": lambda h, g: torch.where(h > 0, h, torch.tensor(0.0)),
    "zeros": lambda h, g: torch.where(h > 0, torch.zeros(()).to(h), h),
    "new_zeros": lambda h, g: torch.where(h > 0, h, h.new_zeros(())),
    "full": lambda h, g: torch.where(h > 0, torch.full((), 0.0), h),
    "masked_fill": lambda h, g: h.masked_fill(h < 0, torch.tensor(0.0)),
    "one number": lambda h, g: torch.where(h > 0, h, torch.zeros(1)),
    "maximum": lambda h, g: torch.maximum(h, torch.tensor(0.0)),
    "minimum": lambda h, g: torch.minimum(h.new_zeros(1), h),
    "clamp": lambda h, g: h.clamp(min=torch.tensor(0.0)),
    "sum": lambda h, g: (torch.zeros(()) + h - torch.tensor(0.0)).relu(),
    "of another shape": lambda h, g: h.relu() + torch.zeros_like(g.sigmoid()) + h.relu().type_as(g.sin()),
}


@pytest.mark.parametrize("name", _ZEROS)
def test_a_zero_without_dimensions_costs_no_scale(name: str) -> None:
    assert _of(_extracted(_ZEROS[name])) == ("positive", True)


def test_another_number_without_dimensions_forbids_scales() -> None:
    assert _of(_extracted(lambda h, g: torch.where(h > 0, h, torch.tensor(1.0)))) == ("none", True)
