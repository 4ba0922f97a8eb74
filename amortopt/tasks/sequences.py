"""Base networks over symbols: a recurrent network and a transformer that predict the next symbol.

Each is an ordinary module and has a second form for many networks at once (``forward_many``): batched
products with the network axis in front, no ``vmap``, and short second derivatives.

Legend: B networks, N examples, T positions, V symbols, D width of embedding or residual stream, H hidden
units; h heads of c channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.many import ManyModule, embedding_many, linear_many
from amortopt.tasks.derivatives import attend, recur, standardise
from amortopt.tasks.families import ACTIVATIONS, Family, check_activation, check_sizes, register_family

_VOCABULARY = 97  # symbols of amortopt.tasks.text
_LENGTH = 32


@register_family("char_rnn")
@dataclass(frozen=True)
class CharRnn(Family):
    r"""Recurrent network over symbols: embedding, one vanilla recurrent layer, ``Linear`` at every position.

    :math:`h_t = \phi(A e_{x_t} + a + U h_{t-1})` from :math:`h_0 = 0`, where U starts as the identity (Le et
    al. 2015, arXiv 1504.00941). With the defaults, of the size in Zhou et al. 2024 (arXiv 2402.05232).
    Parameters: ``embedding.weight`` [V, D], ``input.weight`` [H, D], ``input.bias``,
    ``recurrent`` [H, H], ``readout.weight`` [V, H], ``readout.bias``.

    Attributes:
        activation: Key of ``ACTIVATIONS``; of the recurrent layer.
        embedding: Width D.
        hidden: Units H.
        input_shape: ``(T,)``, positions of the example input; the network takes sequences of any length.
        num_classes: Symbols V, in and out.
    """

    activation: str = "tanh"
    embedding: int = 32
    hidden: int = 64
    input_shape: tuple[int, ...] = (_LENGTH,)
    num_classes: int = _VOCABULARY

    def __post_init__(self) -> None:
        check_activation(self.activation)
        check_sizes("embedding, hidden, num_classes", (self.embedding, self.hidden, self.num_classes))
        object.__setattr__(self, "input_shape", _one_axis(self.input_shape))

    def example_input(self) -> Tensor:
        return _tokens(self.input_shape, self.num_classes)

    def build(self) -> nn.Module:
        return CharRnnNetwork(self.num_classes, self.embedding, self.hidden, self.activation).eval()


@register_family("transformer")
@dataclass(frozen=True)
class Transformer(Family):
    """Causal transformer over symbols: pre-norm blocks, learned positions, ``Linear`` at every position.

    With the defaults, of the size in Zhou et al. 2024 (arXiv 2402.05232). Parameters: ``embedding.weight``
    [V, D], ``positions.weight`` [T, D], per block ``norm1``, ``query``, ``key``, ``value`` and ``project``
    [D, D], ``norm2``, ``up`` [ratio D, D] and ``down``, then ``norm`` and ``readout`` [V, D].

    Attributes:
        activation: Key of ``ACTIVATIONS``; inside the blocks.
        width: Units D of the residual stream.
        heads: Attention heads; they divide ``width``.
        blocks: Blocks of attention and MLP.
        ratio: Units of a block's MLP as a multiple of ``width``.
        input_shape: ``(T,)``, positions at most.
        num_classes: Symbols V, in and out.
    """

    activation: str = "relu"
    width: int = 32
    heads: int = 4
    blocks: int = 2
    ratio: int = 4
    input_shape: tuple[int, ...] = (_LENGTH,)
    num_classes: int = _VOCABULARY

    def __post_init__(self) -> None:
        check_activation(self.activation)
        sizes = (self.width, self.heads, self.blocks, self.ratio, self.num_classes)
        check_sizes("width, heads, blocks, ratio, num_classes", sizes)
        object.__setattr__(self, "input_shape", _one_axis(self.input_shape))
        if self.width % self.heads:
            raise ValueError(
                f"heads: got {self.heads} for width {self.width}, expected a divisor of the width"
            )

    def example_input(self) -> Tensor:
        return _tokens(self.input_shape, self.num_classes)

    def build(self) -> nn.Module:
        blocks = [
            TransformerBlock(self.width, self.heads, self.ratio, self.activation) for _ in range(self.blocks)
        ]
        return TransformerNetwork(self.num_classes, self.input_shape[0], self.width, blocks).eval()


class CharRnnNetwork(ManyModule):
    """Module of [CharRnn][amortopt.tasks.CharRnn]: symbols int64 [N, T] -> logits [N, T, V]."""

    def __init__(self, symbols: int, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.input = nn.Linear(width, hidden)
        self.recurrent = nn.Parameter(torch.eye(hidden))
        self.activation = ACTIVATIONS[activation]()
        self.readout = nn.Linear(hidden, symbols)

    def forward(self, x: Tensor) -> Tensor:
        drive = self.input(self.embedding(x))  # [N, T, H]
        states = [self.activation(drive[:, 0])]
        for t in range(1, x.shape[1]):
            states.append(self.activation(drive[:, t] + F.linear(states[-1], self.recurrent)))
        return self.readout(torch.stack(states, 1))

    def forward_many(self, params: Params, x: Tensor) -> Tensor:
        # The layer's input takes as many values as there are symbols: map the table, then look up.
        table = linear_many(params["embedding.weight"], params["input.weight"], params["input.bias"])
        drive = embedding_many(table, x.mT)  # [B, T, N, H]
        if isinstance(self.activation, nn.Tanh):
            states = recur(drive, params["recurrent"])
        else:
            first, *others = drive.unbind(1)
            each = [self.activation(first)]
            for step in others:
                each.append(self.activation(torch.baddbmm(step, each[-1], params["recurrent"].mT)))
            states = torch.stack(each, 1)
        return linear_many(states, params["readout.weight"], params["readout.bias"]).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Pre-norm block, residual stream [N, T, D] -> [N, T, D]: causal self-attention, then an MLP."""

    def __init__(self, width: int, heads: int, ratio: int, activation: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, ratio * width)
        self.activation = ACTIVATIONS[activation]()
        self.down = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        mixed = causal_attention(self.query(normed), self.key(normed), self.value(normed), self.heads)
        x = x + self.project(mixed)
        return x + self.down(self.activation(self.up(self.norm2(x))))

    def forward_many(self, params: Params, prefix: str, x: Tensor) -> Tensor:
        """The block of B networks: residual streams [B, N, T, D]; ``prefix`` of its names in ``params``."""
        normed = standardise(x, self.norm1.eps)
        joined = normed_linear_many(
            normed, params, f"{prefix}norm1", [prefix + n for n in ("query", "key", "value")]
        )
        count, examples, length = joined.shape[:3]  # query, key, value side by side: [B, N, T, 3 D]
        split = joined.view(count * examples, length, 3, self.heads, -1)
        mixed = attend(*split.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0))  # each [B N h, T, c]
        mixed = mixed.unflatten(0, (count, examples, self.heads)).transpose(2, 3).flatten(3)
        x = x + _named(mixed, params, f"{prefix}project")
        normed = standardise(x, self.norm2.eps)
        inner = self.activation(normed_linear_many(normed, params, f"{prefix}norm2", [f"{prefix}up"]))
        return x + _named(inner, params, f"{prefix}down")


