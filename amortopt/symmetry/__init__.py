"""What may be permuted and rescaled in a network without changing its function."""

from __future__ import annotations

from amortopt.symmetry.action import Element as Element
from amortopt.symmetry.action import act as act
from amortopt.symmetry.action import compose as compose
from amortopt.symmetry.action import identity as identity
from amortopt.symmetry.action import inverse as inverse
from amortopt.symmetry.action import sample as sample
from amortopt.symmetry.extract import UnknownOperationError as UnknownOperationError
from amortopt.symmetry.extract import UnknownOperationWarning as UnknownOperationWarning
from amortopt.symmetry.extract import extract as extract
from amortopt.symmetry.match import FamilyMismatchError as FamilyMismatchError
from amortopt.symmetry.match import Match as Match
from amortopt.symmetry.match import match as match
from amortopt.symmetry.spec import Axis as Axis
from amortopt.symmetry.spec import Block as Block
from amortopt.symmetry.spec import NeuronGroup as NeuronGroup
from amortopt.symmetry.spec import Operation as Operation
from amortopt.symmetry.spec import ScaleKind as ScaleKind
from amortopt.symmetry.spec import SymmetrySpec as SymmetrySpec
from amortopt.symmetry.spec import meet as meet

__all__ = [
    "Axis",
    "Block",
    "Element",
    "FamilyMismatchError",
    "Match",
    "NeuronGroup",
    "Operation",
    "ScaleKind",
    "SymmetrySpec",
    "UnknownOperationError",
    "UnknownOperationWarning",
    "act",
    "compose",
    "extract",
    "identity",
    "inverse",
    "match",
    "meet",
    "sample",
]
