"""One small function per op family: what it ties, limits or pins, and the labels of its output.

A rule is registered for the operators that it covers and receives the labels and the call. Adding an op is
adding a function here; extraction does not change. An operator that no rule covers, and a call that its rule
declines with ``NoRule``, makes the groups that it touches trivial.
"""

from __future__ import annotations

from amortopt.symmetry.rules.base import Call as Call
from amortopt.symmetry.rules.base import NoRule as NoRule
from amortopt.symmetry.rules.base import Result as Result
from amortopt.symmetry.rules.base import Rule as Rule
from amortopt.symmetry.rules.base import RuleError as RuleError
from amortopt.symmetry.rules.base import Value as Value
from amortopt.symmetry.rules.base import rule as rule
from amortopt.symmetry.rules.base import rule_for as rule_for

from . import arithmetic as arithmetic
from . import attention as attention
from . import contraction as contraction
from . import elementwise as elementwise
from . import indexing as indexing
from . import joining as joining
from . import normalization as normalization
from . import positions as positions
from . import recurrent as recurrent
from . import reduction as reduction
from . import shape as shape

__all__ = ["Call", "NoRule", "Result", "Rule", "RuleError", "Value", "rule", "rule_for"]
