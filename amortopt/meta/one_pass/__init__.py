"""Meta-training of one-pass metanets."""

from __future__ import annotations
