"""Learned optimizers built on the symmetry of weight space."""

from amortopt._version import __version__ as __version__

__all__ = ["__version__"]
