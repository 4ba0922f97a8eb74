"""Training of many base networks at once."""

from __future__ import annotations
