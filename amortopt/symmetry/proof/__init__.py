"""Proof of a symmetry by moving the weights and running the network."""

from __future__ import annotations
