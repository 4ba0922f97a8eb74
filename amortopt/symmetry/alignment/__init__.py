"""Networks brought into each other's gauge: assignment, scales, permutations and signs, averages."""

from __future__ import annotations
