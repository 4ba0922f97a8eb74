from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from amortopt.symmetry.alignment.assignment import assignment


@pytest.mark.parametrize("n", range(7))
def test_assignment_is_the_best_of_all_permutations(n: int) -> None:
    score = np.random.default_rng(n).normal(size=(n, n))
    best = max(sum(score[i, j] for i, j in enumerate(order)) for order in permutations(range(n)))
    assert score[range(n), assignment(score)].sum() == pytest.approx(best)


@pytest.mark.parametrize("kind", ["any", "ties", "low-rank", "nearly-sorted"])
def test_assignment_agrees_with_scipy(kind: str) -> None:
    rng, n = np.random.default_rng(0), 60
    score = {
        "any": rng.normal(size=(n, n)),
        "ties": rng.integers(0, 3, size=(n, n)).astype(float),
        "low-rank": rng.random((n, 3)) @ rng.random((3, n)),
        "nearly-sorted": rng.normal(size=(n, n)) + 3 * np.eye(n)[rng.permutation(n)],
    }[kind]
    order = assignment(score)
    assert sorted(order) == list(range(n))
    rows, columns = linear_sum_assignment(score, maximize=True)
    assert score[rows, order].sum() == pytest.approx(score[rows, columns].sum(), rel=1e-12)


@pytest.mark.parametrize("score", [np.zeros((2, 3)), np.array([[np.nan]])])
def test_assignment_refuses_what_is_no_square_of_numbers(score: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"score: got shape .* expected a square matrix of finite numbers"):
        assignment(score)
