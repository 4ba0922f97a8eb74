"""Checks of numbers that users give."""

from __future__ import annotations


def check_counts(**counts: object) -> None:
    """Refuse what is no number of things, of which there is at least one.

    Args:
        counts: Argument name -> value.

    Raises:
        ValueError: One is no whole number of at least 1; True and False are none.

    Examples:
        >>> check_counts(width=3, rounds=1.0)
        Traceback (most recent call last):
        ...
        ValueError: rounds: got 1.0, expected a whole number of at least 1
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}, expected a whole number of at least 1")
