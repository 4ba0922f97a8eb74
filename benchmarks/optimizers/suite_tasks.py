"""Networks and data of kinds that no meta-training saw, as people write them: plain modules and a loss.

All data come with Python, scikit-learn, scikit-image or this package; nothing is downloaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.tasks import make_problem

Pair = tuple[Tensor, Tensor]
Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """A network and its data.

    Attributes:
        build: A fresh network, from the global random state.
        data: Train and held-out inputs and targets.
        loss: Of outputs and targets, a mean.
        batch: Examples per step.
        about: One line for people.
        steps: Steps of a run; fewer where they take long.
    """

    build: Callable[[], nn.Module]
    data: Callable[[], tuple[Pair, Pair]]
    loss: Loss
    batch: int
    about: str
    steps: int = 500


@cache
def digits() -> tuple[Pair, Pair]:
    """8x8 images [n, 1, 8, 8] of scikit-learn: 1,400 and 397."""
    from sklearn.datasets import load_digits

    x, y = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    x = ((x.float() - 4.88) / 6.02).view(-1, 1, 8, 8)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return tuple((x[part], y[part]) for part in (order[:1400], order[1400:]))  # pyright: ignore


def images() -> tuple[Pair, Pair]:
    """digits as inputs and, flat, as targets."""
    return tuple((x, x.flatten(1)) for x, _ in digits())  # pyright: ignore


def images_16() -> tuple[Pair, Pair]:
    """The problem ``digits`` of this package, 16x16."""
    problem = make_problem("digits")
    return tuple((part.x, part.y) for part in map(problem.split, ("train", "val")))  # pyright: ignore


def regression(name: str) -> tuple[Pair, Pair]:
    """``diabetes`` or ``friedman``, standardised."""
    from sklearn import datasets

    if name == "diabetes":
        x, y = datasets.load_diabetes(return_X_y=True)
    else:
        x, y = datasets.make_friedman1(1200, noise=1.0, random_state=0)
    x, y = torch.as_tensor(x).float(), torch.as_tensor(y).float().view(-1, 1)
    x, y = ((v - v.mean(0)) / v.std(0) for v in (x, y))
    cut = len(x) * 3 // 4
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def text() -> tuple[Pair, Pair]:
    """Symbols [n, 32] and the next ones."""
    problem = make_problem("pydoc_text", length=32)
    return tuple((part.x, part.y) for part in map(problem.split, ("train", "val")))  # pyright: ignore


def photograph() -> tuple[Pair, Pair]:
    """Positions in [-1, 1]² and grey values of a 64x64 photograph; every fifth pixel is held out."""
    from skimage.data import camera

    image = torch.as_tensor(camera().copy()).float()[None, None]
    values = F.interpolate(image, (64, 64), mode="area").flatten() / 127.5 - 1
    axis = torch.linspace(-1, 1, 64)
    x, y = torch.cartesian_prod(axis, axis), values.view(-1, 1)
    held = torch.arange(len(x)) % 5 == 0
    return (x[~held], y[~held]), (x[held], y[held])


def sets() -> tuple[Pair, Pair]:
    """Sets of 12 points in the plane [n, 12, 2], to be told by how they were drawn: 4 kinds."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(2000) % 4
    angle = 6.2832 * torch.rand(2000, 12, generator=generator)
    radius = torch.where(y[:, None] % 2 == 0, 1.0, torch.rand(2000, 12, generator=generator).sqrt() * 1.3)
    stretch = torch.where(y > 1, 0.75, 1.0)[:, None]
    x = torch.stack([radius * angle.cos(), stretch * radius * angle.sin()], -1)
    x = x + 0.15 * torch.randn(x.shape, generator=generator)
    return (x[:1600], y[:1600]), (x[1600:], y[1600:])


class ResNet(nn.Module):
    """Two residual blocks with batch norms."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(5))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norms[0](self.stem(x)))
        for k in (0, 2):
            inside = torch.relu(self.norms[k + 1](self.convs[k](h)))
            h = torch.relu(h + self.norms[k + 2](self.convs[k + 1](inside)))
        return self.head(h.mean((2, 3)))


class Attention(nn.Module):
    """Pre-norm blocks of attention and MLP over vectors [n, T, D]."""

    def __init__(self, width: int, heads: int, blocks: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(blocks))
        self.project = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(blocks))

    def forward(self, h: Tensor) -> Tensor:
        n, t, d = h.shape
        for k in range(len(self.qkv)):
            q, key, v = self.qkv[k](self.norms[2 * k](h)).view(n, t, 3, self.heads, -1).unbind(2)
            mixed = F.scaled_dot_product_attention(
                q.transpose(1, 2), key.transpose(1, 2), v.transpose(1, 2), is_causal=self.causal
            )
            h = h + self.project[k](mixed.transpose(1, 2).reshape(n, t, d))
            h = h + self.down[k](F.gelu(self.up[k](self.norms[2 * k + 1](h))))
        return h


class ViT(nn.Module):
    """Patches of 4x4."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.body, self.norm = Attention(width, 4, 2, causal=False), nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.body(h)).mean(1))


