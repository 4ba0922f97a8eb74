"""Universal neural functionals: permutation-equivariant linear layers between weight spaces."""

from __future__ import annotations

from amortopt.metanets.unf.functional import UNFFunctional as UNFFunctional
from amortopt.metanets.unf.layer import FixedUNFLayer as FixedUNFLayer
from amortopt.metanets.unf.layer import UNFPool as UNFPool
from amortopt.metanets.unf.model import UNF as UNF

__all__ = ["UNF", "FixedUNFLayer", "UNFFunctional", "UNFPool"]
