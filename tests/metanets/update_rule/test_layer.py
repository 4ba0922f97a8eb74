from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from amortopt.metanets.update_rule.layer import REACHES, Reach, SharedUNFLayer
from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.symmetry import extract
from amortopt.symmetry.action import act
from tests.cases import ALL_CASES, Case
from tests.metanets.update_rule.common import extracted, flat_noise, layout_of, permutation


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.again, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.read(x))
        return self.out(torch.tanh(self.again(h) + self.read(x)))


def run(layer: SharedUNFLayer, layout: UpdateLayout, x: Tensor) -> Tensor:
    """[B, N, C] -> [B, N, D]."""
    return torch.cat([part.flatten(1, -2) for part in layer(layout, layout.split(x))], dim=1)


def moved(layout: UpdateLayout, g, x: Tensor) -> Tensor:
    """The permutation of every channel: [1, N, C]."""
    channels = x[0].unbind(-1)
    return torch.stack(
        [layout.pack(act(layout.spec, g, layout.unpack(channel))) for channel in channels], dim=-1
    ).unsqueeze(0)


@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.name)
def test_layer_is_equivariant_to_permutations(case: Case) -> None:
    _, spec, layout = extracted(case)
    layer = SharedUNFLayer(2, 3, "unf").double()
    x = torch.stack([flat_noise(layout, k, 1) for k in range(2)], dim=-1)
    g = permutation(spec)
    out, turned = run(layer, layout, x), run(layer, layout, moved(layout, g, x))
    torch.testing.assert_close(turned, moved(layout, g, out), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reach", REACHES)
def test_layer_is_not_equivariant_to_other_permutations(reach: Reach) -> None:
    """Only what reads single elements or whole tensors does not mind units of one layer alone being moved."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    layout = layout_of(network, extract(network, torch.zeros(1, 3)))
    layer = SharedUNFLayer(1, 1, reach).double()
    x = flat_noise(layout, 0, 1).unsqueeze(-1)

    def shifted(x: Tensor) -> Tensor:
        params = layout.unpack(x[0, :, 0])
        return layout.pack(params | {"0.weight": params["0.weight"].roll(1, 0)}).reshape(1, -1, 1)

    same = torch.allclose(run(layer, layout, shifted(x)), shifted(run(layer, layout, x)))
    assert same == (reach in ("mlp", "deepset"))


def dependencies(reach: Reach) -> dict[str, set[str]]:
    """Which parameters the outputs at each parameter depend on, apart from the same element."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    layout = layout_of(network, extract(network, torch.zeros(1, 3)))
    layer = SharedUNFLayer(1, 1, reach).double()
    x = flat_noise(layout, 0)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: run(layer, layout, x.reshape(1, -1, 1)).flatten(), x
    )
    assert isinstance(jacobian, Tensor)
    jacobian = jacobian * (1 - torch.eye(layout.size))
    found = {}
    for name, rows in layout.unpack(torch.arange(layout.size)).items():
        row = layout.unpack(jacobian[rows.flatten()].abs().sum(0))
        found[name] = {other for other, value in row.items() if value.max() > 1e-12}
    return found


def test_layer_mlp_depends_on_the_element_alone() -> None:
    assert all(not others for others in dependencies("mlp").values())


def test_layer_deepset_depends_on_its_tensor() -> None:
    assert all(others == {name} for name, others in dependencies("deepset").items())


def test_layer_nfn_depends_on_neighbouring_layers() -> None:
    found = dependencies("nfn")
    assert found["0.weight"] == {"0.weight", "0.bias", "2.weight"}
    assert found["2.weight"] == {"0.weight", "0.bias", "2.weight", "2.bias", "4.weight"}
    assert found["4.bias"] == {"4.bias", "4.weight"}


def test_layer_unf_depends_on_everything() -> None:
    found = dependencies("unf")
    assert all(others == set(found) for others in found.values())


def test_layer_reads_transpose_and_diagonal_of_a_recurrent_matrix() -> None:
    network = Recurrent()
    layout = layout_of(network, extract(network, torch.zeros(1, 3)))
    assert [bucket.square for bucket in layout.buckets].count(True) == 1
    layer = SharedUNFLayer(1, 1, "unf").double()
    x = torch.zeros(layout.size, dtype=torch.float64)
    names = layout.unpack(torch.arange(layout.size))
    x[names["again.weight"][1, 2]] = 1.0

    def at(x: Tensor) -> Tensor:
        return layout.unpack(run(layer, layout, x.reshape(1, -1, 1)).flatten())["again.weight"].detach()

    one = at(x)
    x[names["again.weight"][1, 2]], x[names["again.weight"][0, 0]] = 0.0, 1.0
    diagonal = at(x)
    # (2, 1) and (3, 0) lie in another row and column than (1, 2); only the first is its transpose.
    assert not torch.isclose(one[2, 1], one[3, 0])
    # A diagonal element is told from (1, 2) by its own place, and by the diagonals of other units.
    assert not torch.isclose(diagonal[0, 0], one[1, 2])


def test_layer_gradients() -> None:
    network = Recurrent()
    layout = layout_of(network, extract(network, torch.zeros(1, 3)))
    layer = SharedUNFLayer(2, 2, "unf").double()
    x = torch.randn(1, layout.size, 2, dtype=torch.float64, requires_grad=True)
    blocks = torch.randn(1, layout.num_blocks, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, b: torch.cat([p.flatten() for p in layer(layout, layout.split(x), b)]), (x, blocks)
    )