class GPT(nn.Module):
    """A causal transformer over symbols, with tied embedding and head."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(97, width), nn.Embedding(32, width)
        self.body, self.norm = Attention(width, 4, 2, causal=True), nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.positions.weight[: x.shape[1]]
        return self.norm(self.body(h)) @ self.embedding.weight.t()


class LSTM(nn.Module):
    """One layer of 64 over symbols."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(97, 32), nn.LSTM(32, 64, batch_first=True)
        self.head = nn.Linear(64, 97)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x))[0])


class Sine(nn.Module):
    """sin(30 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


def siren() -> nn.Module:
    """Sitzmann et al. 2020, 2-64-64-64-1."""
    layers = [nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 1)]
    for k, layer in enumerate(layers):
        bound = 1 / 2 if k == 0 else (6 / 64) ** 0.5 / 30
        nn.init.uniform_(layer.weight, -bound, bound)
    return nn.Sequential(layers[0], Sine(), layers[1], Sine(), layers[2], Sine(), layers[3])


class Sets(nn.Module):
    """A Deep Set."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.whole = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(self.points(x).mean(1))


class VAE(nn.Module):
    """Means and logarithms of variances of 8 numbers; the noise is drawn anew at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decode = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log = self.encode(x).chunk(2, 1)
        return self.decode(mean + torch.randn(mean.shape) * (0.5 * log).exp()), mean, log


def elbo(outputs: tuple[Tensor, Tensor, Tensor], y: Tensor) -> Tensor:
    """Squared error of the images plus the divergence from N(0, 1), per pixel."""
    out, mean, log = outputs
    divergence = 0.5 * (mean.square() + log.exp() - 1 - log).sum(1).mean()
    return F.mse_loss(out, y) + divergence / y.shape[1]


def mlp(*widths: int) -> nn.Sequential:
    """With ReLU, on flat inputs."""
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def tuned_before() -> nn.Module:
    """An MLP that AdamW has trained on the other five digits."""
    net = mlp(64, 128, 128, 10)
    (x, y), _ = digits()
    old = y < 5
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(net(x[old]), y[old]).backward()
        optimizer.step()
    return net


def symbols(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy over all positions."""
    return F.cross_entropy(outputs.flatten(0, -2), y.flatten())


TASKS = {
    "resnet": Task(
        ResNet, digits, F.cross_entropy, 64, "ResNet with batch norms, 21 k weights, digits 8x8", 200
    ),
    "vit": Task(ViT, images_16, F.cross_entropy, 32, "vision transformer, 27 k, digits 16x16", 300),
    "lstm": Task(LSTM, text, symbols, 16, "LSTM, 34 k, text", 400),
    "gpt": Task(GPT, text, symbols, 16, "causal transformer with tied embedding, 62 k, text", 200),
    "mlp-1m": Task(
        lambda: mlp(256, 800, 800, 160, 10), images_16, F.cross_entropy, 64, "MLP, 976 k, digits 16x16", 100
    ),
    "friedman": Task(
        lambda: mlp(10, 64, 64, 1), lambda: regression("friedman"), F.mse_loss, 64, "regression, MLP of 5 k"
    ),
    "diabetes": Task(
        lambda: mlp(10, 64, 64, 1), lambda: regression("diabetes"), F.mse_loss, 64, "regression, MLP of 5 k"
    ),
    "autoencoder": Task(
        lambda: mlp(64, 64, 8, 64, 64), images, F.mse_loss, 64, "autoencoder, 9 k, digits 8x8"
    ),
    "vae": Task(VAE, images, elbo, 64, "variational autoencoder, 10 k, digits 8x8"),
    "siren": Task(siren, photograph, F.mse_loss, 512, "SIREN, 8.6 k, a photograph of 64x64"),
    "logistic": Task(lambda: mlp(64, 10), digits, F.cross_entropy, 64, "logistic regression, digits 8x8"),
    "fine-tuning": Task(
        tuned_before, digits, F.cross_entropy, 64, "MLP of 26 k trained on five digits, then on all ten"
    ),
    "sets": Task(Sets, sets, F.cross_entropy, 64, "Deep Set, 8.9 k, point clouds"),
}
