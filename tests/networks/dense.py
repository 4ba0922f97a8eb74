"""Dense networks: gates, coordinates, sets, shared and factored weights, types of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.networks.base import family, filled, inputs


class Siren(nn.Module):
    """Sines of frequency omega over coordinates."""

    def __init__(self, omega: float = 30.0) -> None:
        super().__init__()
        self.layers, self.head, self.omega = (
            nn.ModuleList([nn.Linear(2, 6), nn.Linear(6, 5)]),
            nn.Linear(5, 3),
            omega,
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(self.omega * layer(x))
        return self.head(x)


class FourierFeatures(nn.Module):
    """Random frequencies in a buffer, sines beside cosines."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, 4))
        self.layers = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * math.pi * x @ self.frequencies
        return self.layers(torch.cat([x.sin(), x.cos()], dim=-1))


class Gated(nn.Module):
    """value(x) times a function of gate(x)."""

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.value, self.gates, self.function = nn.Linear(5, 6), nn.Linear(5, 6), gate
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.value(x) * self.function(self.gates(x)))


class Maxout(nn.Module):
    """The largest of two linear maps per unit."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces, self.head = nn.Linear(5, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pieces(x).view(-1, 6, 2).amax(dim=-1))


class Highway(nn.Module):
    """A gate decides between what is new and what passes by."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.new, self.gate = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        t = torch.sigmoid(self.gate(x))
        return self.head(t * torch.relu(self.new(x)) + (1 - t) * x)


class DeepSets(nn.Module):
    """A dense network of the sum over a set's elements, each in the light of their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.mean, self.head = nn.Linear(4, 6), nn.Linear(4, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.own(x) - self.mean(x.mean(dim=1, keepdim=True)))
        return self.head(x.sum(dim=1))


class Adapted(nn.Module):
    """A frozen dense layer with a low-rank adapter beside it."""

    def __init__(self, rank: int = 2, alpha: float = 4.0) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(5, 6).requires_grad_(False), nn.Linear(6, 3)
        self.down, self.up = nn.Parameter(torch.randn(rank, 5)), nn.Parameter(torch.zeros(6, rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.base(x) + (x @ self.down.T @ self.up.T) * self.scale))


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.encoder_bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4))
        self.decoder_bias = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(F.linear(x, self.weight, self.encoder_bias))
        return F.linear(code, self.weight.t(), self.decoder_bias)


class Repeated(nn.Module):
    """One layer, three times: a network unrolled in depth."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem(x))
        for _ in range(3):
            x = self.activation(self.layer(x))
        return self.head(x)


class ParameterLists(nn.Module):
    """Layers that are bare parameters in containers."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (4, 6, 5, 3)
        self.weights = nn.ParameterList(torch.randn(b, a) / 2 for a, b in pairwise(sizes))
        self.biases = nn.ParameterDict({f"b{i}": torch.randn(n) for i, n in enumerate(sizes[1:])})

    def forward(self, x: Tensor) -> Tensor:
        for i, weight in enumerate(self.weights):
            x = F.linear(x if i == 0 else x.relu(), weight, self.biases[f"b{i}"])
        return x


class WeightNorm(nn.Module):
    """Weights as direction and length."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = weight_norm(nn.Linear(5, 6)), weight_norm(nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.first(x)))


def _gated(gate: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Gated(gate)


def _frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    net[0].requires_grad_(False)
    return net


def _of_type(dtype: torch.dtype) -> nn.Module:
    return filled(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))).to(dtype)


def _batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def _glu() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 12), nn.GLU(), nn.Linear(6, 3))


X = inputs(4, 5)

CASES = (
    family("siren", Siren, inputs(3, 2), permuted=(6, 5), flipped=11),
    family("fourier-features", FourierFeatures, inputs(3, 2), permuted=(6,), scaled=6),
    family("bilinear-gate", _gated(lambda x: x), X, permuted=(6,), scaled=12, flipped=12),
    family("gated-tanh", _gated(torch.tanh), X, permuted=(6,), scaled=6, flipped=12),
    family("gated-relu", _gated(torch.relu), X, permuted=(6,), scaled=12, flipped=6),
    family("swiglu", _gated(F.silu), X, permuted=(6,), scaled=6, flipped=6),
    family("glu", _glu, X, permuted=(6,), scaled=6, flipped=6),
    family("maxout", Maxout, X, permuted=(6, *[2] * 6), scaled=6),
    family("highway", Highway, X, permuted=(6,), scaled=6),
    family("deep-sets", DeepSets, inputs(2, 3, 4), permuted=(6,), scaled=6),
    family("adapted", Adapted, X, permuted=(6, 2), scaled=8, flipped=2),
    family("tied-autoencoder", TiedAutoencoder, inputs(3, 6), permuted=(4,), flipped=4),
    family("repeated-tanh", lambda: Repeated(torch.tanh), inputs(3, 4), permuted=(6,), flipped=6),
    family("repeated-relu", lambda: Repeated(F.relu), inputs(3, 4), permuted=(6,), scaled=6),
    family("parameter-lists", ParameterLists, inputs(3, 4), permuted=(6, 5), scaled=11),
    family("weight-norm", WeightNorm, X, permuted=(6,), scaled=9, flipped=9),
    family("frozen", _frozen, X, permuted=(6,), flipped=6),
    family("batch-norm-1d", _batch_norm, X, permuted=(6,), scaled=6, flipped=6),
    family("float64", lambda: _of_type(torch.float64), lambda: X().double(), permuted=(6,), scaled=6),
    family("bfloat16", lambda: _of_type(torch.bfloat16), lambda: X().bfloat16(), permuted=(6,), scaled=6),
)  # fmt: skip
"""Dense networks."""
