"""What the package needs of the operating system: files written whole, memory that is kept."""

from __future__ import annotations
