"""Zoos in other people's file formats."""

from __future__ import annotations
