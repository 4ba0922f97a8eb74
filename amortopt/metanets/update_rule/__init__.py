"""Update rules: one step of a learned optimizer, for the parameters of any base network."""

from __future__ import annotations

from amortopt.metanets.update_rule.rule import UpdateRule as UpdateRule

__all__ = ["UpdateRule"]
