"""From a module to the operations that it runs."""

from __future__ import annotations
