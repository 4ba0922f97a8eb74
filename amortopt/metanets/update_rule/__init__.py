"""Update rules: one step of a learned optimizer, for the parameters of any base network."""

from __future__ import annotations

from amortopt.metanets.update_rule.rule import UNFRule as UNFRule

__all__ = ["UNFRule"]
