"""Segment operations against slow loops, with and without torch-scatter."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from amortopt.metanets.scalegmn import segments

INDEX = torch.tensor([0, 0, 0, 2, 2, 3, 5, 5])
SHUFFLED = INDEX[torch.tensor([5, 0, 7, 2, 1, 4, 3, 6])]


class FakeScatter(ModuleType):
    """A stand-in for torch_scatter, which takes minutes to compile: slow, with the same signatures."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__("torch_scatter")
        self.calls, self.factor = 0, factor

    def segment_coo(self, src: Tensor, index: Tensor, *, dim_size: int, reduce: str) -> Tensor:
        assert bool((index.diff() >= 0).all()), "segment_coo needs an index that never decreases"
        return self.scatter(src, index, dim=0, dim_size=dim_size, reduce=reduce)

    def scatter(self, src: Tensor, index: Tensor, *, dim: int, dim_size: int, reduce: str) -> Tensor:
        assert dim == 0 and reduce == "sum"
        self.calls += 1
        return self.factor * torch.stack([src[index == segment].sum(0) for segment in range(dim_size)])


@pytest.fixture(params=[False, True], ids=["torch", "torch-scatter"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeScatter | None:
    module = FakeScatter() if request.param else None
    monkeypatch.setattr(segments, "torch_scatter", lambda: module)
    return module


@pytest.fixture
def fresh() -> Iterator[None]:
    """Look for torch_scatter anew, and forget the result."""
    segments.torch_scatter.cache_clear()
    yield
    segments.torch_scatter.cache_clear()


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)], ids=str)
@pytest.mark.parametrize("ordered", [False, True])
def test_segment_sum_agrees_with_a_loop(
    ordered: bool, shape: tuple[int, ...], backend: FakeScatter | None
) -> None:
    values, index = torch.randn(8, *shape, dtype=torch.float64), INDEX if ordered else SHUFFLED
    expected = torch.stack([values[index == segment].sum(0) for segment in range(6)])
    torch.testing.assert_close(segments.segment_sum(values, index, 6, ordered=ordered), expected)
    assert backend is None or backend.calls > 0
    assert not segments.segment_sum(values[:0], index[:0], 2).any()


@pytest.mark.parametrize("ordered", [False, True])
def test_segment_softmax_agrees_with_a_loop(ordered: bool, backend: FakeScatter | None) -> None:
    logits, index = torch.randn(8, 2, dtype=torch.float64) * 1e3, INDEX if ordered else SHUFFLED
    weights = segments.segment_softmax(logits, index, 6, ordered=ordered)
    for segment in (0, 2, 3, 5):
        torch.testing.assert_close(weights[index == segment], logits[index == segment].softmax(0))


def test_segment_operations_gradcheck(backend: FakeScatter | None) -> None:
    values = torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    for operation in (segments.segment_sum, segments.segment_softmax):
        assert torch.autograd.gradcheck(lambda x, op=operation: op(x, SHUFFLED, 6), values)


def test_missing_torch_scatter_gives_no_warning(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ModuleType:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(segments.importlib, "import_module", absent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert segments.torch_scatter() is None


def test_torch_scatter_that_works_is_used(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeScatter()
    monkeypatch.setitem(sys.modules, "torch_scatter", module)
    assert segments.torch_scatter() is module


def test_torch_scatter_that_computes_wrong_sums_is_not_used(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_scatter", FakeScatter(factor=2.0))
    with pytest.warns(UserWarning, match="torch-scatter is installed but broken .*wrong sums"):
        assert segments.torch_scatter() is None
