"""Branches on what is no number: the text of a tensor, an error that forward catches."""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from amortopt.symmetry import extract
from tests.symmetry.between import Between


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


def _number_or_one(h: Tensor) -> Tensor:
    try:
        factor = float(h.sum())
    except RuntimeError:
        factor = 1.0
    return factor * h.relu()


def _truth_or_sum(h: Tensor) -> Tensor:
    try:
        return h.relu() if h.sum() > 0 else h.sigmoid()
    except RuntimeError:
        return h.relu()


def _array_or_none(h: Tensor) -> Tensor:
    with contextlib.suppress(RuntimeError):
        return h.relu() * torch.from_numpy(h.detach().numpy()).sum()
    return h.relu()


def _at_last(h: Tensor) -> Tensor:
    factor = 1.0
    try:
        factor = float(h.sum())
    finally:
        return factor * h.relu()  # noqa: B012


@pytest.mark.parametrize("function", [_number_or_one, _truth_or_sum, _array_or_none, _at_last])
def test_an_error_of_tracing_that_forward_catches_does_not_hide_a_number(
    function: Callable[[Tensor], Tensor],
) -> None:
    with pytest.raises(ValueError, match=r"number|outside of torch"):
        extract(Between(function), torch.randn(8, 4))


def test_what_is_read_at_an_address_is_refused() -> None:
    def first(h: Tensor) -> Tensor:
        return h.relu() * ctypes.c_float.from_address(h.data_ptr()).value

    with pytest.raises(ValueError, match="data_ptr gives an address"):
        extract(Between(first), torch.randn(8, 4))


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
