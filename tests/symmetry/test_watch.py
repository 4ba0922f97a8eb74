"""Branches on what is no number: the text of a tensor, an error that forward catches."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.symmetry import extract


class Between(nn.Module):
    """A hidden layer, and what ``function`` makes of it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(4, 6), nn.Linear(6, 2), function
        self.table = nn.Embedding(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def _says_nan(h: Tensor) -> Tensor:
    return h.sigmoid() if "nan" in str(h) else h.relu()


def _formatted(h: Tensor) -> Tensor:
    return h.relu() if len(f"{h.sum(1)}") > 45 else h


def _printed(h: Tensor) -> Tensor:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        print(h)
    return h.relu() if "-" in text.getvalue() else h


def _factored(h: Tensor) -> Tensor:
    try:
        return h @ torch.linalg.cholesky(h.mT @ h + torch.eye(6))
    except RuntimeError:
        return h.relu()


def _suppressed(h: Tensor) -> Tensor:
    with contextlib.suppress(IndexError):
        return h[h.argmax(1) - 1]
    return h.relu()


def _in_a_loop(h: Tensor) -> Tensor:
    for jitter in (0.0, 0.1, 1.0):
        try:
            return h @ torch.linalg.inv(jitter * torch.eye(6) + h.mT @ h)
        except torch.linalg.LinAlgError:
            continue
    return h


@pytest.mark.parametrize("function", [_says_nan, _formatted, _printed])
def test_a_branch_on_the_text_of_a_tensor_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="a branch depends on the text of a tensor"):
        extract(Between(function), torch.randn(8, 4))


@pytest.mark.parametrize("function", [_factored, _suppressed, _in_a_loop])
def test_an_error_that_forward_catches_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"a branch depends on whether \w+ fails, which forward catches"):
        extract(Between(function), torch.randn(8, 4))


def _logs(h: Tensor) -> Tensor:
    with contextlib.redirect_stdout(io.StringIO()):
        print("hidden", h)
    return h.relu()


def _explains(h: Tensor) -> Tensor:
    try:
        return (h @ torch.linalg.inv(h.mT @ h + torch.eye(6))).relu()
    except RuntimeError as error:
        raise ValueError("h has no inverse") from error


def _falls_back(h: Tensor) -> Tensor:
    try:  # by shapes, which are those of the example
        return h.view(len(h), 2, 3).relu().flatten(1)
    except RuntimeError:
        return h


def _cleans_up(h: Tensor) -> Tensor:
    try:
        return F.embedding(torch.zeros(len(h)).long(), h).relu()
    finally:
        del h


@pytest.mark.parametrize("function", [_logs, _explains, _falls_back, _cleans_up])
def test_texts_and_errors_that_decide_nothing_are_read(function: Callable[[Tensor], Tensor]) -> None:
    net, x = Between(function), torch.randn(8, 4)
    assert extract(net, x).verify(net, x).holds
