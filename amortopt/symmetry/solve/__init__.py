"""What the rules' constraints mean for units and scales."""

from __future__ import annotations
