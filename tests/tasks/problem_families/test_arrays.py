"""Problems given as arrays: what is taken, how they are divided, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from amortopt.tasks import CrossEntropy, SquaredError
from amortopt.tasks.problem_families import Arrays, make_problem_family


def four(seed: int = 0, train: int = 6, **changes: Any) -> tuple[Any, ...]:
    draw = np.random.default_rng(seed)
    arrays = {
        "x_train": draw.normal(size=(train, 5)),
        "y_train": np.arange(train) % 3,
        "x_test": draw.normal(size=(4, 5)),
        "y_test": np.arange(4) % 3,
    }
    return tuple((arrays | changes).values())


def test_problems_of_different_sizes_are_padded() -> None:
    family = Arrays([four(k, train=6 + k) for k in range(4)], val=0.0, test=0.0)
    read, judged = family.draw("train", 0, 4, 100, 3)
    assert read.x.shape == (4, 9, 5) and read.x.dtype == torch.float32
    assert sorted(read.counts(4).tolist()) == [6, 7, 8, 9]
    assert judged.x.shape == (4, 3, 5) and judged.mask is None


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, np.ndarray.tolist])
def test_arrays_tensors_and_lists_are_one(kind: Any) -> None:
    family = Arrays([tuple(kind(a) for a in four(k)) for k in range(3)])
    assert family.objective == CrossEntropy(3) and family.input_shape == (5,)


def test_parts_share_no_problem_and_follow_from_the_seed() -> None:
    problems = [four(k) for k in range(40)]
    family = Arrays(problems, seed=1)
    parts = {which: family._items[which] for which in ("train", "val", "test")}
    assert [len(items) for items in parts.values()] == [28, 6, 6]
    assert sorted(k for items in parts.values() for k in items) == list(range(40))
    assert Arrays(problems, seed=1)._items == family._items != Arrays(problems, seed=2)._items


def test_real_targets_of_one_number_are_one_output() -> None:
    family = Arrays([four(k, y_train=np.zeros(6), y_test=np.ones(4)) for k in range(3)])
    assert family.objective == SquaredError((1,))
    assert family.draw("train", 0, 1, 6, 4)[0].y.shape == (1, 6, 1)


def test_config_makes_the_family_without_data() -> None:
    family = Arrays([four(k) for k in range(3)])
    again = make_problem_family(**family.to_config())
    assert again.objective == family.objective and again.input_shape == (5,)
    with pytest.raises(ValueError, match="has no data"):
        again.draw("train", 0, 1, 1, 1)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (four()[:3], r"problems\[2\]: got 3 values, expected \(x_train"),
        (np.zeros(3), r"problems\[2\]: got ndarray"),
        (four(x_train=np.full((6, 5), np.nan)), r"problems\[2\]: x_train has NaN"),
        (four(x_train=np.zeros((6, 4))), r"problems\[2\]: x_train has .* expected .*\(5,\)"),
        (four(x_test=np.zeros((4, 4))), r"problems\[2\]: x_test has"),
        (four(y_test=np.zeros(5, dtype=int)), r"problems\[2\]: y_test has 5 targets for 4 inputs"),
        (four(y_train=np.zeros(6)), r"problems\[2\]: y_train has"),
        (four(x_train=np.zeros((0, 5)), y_train=np.zeros(0, dtype=int)), "at least one example"),
        (four(x_train=np.array([{}] * 6)), r"problems\[2\]: x_train is no array of numbers"),
        (four(y_train=np.array([0, 1, 2, 0, 1, -1])), r"problems\[2\]: y_train: got labels from -1"),
    ],
)
def test_problem_that_does_not_fit_is_named_with_its_array(problem: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arrays([four(0), four(1), problem])


@pytest.mark.parametrize("problems", [[], "folder", np.zeros((3, 4))])
def test_what_is_no_list_of_problems_is_refused(problems: Any) -> None:
    with pytest.raises(ValueError, match="problems: got"):
        Arrays(problems)


def test_labels_outside_of_given_classes_are_named() -> None:
    with pytest.raises(ValueError, match=r"problems\[0\]: y_train: got labels from 0 to 2"):
        Arrays([four()], CrossEntropy(2).to_config())


def test_shares_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="leave some problems for training"):
        Arrays([four()], val=0.5, test=0.5)
