"""What may be permuted and rescaled in a network without changing its function.

The room, in the order in which a network goes through it:

- ``inputs`` reads an ``example_input`` in any form, ``trace/`` records the operations that a network runs.
- ``extract`` labels every dimension of every value and calls, for each operation, its rule.
- ``rules/`` has one small function per family of operations. **A new operation's rule goes there**: into the
  file of its kind, under ``@rule("name")``; an alias goes into the table in ``rules/base.py``. A rule raises
  ``NoRule`` for calls that it was not written for; any other exception is a bug and is raised with the
  operation's name and module path. Its test goes into ``tests/symmetry/test_operations.py``, and a step that
  uses it into ``tests/symmetry/programs/``, whose random programs look for claims that do not hold.
- ``solve/`` has what rules constrain: which dimensions are made of the same units, with which scales
  (``labels``, with a worked example), and how the table is read off at the end (``table``).
- ``spec`` and ``axes`` are that table, ``SymmetrySpec``; ``blocks`` reads and writes blocks of parameters.
- ``action`` moves parameters by an element, ``proof/`` runs a network before and after, ``gauge`` counts,
  ``match`` compares two networks, ``alignment/`` brings them into one gauge, or each into a canonical
  one, and averages them.
"""

from __future__ import annotations

from amortopt.symmetry.action import Element, act, compose, identity, inverse, sample
from amortopt.symmetry.alignment.align import align, aligning_element, measure_batch_norms, merge
from amortopt.symmetry.alignment.canonical import canonical_element, canonical_params, canonicalise
from amortopt.symmetry.axes import Axis, Block, NeuronGroup, Operation, ScaleKind, meet
from amortopt.symmetry.extract import UnknownOperationError, UnknownOperationWarning, extract
from amortopt.symmetry.gauge import GaugeDimension, NullDirections, null_directions
from amortopt.symmetry.match import FamilyMismatchError, Match, match
from amortopt.symmetry.proof.probes import Larger
from amortopt.symmetry.proof.verify import Proof, verify
from amortopt.symmetry.rules import RuleError
from amortopt.symmetry.spec import SymmetrySpec
from amortopt.symmetry.trace.clock import ExtractionTimeoutError

__all__ = [
    "Axis",
    "Block",
    "Element",
    "ExtractionTimeoutError",
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
    "align",
    "aligning_element",
    "canonical_element",
    "canonical_params",
    "canonicalise",
    "compose",
    "extract",
    "identity",
    "inverse",
    "match",
    "measure_batch_norms",
    "meet",
    "merge",
    "null_directions",
    "sample",
    "verify",
]
