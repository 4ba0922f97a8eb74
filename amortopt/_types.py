"""The few type aliases that every layer shares."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

Params: TypeAlias = dict[str, Tensor]
"""Qualified parameter name -> tensor. A stacked ``Params`` has a leading network axis B in every tensor."""
