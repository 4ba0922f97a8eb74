"""Numbers of many networks: as JSON, and as mean with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from scipy import stats

from benchmarks.harness.store import Record, plain

Values: TypeAlias = Sequence[float | None]
"""A number per network; None is NaN or infinite."""


def values(tensor: torch.Tensor, digits: int) -> list[float | None]:
    """A tensor [B] as numbers with so many decimals; None for NaN and infinity."""
    return [round(v, digits) if math.isfinite(v) else None for v in tensor.double().tolist()]


def difference(a: Values, b: Values, sign: int = 1) -> list[float | None]:
    """``sign * (a - b)``, pair by pair."""
    return [None if x is None or y is None else sign * (x - y) for x, y in zip(a, b, strict=True)]


def mean(numbers: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(numbers) / len(numbers)


def summary(per_seed: Sequence[Values]) -> Record:
    r"""Mean and 95 % interval over meta-training seeds and networks.

    With values a[s, b] of seeds s = 1..S on the same networks b = 1..B, seed means a[s, .] and network means
    a[., b], the interval is :math:`\bar a \pm t_\nu \sqrt{v_S + v_B}`. There, :math:`v_S =
    \operatorname{var}_s(a_{s\cdot})/S` (0 for one seed), :math:`v_B = \operatorname{var}_b(a_{\cdot b})/B`, t
    is Student's 97.5 % quantile and :math:`\nu = (v_S+v_B)^2 / (v_S^2/(S-1) + v_B^2/(B-1))` (Welch and
    Satterthwaite).

    Args:
        per_seed: S sequences of B values.

    Returns:
        ``mean``, ``half`` (half-width of the interval), ``max`` (largest of a network, mean over seeds) and
        ``seeds`` (means per seed); None where a value is not finite, ``half`` also for one network.
    """
    array = np.array([[math.nan if v is None else v for v in row] for row in per_seed], dtype=np.float64)
    seeds, networks = array.shape
    result = {
        "mean": float(array.mean()),
        "half": None,
        "max": float(array.max(1).mean()),
        "seeds": array.mean(1).tolist(),
    }
    if networks > 1:
        over_seeds = float(array.mean(1).var(ddof=1)) / seeds if seeds > 1 else 0.0
        over_networks = float(array.mean(0).var(ddof=1)) / networks
        total = over_seeds + over_networks
        weights = over_networks**2 / (networks - 1) + (over_seeds**2 / (seeds - 1) if seeds > 1 else 0.0)
        freedom = total**2 / weights if weights else 1.0
        result["half"] = float(stats.t.ppf(0.975, freedom)) * math.sqrt(total)
    return plain(result)
