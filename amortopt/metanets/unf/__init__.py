"""Universal neural functionals: permutation-equivariant linear layers between weight spaces."""

from __future__ import annotations

from amortopt.metanets.unf.layer import FixedUNFLayer as FixedUNFLayer
from amortopt.metanets.unf.layer import UNFPool as UNFPool
from amortopt.metanets.unf.model import UNF as UNF
from amortopt.metanets.unf.model import UNFInvariant as UNFInvariant

__all__ = ["UNF", "FixedUNFLayer", "UNFInvariant", "UNFPool"]
