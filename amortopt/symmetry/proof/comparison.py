"""A network at its own weights against the same at moved ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.symmetry.action import Element, act, act_on_some
from amortopt.symmetry.proof.running import Runner, worst

if TYPE_CHECKING:
    from amortopt.symmetry.spec import SymmetrySpec

Mode: TypeAlias = Literal["eval", "training"]

MODES: tuple[Mode, ...] = ("eval", "training")


@dataclass
class Comparison:
    """Outputs at the runner's own weights against those at moved ones, mode by mode.

    Attributes:
        spec: The claimed symmetry.
        runner: The network.
        modes: What to run; a mode other than the first that cannot run is dropped with a note.
        errors: Mode -> largest difference so far.
        statistics: Largest difference of an updated buffer so far.
        notes: What was dropped.
    """

    spec: SymmetrySpec
    runner: Runner
    modes: Sequence[Mode]
    errors: dict[str, float] = field(default_factory=dict)
    statistics: float | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.own = {
            name: {**self.runner.params, **self.runner.buffers}[name]
            for name in (*self.spec.params, *self.spec.buffers)
        }
        self.before: dict[Mode, tuple[list[Tensor], Params]] = {}
        for mode in self.modes:
            try:
                self.before[mode] = self.runner.run({}, training=mode == "training")
            except Exception as error:
                if mode == "eval" or len(self.modes) == 1:
                    raise _does_not_run(mode, error) from error
                self.notes.append(f"{mode} mode left out, it does not run on this input: {_line(error)}")
        self.shows = any(bool(t.any()) for outputs, _ in self.before.values() for t in outputs)
        if not self.shows:
            self.notes.append("there is no output that is not zero, which shows nothing; try another input")

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.runner.device

    @property
    def finite(self) -> bool:
        """Whether the outputs are."""
        return all(bool(t.isfinite().all()) for outputs, _ in self.before.values() for t in outputs)

    @cached_property
    def different(self) -> dict[Mode, tuple[list[Tensor], Params]]:
        """What was there before, without modes that compute, to the bit, what another one does.

        With weights in general position that is no coincidence, and half of the runs can be saved.
        """
        found: dict[Mode, tuple[list[Tensor], Params]] = {}
        for mode, (outputs, buffers) in self.before.items():
            still = all(buffers[name].equal(b) for name, b in self.runner.buffers.items())
            if not still or not any(_same(outputs, others) for others, _ in found.values()):
                found[mode] = (outputs, buffers)
        return found

    def drawn(self) -> Comparison:
        """The same with random numbers drawn from a seed, not replaced by their means."""
        runner = copy.copy(self.runner)
        runner.drawn = True
        return Comparison(self.spec, runner, [*self.before])

    def try_element(self, g: Element) -> None:
        """Move by an element of the spec and add what it shows to ``errors`` and ``statistics``."""
        if not self.shows:
            return
        moved = act(self.spec, g, self.own)
        for mode, (expected, buffers) in self.different.items():
            got, after = self.runner.run(moved, training=mode == "training")
            self.errors[mode] = _max(self.errors.get(mode, 0.0), worst(got, expected))
            updated = [n for n, b in buffers.items() if not b.equal(self.runner.buffers[n])]
            if mode == "training" and updated:
                named = {name: buffers[name] for name in self.spec.buffers}
                there = {**buffers, **act_on_some(self.spec, g, named)}
                error = worst([after[n] for n in updated], [there[n] for n in updated])
                self.statistics = _max(self.statistics or 0.0, error)
        for mode in self.before.keys() - self.different.keys():
            self.errors[mode] = self.errors[next(iter(self.different))]

    def try_outside(self, g: Element, names: Sequence[str], rtol: float) -> float | None:
        """Largest difference over the modes, up to the first with one; None if the weights did not move."""
        own = {name: self.own[name] for name in names}
        moved = act_on_some(self.spec, g, own)
        if all(moved[name].equal(own[name]) for name in names):
            return None
        error = 0.0
        for mode, (expected, _) in self.different.items():
            got, _ = self.runner.run(moved, training=mode == "training")
            error = _max(error, worst(got, expected))
            if not error <= rtol:
                break
        return error


def _same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(x.equal(y) for x, y in zip(a, b, strict=True))


def _max(a: float, b: float) -> float:
    return b if math.isnan(b) or b > a else a


def _does_not_run(mode: Mode, error: Exception) -> ValueError:
    return ValueError(
        f"model: does not run on the example input in float64 and {mode} mode: {_line(error)[:300]}"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
