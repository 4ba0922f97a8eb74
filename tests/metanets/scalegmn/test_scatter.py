"""Segment operations against slow loops, with and without torch-scatter."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from amortopt.metanets.scalegmn import scatter
from tests.metanets.scalegmn.fakes import FakeScatter

INDEX = torch.tensor([0, 0, 0, 2, 2, 3, 5, 5])
SHUFFLED = INDEX[torch.tensor([5, 0, 7, 2, 1, 4, 3, 6])]
SLOW: dict[str, Callable[[Tensor], Tensor]] = {
    "segment_sum": lambda rows: rows.sum(0),
    "segment_max": lambda rows: rows.amax(0) if len(rows) else rows.new_zeros(rows.shape[1:]),
}


@pytest.fixture
def fresh() -> Iterator[None]:
    """Look for torch_scatter anew, and forget what was found."""
    scatter.torch_scatter.cache_clear()
    yield
    scatter.torch_scatter.cache_clear()


@pytest.fixture(params=[False, True], ids=["torch", "torch-scatter"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeScatter | None:
    module = FakeScatter() if request.param else None
    monkeypatch.setattr(scatter, "torch_scatter", lambda: module)
    return module


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)], ids=str)
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("name", SLOW)
def test_segment_operation_agrees_with_loop(
    name: str, ordered: bool, shape: tuple[int, ...], backend: FakeScatter | None
) -> None:
    values = torch.randn(8, *shape, dtype=torch.float64)
    index = INDEX if ordered else SHUFFLED
    got = getattr(scatter, name)(values, index, 6, ordered=ordered)
    expected = torch.stack([SLOW[name](values[index == segment]) for segment in range(6)])
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-15)
    assert backend is None or backend.calls > 0


@pytest.mark.parametrize("ordered", [False, True])
def test_segment_softmax_agrees_with_loop(ordered: bool, backend: FakeScatter | None) -> None:
    logits = torch.randn(8, 2, dtype=torch.float64) * 1e3
    index = INDEX if ordered else SHUFFLED
    got = scatter.segment_softmax(logits, index, 6, ordered=ordered)
    for segment in range(6):
        rows = index == segment
        torch.testing.assert_close(got[rows], logits[rows].softmax(0))
    assert backend is None or backend.calls > 0


def test_segment_operations_gradcheck(backend: FakeScatter | None) -> None:
    values = torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    for operation in (scatter.segment_sum, scatter.segment_softmax):
        assert torch.autograd.gradcheck(lambda x, op=operation: op(x, SHUFFLED, 6), values)


def test_segment_operations_without_rows(backend: FakeScatter | None) -> None:
    none, index = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    assert torch.equal(scatter.segment_sum(none, index, 2), torch.zeros(2, 3))
    assert torch.equal(scatter.segment_max(none, index, 2), torch.zeros(2, 3))


def test_torch_scatter_not_installed_is_passed_over_silently(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "torch_scatter", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scatter.torch_scatter() is None


def test_torch_scatter_that_works_is_used(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeScatter()
    monkeypatch.setitem(sys.modules, "torch_scatter", module)
    assert scatter.torch_scatter() is module


def _importing(error: Exception) -> Callable[[str], ModuleType]:
    def fail(name: str) -> ModuleType:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError("_scatter_cpu.so: undefined symbol: _ZN5torch"), "OSError: _scatter_cpu.so: undefined"),
        (ImportError("cannot import name 'x'"), "ImportError: cannot"),
        (
            ModuleNotFoundError("No module named 'dep'", name="dep"),
            "ModuleNotFoundError: No module named 'dep'",
        ),
        (
            RuntimeError("compiled with CUDA 12.1,\nyou have 12.4"),
            "RuntimeError: compiled with CUDA 12.1, you",
        ),
    ],
    ids=lambda x: type(x).__name__,
)
def test_torch_scatter_broken_is_reported_once_and_passed_over(
    error: Exception, text: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scatter.importlib, "import_module", _importing(error))
    with pytest.warns(UserWarning) as caught:
        assert scatter.torch_scatter() is None
        total = scatter.segment_sum(torch.ones(3, 2), torch.tensor([0, 1, 0]), 2)
    assert torch.equal(total, torch.tensor([[2.0, 2.0], [1.0, 1.0]]))
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith(f"torch-scatter is installed but broken ({text}")
    assert "): using torch's own" in message


def test_torch_scatter_that_computes_nonsense_is_reported(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = FakeScatter()
    module.segment_coo = lambda *_, **__: torch.zeros(2, 1)  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "torch_scatter", module)
    with pytest.warns(UserWarning, match="broken .*wrong sums.*: using torch's own"):
        assert scatter.torch_scatter() is None
