"""The best one-to-one assignment of rows to columns, exact."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def assignment(score: NDArray[np.float64]) -> NDArray[np.int64]:
    r"""The permutation that maximises :math:`\sum_i \text{score}_{i, \pi(i)}`.

    Shortest augmenting paths (Jonker & Volgenant 1987): rows and columns have prices u and v with
    cost[i, j] >= u[i] + v[j], equal where i is assigned to j. One row after the other is assigned along the
    cheapest path that moves other rows to other columns. O(n^3) operations in O(n^2) calls of numpy at most.

    Args:
        score: [n, n], finite.

    Returns:
        Column of every row, int64 [n].

    Raises:
        ValueError: ``score`` is not square, or not finite.

    Examples:
        >>> assignment(np.array([[9.0, 8.0], [7.0, 1.0]])).tolist()
        [1, 0]
    """
    cost = -np.asarray(score, dtype=np.float64)
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1] or not np.isfinite(cost).all():
        raise ValueError(f"score: got shape {cost.shape}, expected a square matrix of finite numbers")
    n = len(cost)
    v = cost.min(axis=0, initial=np.inf)
    u = (cost - v).min(axis=1, initial=np.inf)
    column_of, row_of = np.full(n, -1), np.full(n, -1)
    # Rows that are cheapest at a column of their own need no path.
    for i, j in enumerate((cost - v).argmin(axis=1) if n else ()):
        if row_of[j] < 0:
            column_of[i], row_of[j] = j, i
    for start in np.flatnonzero(column_of < 0):
        # Dijkstra from row `start` to the nearest free column
        distance, previous = np.full(n, np.inf), np.full(n, -1)
        open_columns, reached = np.ones(n, dtype=bool), []
        i, nearest, j = start, 0.0, -1
        while j < 0 or row_of[j] >= 0:
            if j >= 0:
                i = row_of[j]
                reached.append(j)
            through = nearest + cost[i] - u[i] - v
            closer = open_columns & (through < distance)
            distance[closer], previous[closer] = through[closer], i
            j = int(np.where(open_columns, distance, np.inf).argmin())
            nearest, open_columns[j] = distance[j], False
        u[start] += nearest
        u[row_of[reached]] += nearest - distance[reached]
        v[reached] -= nearest - distance[reached]
        while j >= 0:  # every row on the path takes the next column; the column of `start` was none, -1
            i = previous[j]
            row_of[j], column_of[i], j = i, j, column_of[i]
    return column_of
