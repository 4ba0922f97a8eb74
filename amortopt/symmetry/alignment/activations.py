"""Activation matching: correlations of what units compute on given inputs.

Where a group's values are is found by moving it: the network runs at its weights, and with the units of one
group in another order. A value that comes out in that order along one axis, and is otherwise the same, is the
group's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amortopt._types import Params
from amortopt.symmetry.action import Element, act_on_some, identity
from amortopt.symmetry.alignment.solve import Scores, Signs
from amortopt.symmetry.proof.running import Runner

if TYPE_CHECKING:
    from amortopt.symmetry.spec import SymmetrySpec

_RTOL = 1e-9


class _Values(TorchDispatchMode):
    """Keeps the results of all operations that depend on the inputs; results of views too."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.memory = {_storage(x) for x in inputs}
        self.names: list[str] = []
        self.values: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(_storage(x) in self.memory for x in read):
            for value in (x for x in tree_leaves(result) if isinstance(x, Tensor)):
                self.memory.add(_storage(value))
                if value.is_floating_point():
                    self.names.append(str(func))
                    # A later operation may write into it.
                    self.values.append(value.clone() if func._schema.is_mutable else value)
        return result


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def values_of(runner: Runner, weights: Params) -> tuple[list[str], list[Tensor]]:
    """Names and results of the operations that a network runs in eval mode and that depend on its inputs."""
    with _Values(runner.inputs.tensors) as recorded:
        runner.run(weights)
    return recorded.names, recorded.values


@dataclass(frozen=True)
class Place:
    """Where values of a group are.

    Attributes:
        value: Index among the network's values.
        axes: The axis along the group, or one along its owner and one along the run.
        odd: Groups whose signs multiply the value.
    """

    value: int
    axes: tuple[int, ...]
    odd: Signs

    def read(self, values: list[Tensor]) -> Tensor:
        """[n, rest]: the values of every unit."""
        x = values[self.value].movedim(self.axes, tuple(range(len(self.axes))))
        return x.flatten(0, len(self.axes) - 1).unsqueeze(-1).flatten(1)


def correlations(spec: SymmetrySpec, a: Runner, b: Runner) -> Scores:
    """Sums of correlations of the values of every unit of a with those of every unit of b.

    Args:
        spec: Symmetry of both networks.
        a: A network with the inputs.
        b: Another one, with the same inputs.

    Returns:
        Scores of the groups whose values were found; a constant unit has a correlation of 0 with all.

    Raises:
        ValueError: The two do not run the same operations on these inputs.
    """
    names, values = values_of(a, {})
    others, other_values = values_of(b, {})
    if names != others or [x.shape for x in values] != [x.shape for x in other_values]:
        raise ValueError(
            "b: got a network that runs other operations on these inputs than a; its forward depends on "
            "values. Use by='weights'"
        )
    weights = {name: (a.params | a.buffers)[name] for name in (*spec.params, *spec.buffers)}
    along: dict[int, dict[str, Place]] = {}
    for group in dict.fromkeys(spec.units_of(g.name) for g in spec.groups):
        for place in _places(spec, group, a, weights, values):
            along.setdefault(place.value, {})[group] = place
    scores: Scores = {}
    for places in along.values():
        # Heads are compared by their channels. A value along two unrelated groups has no order to compare in.
        inner = [g for g in places if not any(g in spec.owners(other)[1:] for other in places)]
        if len(inner) == 1:
            place, of_group = places[inner[0]], scores.setdefault(inner[0], {})
            x, y = (_standardised(place.read(v)) for v in (values, other_values))
            score = (x @ y.mT).cpu()
            of_group[place.odd] = of_group[place.odd] + score if place.odd in of_group else score
    return scores


def _standardised(x: Tensor) -> Tensor:
    """[n, rest] with mean 0 and norm 1 in every row."""
    x = x - x.mean(1, keepdim=True)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    size = float(norm.max()) if x.numel() else 0.0
    return torch.where(norm > 1e-9 * size, x / norm, 0.0)


def _places(
    spec: SymmetrySpec, group: str, a: Runner, weights: Params, values: list[Tensor]
) -> Iterator[Place]:
    """Where the values of a group are, in a network."""
    n, r = spec.group(group).size, spec.run(group)
    if not spec.group(group).permutable or r == 1:
        return
    turned = identity(spec)
    # In the first run only, so that no other axis as long as the owner's can be taken for it
    turned.permutations[group] = torch.cat([torch.arange(r).roll(1), torch.arange(r, n)])
    for other in spec.groups:  # all that the group owns moves with it
        if other.name != group and other.within is not None and group in spec.owners(other.name):
            owner = turned.permutations[other.within]
            run = spec.run(other.name)
            turned.permutations[other.name] = (owner[:, None] * run + torch.arange(run)).flatten()
    moved = _values_after(spec, turned, a, weights)
    flips: dict[str, list[Tensor]] = {}
    for other in spec.groups:
        if other.kind in ("sign", "free") and spec.units_of(other.name) == group:
            flip = identity(spec)
            flip.scales[other.name] = -flip.scales[other.name]
            flips[other.name] = _values_after(spec, flip, a, weights)
    for index, value in enumerate(values):
        if _same(moved[index], value):
            continue
        axes: list[tuple[int, ...]] = [(p,) for p, size in enumerate(value.shape) if size == n]
        if spec.group(group).within is not None:
            axes += [
                (p, q) for p, m in enumerate(value.shape) for q, size in enumerate(value.shape)
                if p != q and (m, size) == (n // r, r)
            ]  # fmt: skip
        for axis in axes:
            place = Place(index, axis, frozenset())
            if not _same(place.read(moved), place.read(values)[turned.permutations[group]]):
                continue
            odd = {name for name, flipped in flips.items() if _same(flipped[index], -value)}
            if all(name in odd or _same(flipped[index], value) for name, flipped in flips.items()):
                yield Place(index, axis, frozenset(odd))
            break


def _values_after(spec: SymmetrySpec, g: Element, a: Runner, weights: Params) -> list[Tensor]:
    return values_of(a, act_on_some(spec, g, weights))[1]


def _same(x: Tensor, y: Tensor) -> bool:
    return bool(torch.linalg.vector_norm(x - y) <= _RTOL * torch.linalg.vector_norm(y))
