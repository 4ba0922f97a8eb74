"""Networks that read the weights of base networks."""

from __future__ import annotations

from amortopt.metanets.base import Functional as Functional
from amortopt.metanets.base import Metanet as Metanet
from amortopt.metanets.base import UpdateRule as UpdateRule
from amortopt.metanets.base import make as make
from amortopt.metanets.base import reads_answers as reads_answers
from amortopt.metanets.base import register as register
from amortopt.metanets.base import registered as registered
from amortopt.metanets.conditions import Conditions as Conditions
from amortopt.metanets.conditions import L1Range as L1Range
from amortopt.metanets.heads import Classes as Classes
from amortopt.metanets.heads import Head as Head
from amortopt.metanets.heads import Regression as Regression
from amortopt.metanets.pictures import PictureEditor as PictureEditor
from amortopt.metanets.pictures import PictureFunctional as PictureFunctional
from amortopt.metanets.probed import ProbedFunctional as ProbedFunctional
from amortopt.metanets.rounds import Rounds as Rounds
from amortopt.metanets.scalegmn import ScaleGMN as ScaleGMN
from amortopt.metanets.scalegmn import ScaleGMNDescent as ScaleGMNDescent
from amortopt.metanets.scalegmn import ScaleGMNEditor as ScaleGMNEditor
from amortopt.metanets.scalegmn import ScaleGMNFunctional as ScaleGMNFunctional
from amortopt.metanets.unf import UNF as UNF
from amortopt.metanets.unf import FixedUNFLayer as FixedUNFLayer
from amortopt.metanets.unf import UNFFunctional as UNFFunctional
from amortopt.metanets.unf import UNFPool as UNFPool
from amortopt.metanets.update_rule import UNFRule as UNFRule

__all__ = [
    "UNF",
    "Classes",
    "Conditions",
    "FixedUNFLayer",
    "Functional",
    "Head",
    "L1Range",
    "Metanet",
    "PictureEditor",
    "PictureFunctional",
    "ProbedFunctional",
    "Regression",
    "Rounds",
    "ScaleGMN",
    "ScaleGMNDescent",
    "ScaleGMNEditor",
    "ScaleGMNFunctional",
    "UNFFunctional",
    "UNFPool",
    "UNFRule",
    "UpdateRule",
    "make",
    "reads_answers",
    "register",
    "registered",
]
