"""Params as a graph: node sets of units, and edges between them."""

from __future__ import annotations
