"""Base networks as params, other widths of them, and small metanets that do something."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import cache

import torch

from amortopt._types import Params
from amortopt.metanets import Conditions, ScaleGMN
from amortopt.symmetry import Block, SymmetrySpec, extract
from tests.cases import CASES, Case

READABLE = CASES
"""Plain networks: a graph can carry them all, and all of the other families in ``tests.cases.ALL_CASES``."""
RESIZABLE = tuple(case for case in CASES if case.name != "mixer")
"""Those whose hidden widths may change: all but the one with a block of three group axes."""
SMALL = {"width": 8, "channels": 2, "layers": 2, "heads": 2}


@cache
def spec_of(case: Case) -> SymmetrySpec:
    """The case's symmetry."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Operations without a rule leave less symmetry, which is a symmetry too.
        warnings.simplefilter("ignore")
        return extract(case.build(), case.example_input())


def without_scales(spec: SymmetrySpec) -> SymmetrySpec:
    """The same permutations and no scaling."""
    return replace(spec, groups=tuple(replace(group, kind="none") for group in spec.groups))


def networks(case: Case, count: int = 2, *, dtype: torch.dtype = torch.float64) -> Params:
    """Fresh networks [count, ...]; every parameter is filled, biases and PReLU's slopes too."""
    shapes = {name: p.shape for name, p in case.build().named_parameters()}
    return {
        name: torch.randn(count, *shape, dtype=dtype) / math.sqrt(math.prod(shape[1:]))
        for name, shape in shapes.items()
    }


def wider(case: Case, extra: int) -> Params:
    """One network, without a batch axis, with other widths: group k has ``extra`` + k % 2 more units."""
    spec = spec_of(case)
    sizes = {g.name: g.size + (extra + k % 2) * g.permutable for k, g in enumerate(spec.groups)}
    params: Params = {}
    for name, p in case.build().named_parameters():
        (block,) = spec.blocks_of(name)
        params[name] = torch.randn(_resized(block, p.shape, sizes), dtype=torch.float64) / 3
    return params


def _resized(block: Block, shape: torch.Size, sizes: dict[str, int]) -> list[int]:
    axes, lengths = list(block.axes), []
    for length in shape:
        old = new = 1
        while old < length or (axes and axes[0].size == 1 and len(axes) > len(shape) - len(lengths) - 1):
            axis = axes.pop(0)
            old, new = old * axis.size, new * (axis.size if axis.group is None else sizes[axis.group])
        lengths.append(new)
    return lengths


def metanet(spec: SymmetrySpec, *, dtype: torch.dtype = torch.float64, **config: object) -> ScaleGMN:
    """A small metanet with random parameters everywhere, gates included."""
    made = ScaleGMN(spec, **{**SMALL, **config})  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    made.open_gates()
    with torch.no_grad():
        made.node_gate.add_(0.3)
        made.edge_gate.sub_(0.3)
    return made.to(dtype)


def relative(got: Params, expected: Params) -> float:
    """Largest norm of a parameter's difference, relative to its norm."""
    assert list(got) == list(expected)
    with torch.no_grad():
        pairs = [(got[name], expected[name]) for name in got]
        return max(float((x - y).norm() / y.norm().clamp(min=1e-300)) for x, y in pairs)


def conditions_of(gradient: Params | None = None, l1: torch.Tensor | None = None) -> Conditions:
    """Conditions with a gradient that is the same everywhere."""
    return Conditions(None if gradient is None else lambda _: gradient, l1)
