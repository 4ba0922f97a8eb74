"""Problems made of the user's own tensors or arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amortopt.tasks import ArrayProblem, CrossEntropy, SquaredError, make_problem, register_problem

X = np.linspace(-1, 1, 60).reshape(20, 3)
CLASSES, REAL = np.arange(20) % 4, np.linspace(0, 1, 20)


def test_array_problem_takes_classes_and_holds_out_a_val_part() -> None:
    problem = ArrayProblem((X, CLASSES), test=(X[:5], CLASSES[:5]), val_fraction=0.25)
    assert problem.objective == CrossEntropy(4) and problem.input_shape == (3,)
    train, val = problem.split("train"), problem.split("val")
    assert train.x.dtype == torch.float32 and train.y.dtype == torch.int64
    rows = torch.cat([train.x, val.x])[:, 0].sort().values
    assert len(val) == 5 and torch.equal(rows, torch.as_tensor(X[:, 0]).float())
    assert len(problem.split("test")) == 5


def test_array_problem_takes_real_targets_and_a_val_part() -> None:
    problem = ArrayProblem((torch.as_tensor(X), torch.as_tensor(REAL)), val=(X[:2], REAL[:2]))
    assert problem.objective == SquaredError((1,))
    assert problem.split("train").y.shape == (20, 1) and len(problem.split("val")) == 2


def test_array_problem_takes_an_objective() -> None:
    objective = SquaredError((1,), "psnr", peak=2.0)
    assert ArrayProblem((X, REAL), objective=objective).objective is objective


def test_array_problem_is_found_by_its_registered_name() -> None:
    @register_problem("registered arrays")
    def make() -> ArrayProblem:
        return ArrayProblem((X, CLASSES), name="registered arrays")

    assert make_problem(**make().to_config()) == make()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"train": X}, "train: got ndarray, expected a pair"),
        ({"train": (X, CLASSES[:-1])}, "train: got 20 inputs and 19 targets"),
        ({"train": (X[:0], CLASSES[:0])}, "train: got x of shape"),
        ({"train": (X * np.nan, CLASSES)}, "train: got x with values that are not finite"),
        ({"train": (X, CLASSES - 1)}, "train: got labels from -1 to 2"),
        ({"val": (X[:, :2], CLASSES)}, r"val: got x of shape \(2,\) per example, expected \(3,\)"),
        ({"test": (X, REAL)}, r"test: got y of shape \(1,\) per example"),
        ({"objective": CrossEntropy(3)}, "train: got labels from 0 to 3 in y, expected .* 0 to 2"),
        ({"val_fraction": 0.0}, "val_fraction: got 0.0"),
    ],
    ids=str,
)
def test_array_problem_refuses_what_does_not_fit(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArrayProblem(**{"train": (X, CLASSES)} | arguments)


def test_array_problem_without_test_part_says_so() -> None:
    with pytest.raises(ValueError, match=r"which: .* has no test part; pass test=\(x, y\)"):
        ArrayProblem((X, CLASSES)).split("test")
