"""Targets of networks: columns of a table, and edits of pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amortopt.meta.functional.targets import dilate, edited, labels
from amortopt.metanets import Classes, Regression
from amortopt.zoo import Zoo

TABLE = {
    "label": np.array([0, 1, 2]),
    "accuracy": np.array([0.5, 0.25, 1.0]),
    "loss": np.array([0.5, np.nan, 1.0]),
    "split": np.array(["train", "val", "test"]),
}
ZOO = Zoo({}, TABLE, {"problem": {"name": "mnist1d"}, "family": {"name": "mlp"}})


def test_labels_have_the_type_of_the_head() -> None:
    assert labels(ZOO, "label", Classes(3)).tolist() == [0, 1, 2]
    numbers = labels(ZOO, "accuracy", Regression())
    assert numbers.dtype == torch.float32 and numbers.tolist() == [0.5, 0.25, 1.0]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("no_such", "which the zoo's table lacks; its columns of numbers are label, accuracy, loss"),
        ("split", "column 'split' holds <U5, expected numbers"),
        ("loss", "column 'loss' is missing or not finite for 1 of 3 networks"),
        ("accuracy", "has values such as 0.5, expected whole numbers for the head 'classes'"),
    ],
)
def test_labels_refuse(column: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labels(ZOO, column, Classes(3))


def test_dilate_takes_the_largest_neighbour() -> None:
    picture = torch.zeros(1, 5, 5)
    picture[0, 2, 1], picture[0, 0, 4] = 0.5, 1.0
    expected = torch.zeros(1, 5, 5)
    expected[0, 1:4, 0:3] = 0.5
    expected[0, 0:2, 3:5] = 1.0
    assert torch.equal(dilate(picture), expected)


def test_edits_need_pictures_and_a_known_name() -> None:
    with pytest.raises(ValueError, match="expected one of `amortopt zoo mnist-inr`"):
        edited(ZOO, "dilation")
    with pytest.raises(ValueError, match="got unknown edit 'blur', expected one of dilation, erosion"):
        edited(ZOO, "blur")
