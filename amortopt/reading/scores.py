"""Scores of functionals, the bound that noise of labels sets, and the interval of held-out networks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortopt.metanets import Classes, Functional


def functional_scores(functional: Functional, raw: Tensor, target: Tensor) -> dict[str, float]:
    """Scores of raw numbers [n, k] against targets [n].

    Returns:
        ``loss``; ``accuracy`` in [0, 1] for classes; ``tau`` (Kendall's tau-b) and ``mae`` for a number.
    """
    scores = {"loss": functional.head.loss(raw, target).item()}
    if isinstance(functional.head, Classes):
        return scores | {"accuracy": (raw.argmax(-1) == target).double().mean().item()}
    answers = functional.head(raw)
    answers = answers[..., 0] if answers.ndim > target.ndim else answers
    scores["mae"] = (answers - target).abs().mean().item()
    return scores | ({"tau": tau(answers, target)} if answers.ndim == 1 else {})


def tau(predicted: Tensor, target: Tensor) -> float:
    """Kendall's rank correlation tau-b of two lists [n], with ties; 0 where one of them is constant.

    Raises:
        ValueError: The lists are not equally long.
    """
    if predicted.shape != target.shape or predicted.ndim != 1:
        raise ValueError(
            f"target: got shape {tuple(target.shape)}, expected {tuple(predicted.shape)} as predicted"
        )
    a, b = (np.asarray(values.cpu(), dtype=np.float64) for values in (predicted, target))
    signs = [np.sign(values[:, None] - values[None]) for values in (a, b)]
    pairs = [float((sign * sign).sum()) for sign in signs]
    agreeing = float((signs[0] * signs[1]).sum())
    return agreeing / math.sqrt(pairs[0] * pairs[1]) if min(pairs) > 0 else 0.0


def tau_bound(accuracy: np.ndarray, held_out: int, *, draws: int = 20, seed: int = 0) -> float:
    r"""Kendall's τ between accuracies and what is measured of them on so many examples, in the mean.

    Whoever knew every network's true accuracy p would reach no more on labels that are the share of right
    answers among M examples, which scatter by :math:`\sqrt{p(1-p)/M}`. The measured accuracies stand for p,
    and each draw measures them once more.

    Args:
        accuracy: Accuracies in [0, 1], [B].
        held_out: M.
        draws: Measurements to average over.
        seed: Of these draws.

    Raises:
        ValueError: There are fewer than two networks, or all accuracies are equal.

    Examples:
        >>> tau_bound(np.linspace(0.2, 0.9, 100), 100) < tau_bound(np.linspace(0.2, 0.9, 100), 10_000)
        True
    """
    p = np.asarray(accuracy, dtype=np.float64)
    if len(p) < 2 or p.min() == p.max():
        raise ValueError(
            f"accuracy: got {len(p)} networks with accuracies from {p.min(initial=1):g} to "
            f"{p.max(initial=0):g}, expected at least two that differ; equal labels order nothing"
        )
    truth, rng = torch.from_numpy(p), np.random.default_rng(seed)
    measured = [tau(truth, torch.from_numpy(rng.binomial(held_out, p) / held_out)) for _ in range(draws)]
    return float(np.mean(measured))


def distances(functional: Functional, raw: Tensor, target: Tensor) -> Tensor:
    """How far answers are from the truth [n]: of a number the distance, of classes 1 - p of the right one.

    Raises:
        ValueError: The head gives several numbers.
    """
    if isinstance(functional.head, Classes):
        return 1 - raw.softmax(-1).gather(-1, target[:, None])[:, 0]
    if functional.head.raw != 1:
        raise ValueError(
            f"head: got {functional.head.raw} numbers, expected one: intervals are of one number"
        )
    return (functional.head(raw)[..., 0] - target).abs()


def calibrate(functional: Functional, raw: Tensor, target: Tensor, coverage: float = 0.9) -> dict[str, Any]:
    """What an answer has to be widened by to cover the truth, from networks that training did not see.

    Split conformal prediction: of n held-out networks, the smallest distance that ceil((n + 1) coverage) of
    them do not exceed. A new network of the family is covered with at least that probability.

    Args:
        functional: Trained.
        raw: Its raw numbers of the held-out networks, [n, k].
        target: Their targets, [n].
        coverage: Wanted share, in (0, 1).

    Returns:
        ``coverage``, ``networks`` n and ``radius``: of a number, in its units; of classes, the largest 1 - p.
        Too few networks for the coverage give the radius None.
    """
    scores = distances(functional, raw, target)
    n = len(scores)
    rank = math.ceil((n + 1) * coverage)
    radius = float(torch.sort(scores.double()).values[rank - 1]) if rank <= n else None
    return {"coverage": coverage, "networks": n, "radius": radius}
