"""The terms of one pair of tensors: how many, equivariant, and nothing missing."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from amortopt.metanets.unf.basis import Spec, count_layer_terms, count_terms, unf_basis, unf_terms
from tests.metanets.unf.weight_spaces import LAYERS, PAIRS, SIZES


@pytest.mark.parametrize(("name", "count"), [("mlp", 62), ("cnn", 136), ("rnn", 131), ("transformer", 750)])
def test_count_layer_terms_known_networks(name: str, count: int) -> None:
    specs, _ = LAYERS[name]
    assert count_layer_terms(specs) == count
    assert sum(len(unf_terms(out, into)) for out in specs for into in specs) == count


def test_count_layer_terms_of_twelve_transformer_blocks() -> None:
    assert count_layer_terms(LAYERS["transformer-12"][0]) == 61_272


def test_count_terms_recurrent_matrix_onto_itself() -> None:
    assert count_terms((1, 1), (1, 1)) == 15


def _moved(x: Tensor, spec: Spec, permutations: dict[int, Tensor]) -> Tensor:
    for axis, group in enumerate(spec):
        x = x.index_select(axis, permutations[group])
    return x


@pytest.mark.parametrize(("out", "into"), PAIRS)
def test_unf_basis_terms_are_equivariant(out: Spec, into: Spec) -> None:
    shape = [SIZES[group] for group in out]
    x = torch.randn([SIZES[group] for group in into], dtype=torch.float64)
    permutations = {group: torch.randperm(n) for group, n in SIZES.items()}
    moved = unf_basis(out, into, shape, _moved(x, into, permutations))
    for term, other in zip(unf_basis(out, into, shape, x), moved, strict=True):
        torch.testing.assert_close(_moved(term, out, permutations), other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("out", "into"), PAIRS)
def test_unf_basis_spans_all_equivariant_maps(out: Spec, into: Spec) -> None:
    """As many independent terms as orbits of (output, input) index pairs, which is the dimension of all
    such maps."""
    sizes = [SIZES[group] for group in (*out, *into)]
    units = torch.eye(int(torch.tensor(sizes[len(out) :]).prod()) if into else 1, dtype=torch.float64)
    x = units.view(len(units), *sizes[len(out) :])
    terms = unf_basis(out, into, sizes[: len(out)], x)
    orbits = set()
    for index in itertools.product(*map(range, sizes)):
        seen: dict[tuple[int, int], int] = {}
        orbits.add(
            tuple(seen.setdefault((g, i), len(seen)) for g, i in zip((*out, *into), index, strict=True))
        )
    rank = torch.linalg.matrix_rank(torch.stack([term.flatten() for term in terms]))
    assert rank == len(terms) == len(orbits)


def test_unf_basis_terms_of_a_square_matrix_to_a_vector() -> None:
    x = torch.arange(9.0).view(3, 3)
    total, diagonal, rows, columns = x.mean().expand(3), x.diag(), x.mean(1), x.mean(0)
    mean_diagonal = x.diag().mean().expand(3)
    found = unf_basis((1,), (1, 1), (3,), x)
    for expected in (total, diagonal, rows, columns, mean_diagonal):
        assert sum(torch.allclose(expected, term) for term in found) >= 1
    assert len(found) == 5


def test_unf_basis_batch_first_and_channels_last() -> None:
    x = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)  # batch 2 x 3, axes 4 x 5, channels 6
    found = unf_basis((1,), (0, 1), (5,), x, channels=1)
    plain = [unf_basis((1,), (0, 1), (5,), x[1, 2, ..., c]) for c in range(6)]
    assert all(term.shape == (2, 3, 5, 6) for term in found)
    for k, term in enumerate(found):
        torch.testing.assert_close(term[1, 2], torch.stack([p[k] for p in plain], dim=-1))


def test_unf_basis_bad_input_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"out_shape: got \(3,\).*2 axes of out_spec"):
        unf_basis((0, 1), (1,), (3,), torch.ones(4))
    with pytest.raises(ValueError, match="x: got shape"):
        unf_basis((0,), (0, 1), (3,), torch.ones(3))
    with pytest.raises(ValueError, match="group 0 got axes of sizes 3 and 4"):
        unf_basis((0,), (0,), (3,), torch.ones(4))
