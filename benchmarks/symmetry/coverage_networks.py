"""Networks of coverage.py that no library ships, written as people write them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp() -> nn.Module:
    """784-512-512-10."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)),
    )


def cnn(convolution: type[nn.Module], norm: type[nn.Module], pool: nn.Module) -> nn.Module:
    """Three strided convolutions with batch norm, pooled into a dense layer."""
    layers: list[nn.Module] = []
    for before, after in pairwise((1, 32, 64, 128)):
        layers += [convolution(before, after, 3, stride=2, padding=1), norm(after), nn.ReLU()]
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(128, 10))


class UNet(nn.Module):
    """Four resolutions, skip connections by concatenation, transposed convolutions."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256)) -> None:
        super().__init__()
        self.down = nn.ModuleList(self._twice(a, b) for a, b in pairwise((3, *widths)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.merge = nn.ModuleList(self._twice(2 * a, a) for a in widths[:-1])
        self.head = nn.Conv2d(widths[0], 2, 1)

    @staticmethod
    def _twice(before: int, after: int) -> nn.Module:
        layers = [
            nn.Sequential(nn.Conv2d(a, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            for a in (before, after)
        ]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, layer in enumerate(self.down):
            x = layer(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = self.merge[level](torch.cat([skips[level], self.up[level](x)], dim=1))
        return self.head(x)


class Siren(nn.Module):
    """Sines over coordinates."""

    def __init__(self, width: int = 256, layers: int = 4, omega: float = 30.0) -> None:
        super().__init__()
        sizes = (2, *[width] * layers)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head, self.omega = nn.Linear(width, 3), omega

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(self.omega * layer(x))
        return self.head(x)


class MixerBlock(nn.Module):
    """Dense layers over patches, then over channels."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.token, self.channel = self._mlp(patches, width // 2), self._mlp(width, 4 * width)

    @staticmethod
    def _mlp(width: int, inner: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel(self.norm2(x))


class Mixer(nn.Module):
    """MLP-Mixer S/16 at 224 pixels."""

    def __init__(self, width: int = 512, layers: int = 8, patch: int = 16, size: int = 224) -> None:
        super().__init__()
        patches = (size // patch) ** 2
        self.stem = nn.Conv2d(3, width, patch, stride=patch)
        self.blocks = nn.Sequential(*(MixerBlock(patches, width) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x).flatten(2).transpose(1, 2))).mean(dim=1))


class RecurrentClassifier(nn.Module):
    """Embedding, two recurrent layers in both directions, the mean over time."""

    def __init__(self, module: Callable[..., nn.Module], inner: int = 256) -> None:
        super().__init__()
        self.embed = nn.Embedding(2000, 128)
        self.rnn = module(128, inner, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * inner, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(ids))[0].mean(dim=1))


class EncoderClassifier(nn.Module):
    """``nn.TransformerEncoder`` of four layers over features, with learned positions."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.stem, self.positions = nn.Linear(40, width), nn.Parameter(0.02 * torch.randn(1, 64, width))
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 4), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.stem(x) + self.positions[:, : x.shape[1]])[:, 0])


class SelfAttention(nn.Module):
    """Causal, query, key and value in one matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = (
            part.view(n, t, self.heads, c // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(c, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).contiguous().view(n, t, c))


class GPTBlock(nn.Module):
    """Attention and a dense layer in a pre-norm residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        layers = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1)
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Learned positions; the logits' weight is the embedding's."""

    def __init__(self, width: int = 384, heads: int = 6, layers: int = 6, vocabulary: int = 5000) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(256, width)
        self.blocks = nn.Sequential(*(GPTBlock(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))


class LlamaBlock(nn.Module):
    """RMS norms, rotary positions, grouped queries, SwiGLU; no bias anywhere."""

    def __init__(self, width: int, heads: int, shared: int) -> None:
        super().__init__()
        self.heads, self.shared, self.inner = heads, shared, width // heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.wq, self.wo = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.wk, self.wv = (nn.Linear(width, shared * self.inner, bias=False) for _ in range(2))
        self.w1, self.w3 = (nn.Linear(width, 8 * width // 3, bias=False) for _ in range(2))
        self.w2 = nn.Linear(8 * width // 3, width, bias=False)

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n, t, c = x.shape
        q = _rotated(self.wq(x).view(n, t, self.heads, self.inner).transpose(1, 2), cos, sin)
        k = _rotated(self.wk(x).view(n, t, self.shared, self.inner).transpose(1, 2), cos, sin)
        v = self.wv(x).view(n, t, self.shared, self.inner).transpose(1, 2)
        k, v = (part.repeat_interleave(self.heads // self.shared, dim=1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(n, t, c))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self._attend(self.norm1(x), cos, sin)
        y = self.norm2(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Llama(nn.Module):
    """A decoder as Llama 3 has it."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int = 384, heads: int = 6, shared: int = 2, layers: int = 4) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(2000, width), nn.Linear(width, 2000, bias=False)
        self.blocks = nn.ModuleList(LlamaBlock(width, heads, shared) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        inner = width // heads
        angles = torch.outer(
            torch.arange(256), torch.exp(-math.log(1e4) * torch.arange(0, inner, 2) / inner)
        ).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x, t = self.tokens(ids), ids.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:t], self.sin[:t])
        return self.head(self.norm(x))


def autoencoder(code: int = 16) -> nn.Module:
    """Images of 32 pixels to 16 numbers and back."""
    half = {"kernel_size": 4, "stride": 2, "padding": 1}
    return nn.Sequential(
        *(nn.Conv2d(3, 32, **half), nn.ReLU(), nn.Conv2d(32, 64, **half), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(64 * 64, code), nn.Linear(code, 64 * 64), nn.ReLU(), nn.Unflatten(1, (64, 8, 8))),
        *(nn.ConvTranspose2d(64, 32, **half), nn.ReLU(), nn.ConvTranspose2d(32, 3, **half), nn.Sigmoid()),
    )


class MixtureOfExperts(nn.Module):
    """Each position is sent to its two best experts, whose weights are stacked."""

    def __init__(self, width: int = 256, experts: int = 8, inner: int = 512, chosen: int = 2) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(40, width), nn.LayerNorm(width), nn.Linear(width, 10)
        self.gate, self.chosen = nn.Linear(width, experts, bias=False), chosen
        self.w1 = nn.Parameter(torch.randn(experts, width, inner) / math.sqrt(width))
        self.w2 = nn.Parameter(torch.randn(experts, inner, width) / math.sqrt(inner))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(x)
        scores = self.gate(y)
        best, index = scores.topk(self.chosen, dim=-1)
        weights = torch.zeros_like(scores).scatter(-1, index, best.softmax(dim=-1))
        hidden = F.relu(torch.einsum("ntf,efh->neth", y, self.w1))
        experts = torch.einsum("neth,ehf->netf", hidden, self.w2)
        return self.head(x + torch.einsum("nte,netf->ntf", weights, experts))
