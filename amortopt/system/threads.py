"""Work that only one thread of a process may do at a time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

PROCESS_STATE = threading.RLock()
"""Held while state of the whole process is changed: torch's tracers, seeds, warnings, the log level."""


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Let one thread at a time run this function and all others that are marked so.

    ``torch.export`` keeps what it traces in variables of the process, and random numbers have one state for
    all threads: two traces at once, or a trace and a seeded run, would mix. A function that holds the lock
    may call another that needs it.
    """

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with PROCESS_STATE:
            return function(*args, **kwargs)

    return alone
