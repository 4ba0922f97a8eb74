"""Meta-training of update rules."""

from __future__ import annotations
