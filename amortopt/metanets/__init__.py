"""Networks that read the weights of base networks."""

from __future__ import annotations

from amortopt.metanets.base import Metanet as Metanet
from amortopt.metanets.base import make_metanet as make_metanet
from amortopt.metanets.base import metanet_names as metanet_names
from amortopt.metanets.base import register_metanet as register_metanet
from amortopt.metanets.scalegmn import ScaleGMN as ScaleGMN
from amortopt.metanets.unf import UNF as UNF
from amortopt.metanets.unf import UNFInvariant as UNFInvariant
from amortopt.metanets.unf import UNFLayer as UNFLayer
from amortopt.metanets.unf import UNFPool as UNFPool
from amortopt.metanets.update_rule import UpdateRule as UpdateRule

__all__ = [
    "UNF",
    "Metanet",
    "ScaleGMN",
    "UNFInvariant",
    "UNFLayer",
    "UNFPool",
    "UpdateRule",
    "make_metanet",
    "metanet_names",
    "register_metanet",
]
