"""Transformers: of torch, and as people write GPT, Llama, ViT, Mixer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.attention import HEADS, INNER, WIDTH, Einsum, Packed
from tests.networks.base import family, inputs, several, tokens

VOCABULARY = 7


class Encoder(nn.Module):
    """``nn.TransformerEncoder`` between an input layer and a head."""

    def __init__(self, *, final_norm: bool = False, **options: Any) -> None:
        super().__init__()
        options = {"dim_feedforward": 5, "dropout": 0.1, "batch_first": True} | options
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, **options)
        norm = nn.LayerNorm(WIDTH) if final_norm else None
        self.stem, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2)
        self.encoder = nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.stem(x)).mean(dim=1))


class Translator(nn.Module):
    """``nn.Transformer``: an encoder, and a decoder with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(VOCABULARY, WIDTH)
        self.transformer = nn.Transformer(WIDTH, HEADS, 1, 1, 5, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        mask = mask.to(self.head.weight.dtype)
        return self.head(
            self.transformer(self.source(source), self.target(target), tgt_mask=mask, tgt_is_causal=True)
        )


class Block(nn.Module):
    """Attention and a dense layer in a pre-norm residual stream."""

    def __init__(self, attention: nn.Module, inner: int = 5) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.attention = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), attention
        self.mlp = nn.Sequential(nn.Linear(WIDTH, inner), nn.GELU(), nn.Linear(inner, WIDTH), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Learned positions, causal blocks, logits by the embedding's own weight if ``tied``."""

    def __init__(self, attention: Callable[[], nn.Module], *, tied: bool, length: int = 8) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(length, WIDTH)
        self.blocks = nn.ModuleList(Block(attention()) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class HandWrittenRMSNorm(nn.Module):
    """x / rms(x) * gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


def _rotated(x: Tensor) -> Tensor:
    # [N, heads, T, D]: the pair (j, j + D/2) is turned by an angle that depends on position and j.
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] / 10.0 ** (torch.arange(half) / half)
    cos, sin = (torch.cat([f(angles)] * 2, -1).to(x.dtype) for f in (torch.cos, torch.sin))
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


class GroupedQueryAttention(nn.Module):
    """Rotary positions; two query heads share a key and value head."""

    def __init__(self, *, expand: bool, heads: int = 4, shared: int = 2, inner: int = 4) -> None:
        super().__init__()
        self.heads, self.shared, self.inner, self.expand = heads, shared, inner, expand
        self.wq, self.wo = (
            nn.Linear(WIDTH, heads * inner, bias=False),
            nn.Linear(heads * inner, WIDTH, bias=False),
        )
        self.wk, self.wv = (nn.Linear(WIDTH, shared * inner, bias=False) for _ in range(2))

    def _repeated(self, x: Tensor) -> Tensor:
        times = self.heads // self.shared
        if not self.expand:
            return x.repeat_interleave(times, dim=1)
        n, shared, t, inner = x.shape
        return x[:, :, None].expand(n, shared, times, t, inner).reshape(n, self.heads, t, inner)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.wq(x).view(n, t, self.heads, self.inner).transpose(1, 2)
        k, v = (f(x).view(n, t, self.shared, self.inner).transpose(1, 2) for f in (self.wk, self.wv))
        k, v = self._repeated(_rotated(k)), self._repeated(v)
        y = F.scaled_dot_product_attention(_rotated(q), k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(n, t, -1))


class Llama(nn.Module):
    """One block with RMS norms and SwiGLU, without any bias."""

    def __init__(self, norm: Callable[[int], nn.Module], *, expand: bool, inner: int = 5) -> None:
        super().__init__()
        self.tokens, self.head = (
            nn.Embedding(VOCABULARY, WIDTH),
            nn.Linear(WIDTH, VOCABULARY, bias=False),
        )
        self.norms = nn.ModuleList(norm(WIDTH) for _ in range(3))
        self.attention = GroupedQueryAttention(expand=expand)
        self.w1, self.w3 = (nn.Linear(WIDTH, inner, bias=False) for _ in range(2))
        self.w2 = nn.Linear(inner, WIDTH, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        x = x + self.attention(self.norms[0](x))
        y = self.norms[1](x)
        x = x + self.w2(F.silu(self.w1(y)) * self.w3(y))
        return self.head(self.norms[2](x))


class ViT(nn.Module):
    """Patches by convolution, a class token, learned positions, one block."""

    def __init__(self, patch: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, patch, stride=patch)
        self.token, self.positions = (
            nn.Parameter(torch.zeros(1, 1, WIDTH)),
            nn.Parameter(torch.randn(1, 5, WIDTH)),
        )
        self.block, self.norm, self.head = Block(Packed()), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.block(x))[:, 0])


class Positions(nn.Module):
    """Has more positions than a short sequence reaches, and a class token."""

    def __init__(self, length: int = 9) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, length, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((self.token.repeat(x.shape[0], 1, 1), self.stem(x)), dim=1)
        x = x + self.positions[:, : x.shape[1]]
        return self.head(F.relu(x).mean(dim=1))


class MLPMixer(nn.Module):
    """Dense layers over patches and over channels, in a pre-norm residual stream."""

    def __init__(self, patches: int = 4, over_patches: int = 5, over_channels: int = 7) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 2, stride=2)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.token = self._mlp(patches, over_patches)
        self.channel = self._mlp(WIDTH, over_channels)
        self.head = nn.Linear(WIDTH, 3)

    @staticmethod
    def _mlp(width: int, inner: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).mT
        x = x + self.token(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channel(self.norm2(x))
        return self.head(self.norm3(x).mean(1))


class GatedMLP(nn.Module):
    """gMLP: half of the units, mixed over positions, gates the other half."""

    def __init__(self, positions: int = 4, inner: int = 5) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2)
        self.norm, self.gate_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(inner)
        self.up, self.down = nn.Linear(WIDTH, 2 * inner), nn.Linear(inner, WIDTH)
        self.mix = nn.Conv1d(positions, positions, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        u, v = F.gelu(self.up(self.norm(x))).chunk(2, dim=-1)
        return self.head(x + self.down(u * self.mix(self.gate_norm(v)))).mean(1)


def _encoder(**options: Any) -> Callable[[], nn.Module]:
    return lambda: Encoder(**options)


HEADED = (HEADS, *[INNER] * 2 * HEADS)
SEQUENCE, IDS = inputs(2, 3, 4), tokens(VOCABULARY, 2, 4)

CASES = (
    family(
        "encoder-post-norm", _encoder(), SEQUENCE,
        permuted=(6, *HEADED, 5, *HEADED, 5), scaled=40, flipped=30,
    ),
    family(
        "encoder-pre-norm-gelu", _encoder(norm_first=True, activation="gelu", final_norm=True), SEQUENCE,
        permuted=(6, *HEADED, 5, *HEADED, 5), scaled=54, flipped=54,
    ),
    family(
        "translator", Translator, several(IDS, IDS),
        permuted=(6, *HEADED, 5, 6, *HEADED, *HEADED, 5), scaled=58, flipped=48,
    ),
    family(
        "gpt-tied", lambda: GPT(lambda: Packed(causal=True), tied=True), IDS,
        permuted=(6, *HEADED, 5, *HEADED, 5), scaled=48, flipped=48,
    ),
    family(
        "gpt-einsum", lambda: GPT(Einsum, tied=False), IDS,
        permuted=(6, *HEADED, 5, *HEADED, 5), scaled=54, flipped=54,
    ),
    family(
        "llama", lambda: Llama(nn.RMSNorm, expand=True), IDS,
        permuted=(6, 5, 2, 2, 2, 4, 4), scaled=35, flipped=41,
    ),
    family(
        "llama-by-hand", lambda: Llama(HandWrittenRMSNorm, expand=False), IDS,
        permuted=(6, 5, 2, 2, 2, 4, 4), scaled=35, flipped=41,
    ),
    family("vit", ViT, inputs(2, 3, 4, 4), permuted=(6, *HEADED, 5), scaled=30, flipped=30),
    family("positions", Positions, inputs(2, 3, 4), permuted=(6,), scaled=6),
    family("mlp-mixer", MLPMixer, inputs(2, 3, 4, 4), permuted=(6, 5, 7), scaled=12, flipped=12),
    family("gmlp", GatedMLP, inputs(2, 4, 4), permuted=(6, 5), scaled=6, flipped=6),
)  # fmt: skip
"""Transformers, small."""
