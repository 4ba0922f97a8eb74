"""Small networks of every kind, and the dense network that computes what a convolutional one does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt._types import Params


@dataclass(frozen=True)
class Small:
    """A network small enough for its whole Jacobian.

    Attributes:
        title: Name in the table.
        build: Makes it.
        input: Shape of one input.
        beyond: Null directions beyond the rescalings, counted by hand: what they are, and how many.
    """

    title: str
    build: Callable[[], nn.Module]
    input: tuple[int, ...]
    beyond: tuple[tuple[str, int], ...] = ()


class Residual(nn.Module):
    """Two convolutions with batch norm around a skip connection, between a stem and a head."""

    def __init__(self, channels: int = 4, hidden: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, channels, 3, bias=False)
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1, bias=False)
        self.norm, self.norm1 = nn.BatchNorm2d(channels), nn.BatchNorm2d(hidden)
        self.norm2, self.head = nn.BatchNorm2d(channels), nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return self.head(x.mean((-1, -2)))


class Recurrent(nn.Module):
    """An LSTM whose last state is read."""

    def __init__(self, hidden: int = 4) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, hidden, batch_first=True), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Transformer(nn.Module):
    """One layer of an encoder, with its norms after the sums."""

    def __init__(self, width: int = 6, heads: int = 2, hidden: int = 5) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.layer = nn.TransformerEncoderLayer(width, heads, hidden, 0.0, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


def _mlp(activation: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(5, 8), activation(), nn.Linear(8, 7), activation(), nn.Linear(7, 3)),
    )


def _cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
    )


NETWORKS = (
    Small("MLP, ReLU", lambda: _mlp(nn.ReLU), (5,)),
    Small("MLP, tanh", lambda: _mlp(nn.Tanh), (5,)),
    Small("CNN, ReLU", _cnn, (2, 7, 7)),
    Small(
        "ResNet, ReLU, batch norm",
        Residual,
        (2, 6, 6),
        (("kernels against the gains of their batch norm, which training mode's ε all but forbids", 11),),
    ),
    Small("LSTM", Recurrent, (5, 2), (("of two biases per gate only the sum counts", 16),)),
    Small(
        "transformer, ReLU, layer norm",
        Transformer,
        (4, 6),
        (
            (
                "between a head's queries and keys, and its values and outputs: GL(3), not only scales",
                24,
            ),
            ("biases of keys, values, embedding and last norm, which other biases replace", 24),
            ("what is written along (1, ..., 1) before a layer norm, or read along it after one", 28),
        ),
    ),
)


def make_generic(network: nn.Module, x: Tensor, generator: torch.Generator) -> None:
    """Disturb the weights, and set biases so that every unit is above zero on half of the inputs.

    A ReLU that is on for all inputs, or for none, has more null directions than its network in general.
    """
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.square().mean().sqrt())

    def centre(module: nn.Module, _: object, y: Tensor) -> Tensor:
        units = y.movedim(-1 if isinstance(module, nn.Linear) else 1, 0).flatten(1)
        shift = units.median(1).values
        assert isinstance(module.bias, nn.Parameter)
        module.bias.sub_(shift)
        return y - (shift if isinstance(module, nn.Linear) else shift.view(-1, *[1] * (y.ndim - 2)))

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm2d)
    parts = [m for m in network.modules() if type(m) in kinds and m.bias is not None]
    handles = [part.register_forward_hook(centre) for part in parts]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()


def convolutional() -> nn.Sequential:
    """Two convolutions and a head, on 8 positions: 3 channels on 6 positions, 2 channels on 4."""
    return nn.Sequential(
        *(nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Conv1d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    )


def dense() -> nn.Sequential:
    """The dense network with the same inputs, hidden units and outputs."""
    return nn.Sequential(nn.Linear(8, 18), nn.ReLU(), nn.Linear(18, 8), nn.ReLU(), nn.Linear(8, 2))


def as_dense(params: Params) -> Params:
    """The dense network's weights that compute what the convolutional network's do."""
    moved: Params = {}
    for name, to, length in (("0", "0", 8), ("2", "2", 6)):
        weight = params[f"{name}.weight"]
        eye = torch.eye(weight.shape[1] * length, dtype=weight.dtype).unflatten(1, (weight.shape[1], length))
        columns = F.conv1d(eye, weight).flatten(1)
        moved[f"{to}.weight"] = columns.T.contiguous()
        moved[f"{to}.bias"] = params[f"{name}.bias"].repeat_interleave(length - 2)
    return {**moved, "4.weight": params["5.weight"], "4.bias": params["5.bias"]}