class TransformerNetwork(ManyModule):
    """Module of [Transformer][amortopt.tasks.Transformer]: symbols int64 [N, T] -> logits [N, T, V]."""

    def __init__(self, symbols: int, length: int, width: int, blocks: list[TransformerBlock]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Linear(width, symbols)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.embedding(x) + self.positions.weight[: x.shape[1]]  # [N, T, D]
        for block in self.blocks:
            stream = block(stream)
        return self.readout(self.norm(stream))

    def forward_many(self, params: Params, x: Tensor) -> Tensor:
        positions = params["positions.weight"][:, None, : x.shape[2]]
        stream = embedding_many(params["embedding.weight"], x) + positions
        for i, block in enumerate(self.blocks):
            assert isinstance(block, TransformerBlock)
            stream = block.forward_many(params, f"blocks.{i}.", stream)
        return normed_linear_many(standardise(stream, self.norm.eps), params, "norm", ["readout"])


def causal_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Softmax attention to the position itself and those before, in plain products.

    Args:
        query, key, value: [N, T, D], the channels of a head behind each other.
        heads: Number of heads; divides D.

    Returns:
        [N, T, D]; differentiable to any order, unlike the fused kernels.
    """
    q, k, v = (a.unflatten(-1, (heads, -1)).transpose(1, 2) for a in (query, key, value))  # [N, h, T, c]
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    length = query.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    return (scores.masked_fill(later, float("-inf")).softmax(-1) @ v).transpose(1, 2).flatten(-2)


def normed_linear_many(x: Tensor, params: Params, norm: str, layers: list[str]) -> Tensor:
    """Linear layers, joined along their outputs, after the affine part of a layer norm.

    Args:
        x: Standardised inputs [B, N, T, D].
        params: Tensors [B, ...].
        norm: Name of the layer norm.
        layers: Names of the linear layers.

    Returns:
        [B, N, T, O]. The affine part is moved into the weights, which are fewer than the activations.
    """
    weight, bias = (torch.cat([params[f"{n}.{part}"] for n in layers], 1) for part in ("weight", "bias"))
    scale, shift = params[f"{norm}.weight"].unsqueeze(1), params[f"{norm}.bias"].unsqueeze(2)
    return linear_many(x, weight * scale, torch.baddbmm(bias.unsqueeze(2), weight, shift).squeeze(2))


def _named(x: Tensor, params: Params, layer: str) -> Tensor:
    return linear_many(x, params[f"{layer}.weight"], params[f"{layer}.bias"])


def _tokens(input_shape: tuple[int, ...], symbols: int) -> Tensor:
    """Symbols one after the other, [1, T]."""
    return torch.arange(input_shape[0]).unsqueeze(0) % symbols


def _one_axis(input_shape: tuple[int, ...]) -> tuple[int, ...]:
    input_shape = check_sizes("input_shape", input_shape)
    if len(input_shape) != 1:
        raise ValueError(f"input_shape: got {input_shape}, expected (length,), the positions of a sequence")
    return input_shape
