"""Optional packages: each belongs to an extra of pyproject.toml, such as ``amortopt[train]``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtraError(ImportError):
    """An optional package is not installed; the message names the command that installs it."""


@contextmanager
def needed_for(purpose: str, *, extra: str) -> Iterator[None]:
    """Wrap imports of optional packages.

    Args:
        purpose: What the packages are imported for; the message begins with it.
        extra: The extra that installs them.

    Raises:
        MissingExtraError: One of them is not installed. Other import errors pass unchanged.

    Examples:
        >>> with needed_for("a picture", extra="demo"):
        ...     raise ModuleNotFoundError(name="matplotlib.figure")
        Traceback (most recent call last):
        amortopt.system.extras.MissingExtraError: a picture needs matplotlib: pip install 'amortopt[demo]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "amortopt", "torch"):
            raise
        raise MissingExtraError(f"{purpose} needs {package}: pip install 'amortopt[{extra}]'") from error
