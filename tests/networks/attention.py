"""Attention, written by hand in the ways people write it, and by the modules of torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.base import Case, family, inputs, several

WIDTH, HEADS, INNER = 6, 2, 3


class Packed(nn.Module):
    """One matrix for query, key and value; split, view, transpose; fused attention."""

    def __init__(self, *, causal: bool = False) -> None:
        super().__init__()
        self.qkv, self.out, self.causal = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), causal

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = (
            part.view(n, t, HEADS, width // HEADS).transpose(1, 2) for part in self.qkv(x).split(width, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).contiguous().view(n, t, width))


class PackedReshaped(nn.Module):
    """The packed axis is (3, heads, inner), as in Swin and timm; attention by products."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, HEADS, INNER).permute(2, 0, 3, 1, 4).unbind(0)
        attention = ((q * INNER**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.out((attention @ v).transpose(1, 2).reshape(n, t, width))


class PackedByHead(nn.Module):
    """The packed axis is (heads, 3 x inner): each head owns its query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, HEADS, 3 * INNER).transpose(1, 2).chunk(3, dim=-1)
        scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(INNER)
        return self.out((F.softmax(scores, -1) @ v).transpose(1, 2).flatten(2))


class Einsum(nn.Module):
    """Separate matrices and einsum; a causal mask by masked_fill."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mask", torch.tril(torch.ones(8, 8, dtype=torch.bool)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, HEADS, INNER) for layer in (self.q, self.k, self.v))
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k) * INNER**-0.5
        scores = scores.masked_fill(~self.mask[:t, :t], float("-inf"))
        y = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v)
        return self.out(y.reshape(n, t, WIDTH))


class PerHead(nn.Module):
    """A parameter tensor per role, heads as an axis of its own, no reshape at all."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = (nn.Parameter(torch.randn(WIDTH, HEADS, INNER) / 2) for _ in range(2))
        self.v, self.o = (
            nn.Parameter(torch.randn(HEADS, WIDTH, INNER) / 2),
            nn.Parameter(torch.randn(HEADS, INNER, WIDTH) / 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k = torch.einsum("ntf,fhd->nhtd", x, self.q), torch.einsum("ntf,fhd->nhtd", x, self.k)
        v = torch.einsum("ntf,hfd->nhtd", x, self.v)
        attention = torch.softmax(q @ k.mT, dim=-1)
        return torch.einsum("nhtd,hdf->ntf", attention @ v, self.o)


class LinearAttention(nn.Module):
    """No softmax over positions: a positive feature map, and products in the other order."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, HEADS, INNER) for layer in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        state = torch.einsum("nthd,nthe->nhde", k, v)
        norm = torch.einsum("nthd,nhd->nth", q, k.sum(1))
        y = torch.einsum("nthd,nhde->nthe", q, state) / (norm[..., None] + 1e-6)
        return self.out(y.reshape(n, t, WIDTH))


class QueryKeyNorm(nn.Module):
    """Query and key are normalised within their head before the product."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q_norm, self.k_norm = nn.LayerNorm(INNER), nn.LayerNorm(INNER)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, HEADS, INNER).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.out(y.transpose(1, 2).reshape(n, t, WIDTH))


class WindowAttention(nn.Module):
    """Shifted windows with a relative position bias, as in Swin."""

    index: Tensor

    def __init__(self, side: int = 2) -> None:
        super().__init__()
        self.side, self.qkv, self.out = side, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.bias_table = nn.Parameter(torch.randn((2 * side - 1) ** 2, HEADS))
        grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
        relative = (grid[:, :, None] - grid[:, None]).permute(1, 2, 0) + side - 1
        self.register_buffer("index", relative[..., 0] * (2 * side - 1) + relative[..., 1])

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        s, x = self.side, torch.roll(x, shifts=(-1, -1), dims=(1, 2))
        x = x.view(n, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
        q, k, v = self.qkv(x).reshape(len(x), s * s, 3, HEADS, INNER).permute(2, 0, 3, 1, 4)
        scores = (q * INNER**-0.5) @ k.transpose(-2, -1)
        bias = self.bias_table[self.index.view(-1)].view(s * s, s * s, -1).permute(2, 0, 1).contiguous()
        x = ((scores + bias.unsqueeze(0)).softmax(-1) @ v).transpose(1, 2).reshape(-1, s * s, c)
        x = self.out(x).view(n, h // s, w // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return torch.roll(x, shifts=(1, 1), dims=(1, 2))


class TorchAttention(nn.Module):
    """``nn.MultiheadAttention`` over one sequence or, with a memory, over another one."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        return self.attention(x, memory, memory, need_weights=False)[0]


