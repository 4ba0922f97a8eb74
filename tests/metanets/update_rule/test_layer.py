from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from amortopt.metanets.update_rule.layer import SharedUNFLayer
from amortopt.metanets.update_rule.layout import AXIS_ROLES, UpdateLayout
from amortopt.symmetry import extract
from amortopt.symmetry.action import act
from tests.cases import ALL_CASES, Case
from tests.metanets.update_rule.common import extracted, flat_noise, layout_of, permutation


def rows_of(layout: UpdateLayout, flat: Tensor) -> Tensor:
    """Row means of [1, N], in the layout's order: [1, R, 1]."""
    parts = layout.split(flat)
    means = [side.means(parts[b], len(layout.buckets[b].shape)).flatten(1) for b, side in layout.sides]
    return torch.cat(means, 1).unsqueeze(-1)


def spread(layout: UpdateLayout, rows: Tensor) -> Tensor:
    """What rows [1, R, 1] add to the elements, [1, N]."""
    total = [torch.zeros(1, bucket.count, *bucket.shape, dtype=rows.dtype) for bucket in layout.buckets]
    for b, side in layout.sides:
        row = rows[:, slice(*side.rows), 0].unflatten(1, (layout.buckets[b].count, -1))
        total[b] = total[b] + side.spread(row, len(layout.buckets[b].shape))
    return torch.cat([part.flatten(1) for part in total], 1)


@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.name)
def test_layer_is_equivariant_to_permutations(case: Case) -> None:
    _, spec, layout = extracted(case)
    layer, x, g = SharedUNFLayer(1, 1).double(), flat_noise(layout, 0, 1), permutation(spec)

    def moved(flat: Tensor) -> Tensor:
        return layout.pack(act(spec, g, layout.unpack(flat[0]))).unsqueeze(0)

    out = spread(layout, layer(layout, rows_of(layout, x)))
    turned = spread(layout, layer(layout, rows_of(layout, moved(x))))
    torch.testing.assert_close(turned, moved(out), rtol=1e-9, atol=1e-9)


def small() -> UpdateLayout:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return layout_of(network, extract(network, torch.zeros(1, 3)))


def test_layer_minds_units_of_one_tensor_alone_being_moved() -> None:
    layout = small()
    layer, x = SharedUNFLayer(1, 1).double(), flat_noise(layout, 0, 1)

    def shifted(flat: Tensor) -> Tensor:
        params = layout.unpack(flat[0])
        return layout.pack(params | {"0.weight": params["0.weight"].roll(1, 0)}).unsqueeze(0)

    out = spread(layout, layer(layout, rows_of(layout, x)))
    turned = spread(layout, layer(layout, rows_of(layout, shifted(x))))
    assert not torch.allclose(turned, shifted(out))


def units(layout: UpdateLayout) -> Iterator[tuple[int, int, int]]:
    """Row, axis role and unit."""
    for _, side in layout.sides:
        for row, unit in zip(range(*side.rows), side.units, strict=True):
            yield row, side.role, unit


def test_layer_is_the_sum_of_its_terms() -> None:
    """Against the equation, row by row."""
    layout = small()
    layer = SharedUNFLayer(2, 3).double()
    rows = torch.cat([rows_of(layout, flat_noise(layout, k, 1)) for k in range(2)], dim=-1)
    out = layer(layout, rows)
    through = layer.unit.view(len(AXIS_ROLES), 2, len(AXIS_ROLES), 3)
    for row, role, unit in units(layout):
        expected = rows[0, row] @ layer.row[role]
        for other in range(len(AXIS_ROLES)):
            of_unit = [rows[0, k] for k, r, u in units(layout) if u == unit and r == other]
            if of_unit:
                expected = expected + torch.stack(of_unit).mean(0) @ through[other, :, role]
        torch.testing.assert_close(out[0, row], expected)
