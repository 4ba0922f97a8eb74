"""The steps of random programs against the rules: no rule goes without programs that put it to the test."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile

from amortopt.symmetry.rules import rule_for
from amortopt.symmetry.rules.base import _RULES, canonical
from tests.symmetry.programs.base import STEPS, Program, Step

_NOT_AMONG_THE_STEPS = {
    "aten.softsign": "no operator: tracing makes it of x / (1 + |x|)",
    "aten.lift_fresh_copy": "what tracing makes of a tensor from a list",
    "aten._sparse_mm": "of a sparse matrix; tests/symmetry/finds",
    "aten._grouped_mm": "not in float64; tests/symmetry/test_further_operations.py",
    "transformers.grouped_mm_fallback": "of another library; benchmarks/symmetry --models transformers",
    "torchvision.roi_align": "of another library; benchmarks/symmetry --models torchvision",
}
_SHAPES = {
    2: [(2, 6), (2, 12)],
    3: [(2, 3, 6), (2, 4, 4)],
    4: [(2, 4, 2, 4), (2, 3, 2, 2)],
    5: [(2, 2, 3, 2, 2), (2, 2, 2, 2, 2)],
}


class _InTurn(Random):
    """Goes through long tables in order, so that a few draws have every entry."""

    longest, turn = 0, 0

    def choice(self, seq: Sequence[Any]) -> Any:
        if len(seq) < 6:
            return super().choice(seq)
        self.longest, self.turn = max(self.longest, len(seq)), self.turn + 1
        return seq[self.turn % len(seq)]


def _draws(step: Step, draws: int) -> None:
    """So many draws of a step, and one of each entry of its longest table."""
    r, sizes = _InTurn(0), [ndim for other, ndim in STEPS if other is step]
    shapes = [shape for ndim, shape in _SHAPES.items() if None in sizes or ndim in sizes]
    program = Program([])

    few = [torch.randn(shape) for pair in shapes for shape in pair]
    for draw in range(draws):
        _draw(program, step, few[draw % len(few)], r)
    for draw in range(r.longest):
        _draw(program, step, few[draw % len(few)], r)


def _draw(program: Program, step: Step, x: Tensor, r: Random) -> None:
    program.weights, program.parts, program.order = nn.ParameterList(), nn.ModuleList(), []
    program.used, program.used_parts, program.recording, program.shares = 0, 0, True, False
    program.seen = [torch.randn(2, 3, 6), x, 0.5 * x]
    step(program, x, r)


@pytest.mark.filterwarnings("ignore")
def test_every_rule_is_among_the_steps_of_random_programs() -> None:
    torch.manual_seed(0)
    with profile() as profiled:
        for step in dict.fromkeys(step for step, _ in STEPS):
            _draws(step, 60)
    # Those that no other operator called, by the names that rules have.
    events = [event.name for event in profiled.function_events if event.cpu_parent is None]
    called = {canonical(name.replace("::", ".")) for name in events if name.startswith("aten::")}
    assert set(_RULES) - called == set(_NOT_AMONG_THE_STEPS)
    # Constants, sizes and numbers of elements aside, no step calls what has no rule.
    made = (
        "nonzero",
        "nonzero_numpy",
        "masked_select",
        "unique_consecutive",
        "_unique2",
        "lift_fresh",
        "arange",
        "linspace",
        "eye",
        "randn",
        "randperm",
        "item",
        "sym_size",
    )
    unknown = {op for op in called if rule_for(op) is None and op.startswith("aten.")}
    assert unknown <= {f"aten.{name}" for name in made}


def test_every_rule_is_of_an_operator_that_torch_has() -> None:
    spaces = (torch.ops.aten, torch.ops.torchvision, torch.ops.transformers)
    names = [op.split(".")[1] for op in _RULES if op not in _NOT_AMONG_THE_STEPS]
    forms = ("{}", "{}_", "special_{}")
    absent = [n for n in names if not any(hasattr(s, f.format(n)) for s in spaces for f in forms)]
    assert not absent
