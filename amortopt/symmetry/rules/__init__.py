"""One rule per operation, or per table of operations that are alike.

A rule gets the labels and the call. It adds constraints to the labels of the inputs (what is equal, what may
be rescaled, what keeps its order) and returns the labels of the output. An operation without a rule, and a
call that its rule declines with [NoRule][amortopt.symmetry.rules.NoRule], makes the groups that it touches
trivial.
"""

from __future__ import annotations

from amortopt.symmetry.rules import (  # noqa: F401, importing them registers their rules
    arithmetic,
    contraction,
    elementwise,
    indexing,
    joining,
    losses,
    matrices,
    normalization,
    positions,
    randomness,
    recurrent,
    reduction,
    shape,
)
from amortopt.symmetry.rules.base import Call, NoRule, Result, Rule, RuleError, Value, rule, rule_for

__all__ = ["Call", "NoRule", "Result", "Rule", "RuleError", "Value", "rule", "rule_for"]
