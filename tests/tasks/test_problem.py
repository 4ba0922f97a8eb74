"""The problem interface: registry, the val split."""

from __future__ import annotations

import json

import numpy as np
import pytest

from amortopt.tasks import make_problem, problem_names
from amortopt.tasks.problem import hold_out


@pytest.mark.parametrize("name", problem_names())
def test_problem_config_is_json_and_makes_the_same_problem(name: str) -> None:
    problem = make_problem(name)
    again = make_problem(**json.loads(json.dumps(problem.to_config())))
    assert again == problem and hash(again) == hash(problem) and repr(again) == repr(problem)


@pytest.mark.parametrize("name", problem_names())
def test_problem_refuses_an_unknown_part(name: str) -> None:
    with pytest.raises(ValueError, match=r"which: got 'valid', expected one of train, val, test"):
        make_problem(name).split("valid")  # type: ignore[arg-type]


def test_make_problem_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown problem 'mnist2d'.*mnist1d"):
        make_problem("mnist2d")


def test_make_problem_unknown_argument_lists_those_it_has() -> None:
    with pytest.raises(ValueError, match=r"sead: problem 'mnist1d' has no such argument; it has seed"):
        make_problem("mnist1d", sead=1)


def test_hold_out_parts_are_disjoint_and_complete() -> None:
    train, val = hold_out(100, 10, seed=3)
    assert len(val) == 10
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), np.arange(100))
    assert not np.array_equal(hold_out(100, 10, seed=4)[1], val)


@pytest.mark.parametrize("held", [0, 5, 6])
def test_hold_out_leaves_something_in_both_parts(held: int) -> None:
    with pytest.raises(ValueError, match=r"held: got \d val examples of 5"):
        hold_out(5, held, seed=0)
