"""Networks without values: on the meta device, or of fake tensors; and the limit of time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from amortopt.symmetry import ExtractionTimeoutError, extract
from tests.cases import case


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.gain


class Layer(nn.Module):
    """Rotary attention and a gated MLP, as in Llama 2."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = Norm(width), Norm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        def turned(t: Tensor) -> Tensor:
            a, b = t.chunk(2, -1)
            return t * angles.cos() + torch.cat([-b, a], -1) * angles.sin()

        y = self.before(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.between(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(layers))
        self.norm, self.out = Norm(width), nn.Linear(width, vocabulary, bias=False)
        size = width // heads
        self.register_buffer("frequency", 1e4 ** -(torch.arange(0, size, 2) / size), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        angles = positions[:, None] * self.frequency  # type: ignore[operator]
        angles = torch.cat([angles, angles], -1)
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, angles)
        return self.out(self.norm(x))


def groups_and_axes(spec: Any) -> Any:
    """The table without sizes."""
    groups = [(g.name, g.kind, g.permutable, g.origin, g.within) for g in spec.groups]
    return groups, [(b.param, [str(axis) for axis in b.axes]) for b in spec.blocks]


def test_extract_of_seven_billion_weights_is_that_of_a_small_network() -> None:
    small = extract(Llama(32, 16, 2, 24, 20), torch.zeros(1, 8, dtype=torch.int64))
    with torch.device("meta"):
        large = Llama(32, 4096, 32, 11008, 32000)
        spec = extract(large, torch.zeros(1, 8, dtype=torch.int64))
    assert sum(p.numel() for p in large.parameters()) == 6_738_415_616
    assert groups_and_axes(spec) == groups_and_axes(small)
    assert spec.group("h1").size == 4096


NAMES = ["mlp-tanh", "cnn-2d", "resnet", "batch-norm-tanh", "lstm", "attention-torch", "vit"]


def as_on_meta(inputs: Any) -> Any:
    return tuple(map(as_on_meta, inputs)) if isinstance(inputs, tuple) else inputs.to("meta")


@pytest.mark.parametrize("name", NAMES)
def test_extract_on_the_meta_device_gives_the_same_table(name: str) -> None:
    net, x = case(name).build(), case(name).example_input()
    assert extract(net.to("meta"), as_on_meta(x)) == extract(case(name).build(), x)


@pytest.mark.parametrize("name", NAMES)
def test_extract_of_fake_tensors_gives_the_same_table(name: str) -> None:
    net, x, mode = case(name).build(), case(name).example_input(), FakeTensorMode()
    assert isinstance(x, Tensor)
    real = extract(net, x)
    for part in net.modules():
        for key, p in list(part.named_parameters(recurse=False)):
            setattr(part, key, nn.Parameter(mode.from_tensor(p.detach())))
        for key, b in list(part.named_buffers(recurse=False)):
            setattr(part, key, mode.from_tensor(b))
    assert extract(net, mode.from_tensor(x)) == real


def test_verify_of_a_network_without_values_says_what_to_do() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    spec = extract(net, torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"model: '0.weight' is on the meta device.*load the weights, or"):
        spec.verify(net.to("meta"), torch.zeros(1, 4, device="meta"))


class Endless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        while True:
            x = self.linear(x).tanh()


def test_extract_stops_when_its_time_is_over() -> None:
    with pytest.raises(ExtractionTimeoutError, match=r"seconds: extraction took longer than 0.5 s; pass"):
        extract(Endless(), torch.zeros(1, 3), seconds=0.5)


def test_extract_within_its_time_gives_the_same_table() -> None:
    net, x = case("mlp-tanh").build(), case("mlp-tanh").example_input()
    assert extract(net, x, seconds=1000.0) == extract(net, x)


def test_extract_refuses_a_limit_that_is_no_time() -> None:
    for seconds in (0, "1", True, float("nan")):
        with pytest.raises(
            ValueError, match=rf"seconds: got {seconds!r}, expected a positive number or None"
        ):
            extract(nn.Linear(3, 3), torch.zeros(1, 3), seconds=seconds)  # type: ignore[arg-type]