class AveragedWeights(nn.Module):
    """Also returns the attention weights, averaged over heads."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(x, x, x)


class PooledByQuery(nn.Module):
    """One learned query attends to all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Parameter(torch.randn(4)), nn.Linear(5, 4), nn.Linear(5, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(torch.tanh(self.key(x)) @ self.query, dim=1)
        return self.head((weights.unsqueeze(-1) * self.value(x)).sum(dim=1))


class Stream(nn.Module):
    """Attention in a residual stream, between an input layer and a head."""

    def __init__(self, attention: Callable[[], nn.Module], shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 2)
        self.norm, self.attention, self.shape = nn.LayerNorm(WIDTH), attention(), shape

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).reshape(-1, *self.shape, WIDTH) if self.shape else self.stem(x)
        return self.head(x + self.attention(self.norm(x)))


def _in_stream(name: str, attention: Callable[[], nn.Module], permuted: tuple[int, ...], inner: int) -> Case:
    # A norm reads the stream, which forbids scaling it; what the norm writes is free. ``inner``: in heads.
    return family(
        name, lambda: Stream(attention), inputs(2, 4, 5),
        permuted=(WIDTH, *permuted), scaled=WIDTH + inner, flipped=WIDTH + inner,
    )  # fmt: skip


MEMORY = several(inputs(2, 4, WIDTH), inputs(2, 3, WIDTH))
HEADED = (HEADS, *[INNER] * 2 * HEADS)

CASES = (
    _in_stream("attention-packed", Packed, HEADED, 12),
    _in_stream("attention-causal", lambda: Packed(causal=True), HEADED, 12),
    _in_stream("attention-packed-reshaped", PackedReshaped, HEADED, 12),
    _in_stream("attention-packed-by-head", PackedByHead, HEADED, 12),
    _in_stream("attention-einsum", Einsum, HEADED, 12),
    _in_stream("attention-per-head", PerHead, HEADED, 12),
    _in_stream("attention-linear", LinearAttention, HEADED, 6),
    _in_stream("attention-query-key-norm", QueryKeyNorm, (2, 3, 3, 3), 9),
    family(
        "attention-windows", lambda: Stream(WindowAttention, (4, 4)), inputs(2, 16, 5),
        permuted=(WIDTH, *HEADED), scaled=18, flipped=18,
    ),
    _in_stream("attention-torch", TorchAttention, HEADED, 12),
    family("attention-torch-cross", TorchAttention, MEMORY, permuted=HEADED, scaled=12, flipped=12),
    family(
        "attention-torch-other-widths", lambda: TorchAttention(kdim=4, vdim=4, add_bias_kv=True),
        several(inputs(2, 4, WIDTH), inputs(2, 3, 4)), permuted=HEADED, scaled=12, flipped=12,
    ),
    family(
        "attention-torch-weights", AveragedWeights, inputs(4, 2, WIDTH),
        permuted=HEADED, scaled=12, flipped=12,
    ),
    family("attention-pooling", PooledByQuery, inputs(2, 4, 5), permuted=(4, 4), scaled=4, flipped=8),
)  # fmt: skip
"""One attention layer each."""
