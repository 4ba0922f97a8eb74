"""Metanets for updates: one step of a learned optimizer, for the parameters of any base network."""

from amortopt.updates.features import RuleState as RuleState
from amortopt.updates.layer import UpdateLayer as UpdateLayer
from amortopt.updates.layout import UpdateLayout as UpdateLayout
from amortopt.updates.rule import UpdateRule as UpdateRule

__all__ = ["RuleState", "UpdateLayer", "UpdateLayout", "UpdateRule"]
