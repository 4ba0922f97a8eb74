"""The fast layer is the slow sum of all terms, equivariant, and differentiable twice."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from amortopt.metanets.unf import pooling
from amortopt.metanets.unf.basis import Spec, unf_basis
from amortopt.metanets.unf.layer import FixedUNFLayer, UNFPool
from tests.metanets.unf.weight_spaces import LAYERS, shapes

NETWORKS = ("mlp", "cnn", "rnn", "transformer")
ODD: list[Spec] = [(0, 0), (1, 0), (0, 1, 0), (), (0, 0, 0), (1,)]
"""Diagonals of three axes, transposed axes, a lone number."""
ODD_SHAPES = [(3, 3), (2, 3), (3, 2, 3), (), (3, 3, 3), (2,)]


class UNFLayerReference(nn.Module):
    """The layer as it is written down: a loop over pairs and terms, with the weights of a fast one."""

    def __init__(self, fast: FixedUNFLayer) -> None:
        super().__init__()
        self.fast = fast

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        found = []
        for i, spec in enumerate(self.fast.specs):
            weights = iter(self.fast.term_weights(i))
            y = self.fast.bias[i]
            for x, into in zip(xs, self.fast.specs, strict=True):
                shape = xs[i].shape[1:-1]
                for term in unf_basis(spec, into, shape, x, channels=1):
                    y = y + term @ next(weights).T
            assert next(weights, None) is None
            found.append(y)
        return found


def _layer(specs: list[Spec], c_in: int = 2, c_out: int = 3) -> FixedUNFLayer:
    layer = FixedUNFLayer(specs, c_in, c_out).double()
    nn.init.normal_(layer.bias)
    return layer


def _inputs(many: list[tuple[int, ...]], batch: int = 2, channels: int = 2) -> list[Tensor]:
    return [torch.randn(batch, *shape, channels, dtype=torch.float64, requires_grad=True) for shape in many]


KERNELS: list[Spec] = [(1, 0, 10, 11), (1,), (1, 1, 12, 13), (14, 15, 16)]
"""Own axes beside a group of size 1, beside a diagonal, and all there is."""
KERNEL_SHAPES = [(3, 1, 2, 2), (3,), (3, 3, 2, 1), (2, 1, 2)]
CASES = [
    *((name, LAYERS[name][0], shapes(name)) for name in NETWORKS),
    ("odd", ODD, ODD_SHAPES),
    ("kernels", KERNELS, KERNEL_SHAPES),
]


@pytest.mark.parametrize(("name", "specs", "sizes"), CASES, ids=[case[0] for case in CASES])
def test_unf_layer_equals_the_sum_of_all_terms(
    name: str, specs: list[Spec], sizes: list[tuple[int, ...]]
) -> None:
    fast, xs = _layer(specs), _inputs(sizes)
    slow = UNFLayerReference(fast)
    fast_ys, slow_ys = fast(xs), slow(xs)
    grads = [torch.randn_like(y) for y in slow_ys]
    for one, other in zip(fast_ys, slow_ys, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    wanted = [*fast.parameters(), *xs]
    for one, other in zip(
        torch.autograd.grad(fast_ys, wanted, grads), torch.autograd.grad(slow_ys, wanted, grads), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("name", "specs", "sizes"), CASES, ids=[case[0] for case in CASES])
def test_unf_layer_equivariant(name: str, specs: list[Spec], sizes: list[tuple[int, ...]]) -> None:
    layer, xs = _layer(specs), [x.detach() for x in _inputs(sizes)]
    length = {
        g: n for spec, shape in zip(specs, sizes, strict=True) for g, n in zip(spec, shape, strict=True)
    }
    permutations = {group: torch.randperm(n) for group, n in length.items()}

    def moved(many: list[Tensor]) -> list[Tensor]:
        many = list(many)
        for k, spec in enumerate(specs):
            for axis, group in enumerate(spec):
                many[k] = many[k].index_select(1 + axis, permutations[group])
        return many

    with torch.no_grad():
        for one, other in zip(moved(layer(xs)), layer(moved(xs)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        pool = UNFPool(specs)
        torch.testing.assert_close(pool(xs), pool(moved(xs)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["rnn", "odd", "kernels"])
def test_unf_layer_gradcheck(name: str) -> None:
    specs, sizes = next((specs, sizes) for other, specs, sizes in CASES if other == name)
    small = [tuple(min(n, 2) for n in shape) for shape in sizes]
    layer = _layer(specs, 1, 2)
    xs = _inputs(small, batch=1, channels=1)

    def run(weight: Tensor, bias: Tensor, *xs: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (list(xs),)))

    inputs = (layer.weight, layer.bias, *xs)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_unf_layer_products_do_not_grow_with_pairs_of_tensors() -> None:
    layer = FixedUNFLayer(LAYERS["transformer-12"][0], 1, 1)
    assert layer.weight.numel() == 61_272
    assert layer.num_products == 78


def test_unf_layer_own_axes_together_or_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, xs = _layer(KERNELS), _inputs(KERNEL_SHAPES)
    found = []
    for largest in (pooling.LARGEST_PATTERN, 48, 0):  # all own axes in one node, some, none
        monkeypatch.setattr(pooling, "LARGEST_PATTERN", largest)
        ys = copy.deepcopy(layer)(xs)  # a copy has no plans
        found.append((*ys, *torch.autograd.grad(sum(y.square().sum() for y in ys), xs)))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)


def test_unf_layer_outputs_share_no_memory() -> None:
    layer, xs = _layer(KERNELS), [x.detach() for x in _inputs(KERNEL_SHAPES, batch=1)]
    with torch.no_grad():
        ys = layer(xs)
        kept = [y.clone() for y in ys]
        for k, y in enumerate(ys):
            y.fill_(0.0)
            for other, before in zip(ys[k + 1 :], kept[k + 1 :], strict=True):
                assert torch.equal(other, before)


def test_unf_layer_any_batch_axes() -> None:
    layer = _layer(LAYERS["rnn"][0])
    xs = [x.detach() for x in _inputs(shapes("rnn"), batch=6)]
    flat = layer(xs)
    for lead in ((2, 3), (6,)):
        for y, other in zip(layer([x.view(*lead, *x.shape[1:]) for x in xs]), flat, strict=True):
            torch.testing.assert_close(y, other.view(*lead, *other.shape[1:]))
    for y, other in zip(layer([x[0] for x in xs]), flat, strict=True):
        torch.testing.assert_close(y, other[0])


def test_unf_layer_outputs_of_unit_scale() -> None:
    torch.manual_seed(0)
    layer = FixedUNFLayer(LAYERS["transformer"][0], 16, 256)
    ys = layer(
        [torch.randn(1, 1, 1, 16).expand(1, *shape, 16) for shape in shapes("transformer")[:1]]
        + [torch.ones(1, *shape, 16) * torch.randn(16) for shape in shapes("transformer")[1:]]
    )
    assert all(0.3 < y.std() < 3 for y in ys)


def test_unf_layer_copies_and_pickles() -> None:
    layer = _layer(LAYERS["mlp"][0])
    xs = _inputs(shapes("mlp"))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        for one, two in zip(layer(xs), other(xs), strict=True):
            assert torch.equal(one, two)


def test_unf_layer_bad_input_says_what_is_expected() -> None:
    layer = _layer(LAYERS["mlp"][0])
    xs = _inputs(shapes("mlp"))
    with pytest.raises(ValueError, match="got 5 tensors, expected 6"):
        layer(xs[:-1])
    with pytest.raises(ValueError, match=r"xs\[1\]: got shape.*2 channels last"):
        layer([xs[0], xs[1][..., :1], *xs[2:]])
    with pytest.raises(ValueError, match="group 1 got axes of sizes 5 and 4"):
        layer([xs[0], xs[1][:, :4], *xs[2:]])
    with pytest.raises(ValueError, match="got 0 tensors"):
        FixedUNFLayer([], 1, 1)
