"""ScaleGMN: message passing along a network's weights, equivariant to permutations and scalings."""

from __future__ import annotations

from amortopt.metanets.scalegmn.descent import ScaleGMNDescent as ScaleGMNDescent
from amortopt.metanets.scalegmn.editor import ScaleGMNEditor as ScaleGMNEditor
from amortopt.metanets.scalegmn.functional import ScaleGMNFunctional as ScaleGMNFunctional
from amortopt.metanets.scalegmn.model import ScaleGMN as ScaleGMN

__all__ = ["ScaleGMN", "ScaleGMNDescent", "ScaleGMNEditor", "ScaleGMNFunctional"]
