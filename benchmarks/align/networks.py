"""The pairs of networks, and the tables of permutations that a person would write for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Table: TypeAlias = Mapping[str, tuple[str | None, ...]]
"""Parameter -> name of the permutation along every axis, None for none."""

INPUTS, CLASSES = 40, 10


def mlp(activation: type[nn.Module], width: int = 128) -> nn.Sequential:
    """40-128-128-10."""
    return nn.Sequential(
        nn.Linear(INPUTS, width),
        activation(),
        nn.Linear(width, width),
        activation(),
        nn.Linear(width, CLASSES),
    )


class Cnn(nn.Module):
    """Three convolutions, global average, a linear layer."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.c1 = nn.Conv1d(1, channels, 5, stride=2, padding=2)
        self.c2 = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        self.c3 = nn.Conv1d(channels, channels, 3, padding=1)
        self.out = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 40] -> [B, 10]."""
        x = F.relu(self.c1(x[:, None]))
        return self.out(F.relu(self.c3(F.relu(self.c2(x)))).mean(-1))


class ResNet(nn.Module):
    """A convolution and two residual blocks, with batch norms."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.stem, self.norm = (
            nn.Conv1d(1, channels, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm1d(channels),
        )
        self.convs = nn.ModuleList(nn.Conv1d(channels, channels, 3, padding=1, bias=False) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in range(4))
        self.out = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 40] -> [B, 10]."""
        x = F.relu(self.norm(self.stem(x[:, None])))
        for k in (0, 2):
            y = F.relu(self.norms[k](self.convs[k](x)))
            x = F.relu(x + self.norms[k + 1](self.convs[k + 1](y)))
        return self.out(x.mean(-1))


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> the same."""
        y = self.n1(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.o(y)
        return x + self.down(F.gelu(self.up(self.n2(x))))


class Transformer(nn.Module):
    """Ten patches of four numbers, two layers."""

    def __init__(self, width: int = 32, heads: int = 4, hidden: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.position = nn.Parameter(0.02 * torch.randn(INPUTS // 4, width))
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(layers))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 40] -> [B, 10]."""
        x = self.embed(x.unflatten(1, (-1, 4))) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.out(self.norm(x).mean(1))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "mlp-tanh": lambda: mlp(nn.Tanh),
    "mlp-relu": lambda: mlp(nn.ReLU),
    "cnn": Cnn,
    "resnet-bn": ResNet,
    "transformer": Transformer,
}
TITLES = {
    "mlp-tanh": "MLP, tanh",
    "mlp-relu": "MLP, ReLU",
    "cnn": "CNN",
    "resnet-bn": "ResNet, batch norm",
    "transformer": "Transformer",
}

_MLP: Table = {
    "0.weight": ("h1", None),
    "0.bias": ("h1",),
    "2.weight": ("h2", "h1"),
    "2.bias": ("h2",),
    "4.weight": (None, "h2"),
    "4.bias": (None,),
}
_CNN: Table = {
    "c1.weight": ("h1", None, None),
    "c1.bias": ("h1",),
    "c2.weight": ("h2", "h1", None),
    "c2.bias": ("h2",),
    "c3.weight": ("h3", "h2", None),
    "c3.bias": ("h3",),
    "out.weight": (None, "h3"),
    "out.bias": (None,),
}


def _resnet() -> Table:
    rows: dict[str, tuple[str | None, ...]] = {"stem.weight": ("stream", None, None)}
    rows |= {"norm.weight": ("stream",), "norm.bias": ("stream",)}
    for k in range(4):
        out, into = (f"h{k}", "stream") if k % 2 == 0 else ("stream", f"h{k - 1}")
        rows[f"convs.{k}.weight"] = (out, into, None)
        rows |= {f"norms.{k}.weight": (out,), f"norms.{k}.bias": (out,)}
    return {**rows, "out.weight": (None, "stream"), "out.bias": (None,)}


def _transformer() -> Table:
    rows: dict[str, tuple[str | None, ...]] = {"embed.weight": ("stream", None), "embed.bias": ("stream",)}
    rows["position"] = (None, "stream")
    for k in range(2):
        at, hidden = f"layers.{k}", f"hidden{k}"
        for norm in ("n1", "n2"):
            rows |= {f"{at}.{norm}.weight": ("stream",), f"{at}.{norm}.bias": ("stream",)}
        # A flat table has no heads with channels in them, so these stay in their order.
        for name in "qkv":
            rows |= {f"{at}.{name}.weight": (None, "stream"), f"{at}.{name}.bias": (None,)}
        rows |= {f"{at}.o.weight": ("stream", None), f"{at}.o.bias": ("stream",)}
        rows |= {f"{at}.up.weight": (hidden, "stream"), f"{at}.up.bias": (hidden,)}
        rows |= {f"{at}.down.weight": ("stream", hidden), f"{at}.down.bias": ("stream",)}
    rows |= {"norm.weight": ("stream",), "norm.bias": ("stream",)}
    return {**rows, "out.weight": (None, "stream"), "out.bias": (None,)}


TABLES: Mapping[str, Table] = {
    "mlp-tanh": _MLP,
    "mlp-relu": _MLP,
    "cnn": _CNN,
    "resnet-bn": _resnet(),
    "transformer": _transformer(),
}
