"""Base networks that every symmetry test, and every metanet test, runs over.

``CASES`` are plain networks, written here; ``FAMILY_CASES`` are small ones of every family, in networks/.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.symmetry import ScaleKind
from tests.networks import attention, convolutional, dense, experts, mobile, recurrent, transformers
from tests.networks.base import Case as Case
from tests.networks.base import inputs as _inputs


class HandWritten(nn.Module):
    """A user's own class: other names, layers registered in another order, activation in forward."""

    def __init__(self, inputs: int = 40, hidden: tuple[int, int] = (32, 32), outputs: int = 10) -> None:
        super().__init__()
        self.head = nn.Linear(hidden[1], outputs)
        self.second = nn.Linear(hidden[0], hidden[1])
        self.first = nn.Linear(inputs, hidden[0])

    def forward(self, x: Tensor) -> Tensor:
        x = F.tanh(self.first(x))
        return self.head(torch.tanh(self.second(x)))


class MatrixProducts(nn.Module):
    """A dense network without a single nn.Linear; the second weight is stored [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(7, 5)), nn.Parameter(torch.randn(7))
        self.w2, self.b2 = nn.Parameter(torch.randn(7, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.b2, torch.sin(x @ self.w1.T + self.b1), self.w2)


class Residual(nn.Module):
    """Two blocks around one stream: the stream is one group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.a, self.b = nn.Linear(8, 5), nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(x + self.b(F.relu(self.a(x))))


class Broadcast(nn.Module):
    """A hidden layer plus its mean over units: permutations only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.b(x + x.mean(dim=1, keepdim=True))


class PerPosition(nn.Module):
    """Dense layers along the last axis of [N, T, F], then one over the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.mix = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(torch.tanh(self.up(x)))
        return self.mix(torch.tanh(x.transpose(1, 2))).flatten(1)


class Mixer(nn.Module):
    """Dense layers along the units and along the positions: the positions' bias forbids scaling the units."""

    def __init__(self) -> None:
        super().__init__()
        self.units, self.positions, self.head = nn.Linear(4, 6), nn.Linear(5, 7), nn.Linear(42, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.units(x)).transpose(1, 2)
        return self.head(torch.relu(self.positions(x)).flatten(1))


class LowRank(nn.Module):
    """A weight that is a product of two parameters; the inner group meets nothing nonlinear."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 5))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(F.linear(x, self.u @ self.v)))


def _mlp(activation: Callable[[], nn.Module], widths: tuple[int, ...] = (40, 32, 32, 10)) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


def _mlp_image() -> nn.Module:
    return nn.Sequential(nn.Flatten(), _mlp(nn.ReLU, (48, 7, 3)))


def _mlp_case(name: str, activation: Callable[[], nn.Module], kind: ScaleKind) -> Case:
    return Case(f"mlp-{name}", lambda: _mlp(activation), _inputs(3, 40), (kind, kind))


def _cnn_1d() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(1, 4, 3, stride=2), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(4, 6, 3, padding=1), nn.LeakyReLU(0.1)),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3)),
    )  # fmt: skip


def _cnn_2d() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding="same", bias=False), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(4, 5, (3, 1)), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
    )


def _cnn_3d() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv3d(2, 3, 2), nn.ReLU(inplace=True), nn.MaxPool3d(2), nn.Conv3d(3, 4, 2), nn.SiLU()),
        *(nn.AvgPool3d(2), nn.Flatten(), nn.Linear(4, 3)),
    )


def _cnn_prelu() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.PReLU(4), nn.Conv1d(4, 3, 3), nn.Flatten())


def _cnn_flatten() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Flatten(), nn.Linear(5 * 4, 6), nn.ReLU(), nn.Linear(6, 3)),
    )


CASES: tuple[Case, ...] = (
    _mlp_case("tanh", nn.Tanh, "sign"),
    _mlp_case("relu", nn.ReLU, "positive"),
    _mlp_case("leaky-relu", nn.LeakyReLU, "positive"),
    _mlp_case("gelu", nn.GELU, "none"),
    _mlp_case("identity", nn.Identity, "free"),
    _mlp_case("hardtanh", nn.Hardtanh, "sign"),
    _mlp_case("softsign", nn.Softsign, "sign"),
    _mlp_case("tanhshrink", nn.Tanhshrink, "sign"),
    _mlp_case("relu6", nn.ReLU6, "none"),
    _mlp_case("prelu", nn.PReLU, "positive"),
    Case("mlp-one-layer", lambda: nn.Linear(4, 3), _inputs(2, 4), ()),
    Case("mlp-width-one", lambda: _mlp(nn.Tanh, (4, 1, 1, 2)), _inputs(1, 4), ("sign", "sign")),
    Case("mlp-image", _mlp_image, _inputs(2, 3, 4, 4), ("positive",)),
    Case(
        "mlp-dropout",
        lambda: _mlp(lambda: nn.Sequential(nn.Tanh(), nn.Dropout()), (6, 5, 3)),
        _inputs(4, 6),
        ("sign",),
    ),
    Case(
        "mlp-mixed",
        lambda: _mlp(lambda: nn.Sequential(nn.Tanh(), nn.ReLU()), (6, 5, 3)),
        _inputs(4, 6),
        ("none",),
    ),
    Case("hand-written", HandWritten, _inputs(3, 40), ("sign", "sign")),
    Case("matrix-products", MatrixProducts, _inputs(3, 5), ("sign",)),
    Case("residual", Residual, _inputs(3, 6), ("positive", "positive")),
    Case("broadcast", Broadcast, _inputs(3, 6), ("none",)),
    Case("per-position", PerPosition, _inputs(2, 5, 4), ("sign",)),
    Case("mixer", Mixer, _inputs(2, 5, 4), ("none", "positive")),
    Case("low-rank", LowRank, _inputs(3, 5), ("free", "sign")),
    Case("cnn-1d", _cnn_1d, _inputs(3, 1, 40), ("positive", "positive")),
    Case("cnn-2d", _cnn_2d, _inputs(2, 3, 8, 8), ("sign", "sign")),
    Case("cnn-3d", _cnn_3d, _inputs(2, 2, 7, 7, 7), ("positive", "none")),
    Case("cnn-flatten", _cnn_flatten, _inputs(2, 1, 8, 8), ("none", "positive", "positive")),
    Case("cnn-prelu", _cnn_prelu, _inputs(2, 2, 9), ("positive",)),
)
"""Plain networks; a test is parametrized by ``CASES, ids=str``."""

FAMILY_CASES: tuple[Case, ...] = (
    *convolutional.CASES,
    *mobile.CASES,
    *recurrent.CASES,
    *attention.CASES,
    *transformers.CASES,
    *dense.CASES,
    *experts.CASES,
)
"""Small networks of every family, with the least symmetry that a spec of them must have."""

ALL_CASES = (*CASES, *FAMILY_CASES)


def case(name: str) -> Case:
    """The case of that name."""
    return next(case for case in ALL_CASES if case.name == name)
