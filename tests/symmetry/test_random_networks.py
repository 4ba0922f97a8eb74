"""Soundness over networks that nobody would write: whatever the rules claim has to hold."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.symmetry import SymmetrySpec, UnknownOperationWarning, extract
from amortopt.testing import assert_function_preserved

_POINTWISE = [
    *(torch.tanh, torch.relu, torch.sin, torch.abs, torch.neg, torch.clone),
    *(F.gelu, F.softsign, F.leaky_relu, F.hardtanh),
    *(lambda x: 0.5 * x, lambda x: x + 0.3, lambda x: x.softmax(-1), lambda x: x.softmax(1)),
]
_UNCOVERED = [
    lambda x: x.cumsum(1), lambda x: x.flip(-1), lambda x: x * x, lambda x: x.roll(1, -1),
    lambda x: x.sort(-1)[0],
]  # fmt: skip


class RandomNetwork(nn.Module):
    """A random program over tensors [N, C, L] and [N, F], fixed by its seed."""

    def __init__(self, seed: int, steps: int = 9) -> None:
        super().__init__()
        self.seed, self.steps = seed, steps
        self.weights = nn.ParameterList()
        self.recording = True
        with torch.no_grad():
            self.forward(torch.randn(2, 3, 6))
        self.recording = False

    def _weight(self, *shape: int) -> Tensor:
        if self.recording:
            self.weights.append(nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5))
        self.used += 1
        return self.weights[self.used - 1]

    def forward(self, x: Tensor) -> Tensor:
        self.used = 0
        choose = random.Random(self.seed)
        seen: list[Tensor] = []
        for _ in range(self.steps):
            x = self._step(x, choose, seen)
            seen.append(x)
        x = x.flatten(1)
        return F.linear(x, self._weight(2, x.shape[-1]))

    def _step(self, x: Tensor, choose: random.Random, seen: list[Tensor]) -> Tensor:
        kinds = ["linear", "linear", "pointwise", "pointwise", "residual", "mean", "add", "covered?"]
        kinds += ["conv", "conv", "pool", "flatten", "swap", "amax"] if x.ndim == 3 else ["fold", "unsqueeze"]
        kind = choose.choice(kinds)
        width = choose.choice([4, 6])
        if kind == "linear":
            return F.linear(x, self._weight(width, x.shape[-1]), self._weight(width))
        if kind == "conv":
            return F.conv1d(x, self._weight(width, x.shape[1], 3), self._weight(width), padding=1)
        if kind == "pointwise":
            return choose.choice(_POINTWISE)(x)
        if kind == "residual":
            return x + choose.choice([y for y in seen if y.shape == x.shape] or [x])
        if kind == "mean":
            return x + choose.choice([torch.mean, torch.amax])(x, dim=choose.choice([1, -1]), keepdim=True)
        if kind == "add":
            return x - self._weight(*choose.choice([x.shape[1:], x.shape[-1:], (1,)]))
        if kind == "covered?":
            return choose.choice(_UNCOVERED)(x) if choose.random() < 0.3 else x
        if kind == "pool":
            return F.max_pool1d(x, 3, 1, 1) if choose.random() < 0.5 else F.avg_pool1d(x, 3, 1, 1)
        if kind == "swap":
            return x.transpose(1, 2)
        if kind == "amax":
            return x.amax(choose.choice([1, 2]))
        if kind == "fold":
            return x.reshape(x.shape[0], 2, -1) if x.shape[1] % 2 == 0 else x
        return x.unsqueeze(choose.choice([1, 2])) if kind == "unsqueeze" else x.flatten(1)


def _extract(seed: int) -> tuple[nn.Module, Tensor, SymmetrySpec]:
    torch.manual_seed(seed)
    net, x = RandomNetwork(seed), torch.randn(3, 3, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownOperationWarning)
        return net, x, extract(net, x)


@pytest.mark.parametrize("seed", range(40))
def test_what_is_claimed_of_a_random_network_holds(seed: int) -> None:
    net, x, spec = _extract(seed)
    assert_function_preserved(net, x, spec, low=0.3, high=3, rtol=1e-8)


def test_random_networks_have_symmetry_to_claim() -> None:
    specs = [_extract(seed)[2] for seed in range(40)]
    assert sum(any(not group.trivial for group in spec.groups) for spec in specs) >= 10
    assert {group.kind for spec in specs for group in spec.groups} == {"positive", "sign", "free", "none"}
