"""What may be permuted and rescaled in a network without changing its function."""

from __future__ import annotations

from amortopt.symmetry.action import Element as Element
from amortopt.symmetry.action import act as act
from amortopt.symmetry.action import compose as compose
from amortopt.symmetry.action import identity as identity
from amortopt.symmetry.action import inverse as inverse
from amortopt.symmetry.action import sample as sample
from amortopt.symmetry.axes import Axis as Axis
from amortopt.symmetry.axes import Block as Block
from amortopt.symmetry.axes import NeuronGroup as NeuronGroup
from amortopt.symmetry.axes import Operation as Operation
from amortopt.symmetry.axes import ScaleKind as ScaleKind
from amortopt.symmetry.axes import meet as meet
from amortopt.symmetry.extract import UnknownOperationError as UnknownOperationError
from amortopt.symmetry.extract import UnknownOperationWarning as UnknownOperationWarning
from amortopt.symmetry.extract import extract as extract
from amortopt.symmetry.gauge import GaugeDimension as GaugeDimension
from amortopt.symmetry.gauge import NullDirections as NullDirections
from amortopt.symmetry.gauge import null_directions as null_directions
from amortopt.symmetry.match import FamilyMismatchError as FamilyMismatchError
from amortopt.symmetry.match import Match as Match
from amortopt.symmetry.match import match as match
from amortopt.symmetry.proof.probes import Larger as Larger
from amortopt.symmetry.proof.verify import Proof as Proof
from amortopt.symmetry.proof.verify import verify as verify
from amortopt.symmetry.rules import RuleError as RuleError
from amortopt.symmetry.spec import SymmetrySpec as SymmetrySpec

__all__ = [
    "Axis",
    "Block",
    "Element",
    "FamilyMismatchError",
    "GaugeDimension",
    "Larger",
    "Match",
    "NeuronGroup",
    "NullDirections",
    "Operation",
    "Proof",
    "RuleError",
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
    "null_directions",
    "sample",
    "verify",
]
