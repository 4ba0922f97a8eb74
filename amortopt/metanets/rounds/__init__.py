"""One pass that reads its problem: gradients at learned proposals, written into each network's gauge."""

from __future__ import annotations

from amortopt.metanets.rounds.model import Rounds as Rounds

__all__ = ["Rounds"]
