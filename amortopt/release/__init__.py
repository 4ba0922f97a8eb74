"""Release folders: weights, everything that made them, and a model card."""

from __future__ import annotations
