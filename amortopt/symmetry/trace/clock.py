"""A limit of time for tracing and labelling."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class ExtractionTimeoutError(ValueError):
    """Extraction took longer than ``seconds``."""


class Clock(TorchFunctionMode):
    """Raises when the time is over, at the next call of a torch function, or of ``check``.

    Args:
        seconds: From now on; None for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        super().__init__()
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if seconds is not None and not (number and seconds > 0):
            raise ValueError(f"seconds: got {seconds!r}, expected a positive number or None for no limit")
        self.seconds, self.start = seconds, time.monotonic()

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return self.seconds is not None and time.monotonic() - self.start > self.seconds

    def check(self) -> None:
        """Raise an ``ExtractionTimeoutError`` if the time is over."""
        if self.over:
            raise ExtractionTimeoutError(
                f"seconds: extraction took longer than {self.seconds:g} s; pass a larger limit, a smaller "
                "example_input, or the same class with fewer layers, whose table has the same pattern"
            )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Leaving torch.no_grad() is such a call too: broken off, it would leave gradients switched off.
        if func is not torch._C._set_grad_enabled:  # pyright: ignore[reportPrivateUsage]
            self.check()
        return func(*args, **(kwargs or {}))
