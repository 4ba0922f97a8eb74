from __future__ import annotations

from itertools import permutations, product

import torch
from torch import Tensor

from amortopt.symmetry import NeuronGroup, SymmetrySpec
from amortopt.symmetry.alignment.solve import best_element, best_signs


def total(scores: dict[frozenset[str], Tensor], signs: dict[str, Tensor]) -> Tensor:
    one = torch.ones(4, 5, dtype=torch.float64)
    return sum(
        (
            score * torch.stack([one, *(signs[s] * one for s in names)]).prod(0)
            for names, score in scores.items()
        ),
        torch.zeros(()),
    )


def test_signs_are_the_best_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {
        frozenset(names): torch.randn(4, 5, generator=generator, dtype=torch.float64)
        for names in ("", "a", "ab", "bc", "abc", "d", "ce")
    }
    best, signs = best_signs(scores)
    every = [
        total(scores, {s: torch.tensor(v) for s, v in zip("abcde", values, strict=True)})
        for values in product((1.0, -1.0), repeat=5)
    ]
    torch.testing.assert_close(best, torch.stack(every).amax(0))
    torch.testing.assert_close(total(scores, signs), best)


def test_element_of_heads_and_their_channels_is_the_best_of_all() -> None:
    heads, channels = (
        NeuronGroup("h", 3, "none", True, "layer"),
        NeuronGroup("c", 9, "none", True, "layer", within="h"),
    )
    spec = SymmetrySpec((heads, channels), ())
    generator = torch.Generator().manual_seed(0)
    scores = {
        name: torch.randn(n, n, generator=generator, dtype=torch.float64) for name, n in (("h", 3), ("c", 9))
    }
    g = best_element(spec, {name: {frozenset(): score} for name, score in scores.items()})

    def value(order: Tensor, inside: Tensor) -> float:
        return float(scores["h"][range(3), order].sum() + scores["c"][range(9), inside].sum())

    best = max(
        value(
            torch.tensor(order),
            torch.cat([3 * k + torch.tensor(run) for k, run in zip(order, runs, strict=True)]),
        )
        for order in permutations(range(3))
        for runs in product(permutations(range(3)), repeat=3)
    )
    assert value(g.permutations["h"], g.permutations["c"]) == best
