"""Base networks as functions of their params: output, loss and gradient, for one network or many."""

from __future__ import annotations
