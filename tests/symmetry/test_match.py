from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.symmetry import FamilyMismatchError, extract, match
from tests.cases import CASES, Case, HandWritten, case


def _mlp(*widths: int, act: Callable[[], nn.Module] = nn.Tanh, bias: bool = True) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=bias), act()]
    return nn.Sequential(*layers[:-1])


FAMILY = extract(_mlp(40, 32, 32, 10), torch.zeros(1, 40))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_network_matches_itself(case: Case) -> None:
    x = case.example_input()
    found = match(extract(case.build(), x), extract(case.build(), x))
    assert found.params == {name: name for name, _ in case.build().named_parameters()}
    assert found.width_changes == ()


def test_a_hand_written_class_matches_by_structure() -> None:
    found = match(FAMILY, extract(HandWritten(), torch.zeros(3, 40)))
    assert found.params == {
        "0.weight": "first.weight",
        "0.bias": "first.bias",
        "2.weight": "second.weight",
        "2.bias": "second.bias",
        "4.weight": "head.weight",
        "4.bias": "head.bias",
    }
    assert found.width_changes == ()


def test_other_hidden_widths_match_and_are_listed() -> None:
    found = match(FAMILY, extract(HandWritten(hidden=(32, 48)), torch.zeros(3, 40)))
    assert found.width_changes == ("group 'h2' (second.weight, tanh) has 48 units, the family 32",)


def test_dropout_and_reshapes_of_vectors_make_no_difference() -> None:
    net = nn.Sequential(
        *(
            nn.Flatten(),
            nn.Linear(40, 32),
            nn.Tanh(),
            nn.Dropout(),
            nn.Linear(32, 32),
            nn.Tanh(),
            nn.Flatten(),
        ),
        nn.Linear(32, 10),
    )
    assert match(FAMILY, extract(net, torch.zeros(2, 40))).params["4.weight"] == "7.weight"


def test_global_pooling_matches_however_it_is_written() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.conv = nn.Linear(4, 3), nn.Conv1d(1, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.conv(x)).mean(-1))

    family = nn.Sequential(
        nn.Conv1d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    x = torch.zeros(2, 1, 20)
    assert match(extract(family, x), extract(Mean(), x)).params["4.bias"] == "fc.bias"


class _Skip(nn.Module):
    """The family's layers with a skip connection around the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(40, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        return self.c(x + torch.tanh(self.b(x)))


class _Detour(nn.Module):
    """The family's operations in the family's order, but the last reads the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(40, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.tanh(self.a(x))
        y = torch.tanh(self.b(x))
        return self.c(x), y


class _Transposed(nn.Module):
    """Weights [in, out]; what multiplies in the middle is a function of the weight there."""

    def __init__(self, middle: Callable[[Tensor], Tensor] = lambda w: w) -> None:
        super().__init__()
        self.middle = middle
        for i, (m, n) in enumerate([(40, 32), (32, 32), (32, 10)]):
            self.register_parameter(f"w{i}", nn.Parameter(torch.randn(m, n)))
            self.register_parameter(f"b{i}", nn.Parameter(torch.randn(n)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x @ self.w0 + self.b0)
        return torch.tanh(x @ self.middle(self.w1) + self.b1) @ self.w2 + self.b2


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (_mlp(40, 32, 32, 32, 10), "depth: 3 linear layers expected, got 4"),
        (_mlp(40, 32, 10), "depth: 3 linear layers expected, got 2"),
        (_mlp(40, 32, 32, 10, act=nn.ReLU), "activation 1: tanh expected, got relu"),
        (
            nn.Sequential(*_mlp(40, 32, 32)[:3], nn.ReLU(), nn.Linear(32, 10)),
            "activation 2: tanh expected, got relu",
        ),
        (_mlp(40, 32, 32, 10, act=nn.Identity), "tanh expected, got linear"),
        (nn.Sequential(_mlp(40, 32, 32, 10), nn.Tanh()), "nothing more expected, got tanh"),
        (_mlp(20, 32, 32, 10), "input size: 40 expected, got 20"),
        (_mlp(40, 32, 32, 7), "output size: 10 expected, got 7"),
        (_mlp(40, 32, 32, 10, bias=False), "bias of linear '0.weight': one expected, got none"),
        (_Skip(), "add"),
        (_Detour(), "reads of linear 'c.weight': the previous operation expected"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_first_difference_is_named(net: nn.Module, message: str) -> None:
    x = torch.zeros(2, 20 if "got 20" in message else 40)
    with pytest.raises(FamilyMismatchError, match=message):
        match(FAMILY, extract(net, x))


@pytest.mark.parametrize("middle", [lambda w: w, lambda w: w.T], ids=["transposed", "transposed twice"])
def test_weights_stored_transposed_match(middle: Callable[[Tensor], Tensor]) -> None:
    net = _Transposed(middle)
    found = match(FAMILY, extract(net, torch.zeros(3, 40)))
    assert list(found.params.values()) == ["w0", "b0", "w1", "b1", "w2", "b2"]
    square = () if middle(net.w1).stride() != net.w1.stride() else ("2.weight",)
    assert found.transposed == {"0.weight", "4.weight", *square}
    params = found.of_family(dict(net.named_parameters()))
    for name, value in found.of_network(params).items():
        assert value.equal(net.get_parameter(name))
    x = torch.randn(3, 40)
    torch.testing.assert_close(torch.func.functional_call(_mlp(40, 32, 32, 10), params, (x,)), net(x))


def test_an_unused_parameter_is_named() -> None:
    net = HandWritten()
    net.register_parameter("extra", nn.Parameter(torch.zeros(3)))
    with pytest.raises(FamilyMismatchError, match="extra"):
        match(FAMILY, extract(net, torch.zeros(2, 40)))


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (nn.Conv1d(1, 4, 3, stride=1, padding=1), "stride of conv1d '0.weight': 2 expected, got 1"),
        (nn.Conv1d(1, 4, 3, stride=2), "padding of conv1d '0.weight': 1 expected, got 0"),
        (nn.Conv1d(1, 4, 5, stride=2, padding=1), "kernel of '0.weight': 3 kernel expected, got 5 kernel"),
    ],
)
def test_settings_of_a_convolution_are_compared(conv: nn.Module, message: str) -> None:
    def network(first: nn.Module) -> nn.Module:
        return nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))

    x = torch.zeros(2, 1, 20)
    family = extract(network(nn.Conv1d(1, 4, 3, stride=2, padding=1)), x)
    with pytest.raises(FamilyMismatchError, match=message):
        match(family, extract(network(conv), x))


def test_the_slope_of_an_activation_is_compared() -> None:
    x, slopes = torch.zeros(1, 4), (0.01, 0.2)
    specs = [extract(_mlp(4, 3, 2, act=lambda s=s: nn.LeakyReLU(s)), x) for s in slopes]
    with pytest.raises(FamilyMismatchError, match=r"negative_slope of leaky_relu: 0\.01 expected, got 0\.2"):
        match(*specs)


def test_another_image_size_before_a_flatten_is_named() -> None:
    def network(positions: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * positions, 3))

    with pytest.raises(
        FamilyMismatchError, match=r"position of '3\.weight': 8 position expected, got 6 position"
    ):
        match(extract(network(8), torch.zeros(1, 1, 10)), extract(network(6), torch.zeros(1, 1, 8)))


def test_the_case_list_has_distinct_names() -> None:
    assert len({c.name for c in CASES}) == len(CASES)
    assert case("mlp-tanh").name == "mlp-tanh"


def _normed(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), activation(), nn.Conv1d(4, 4, 3, groups=4)),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)),
    )


def test_match_finds_networks_with_norms_and_groups_of_the_same_units() -> None:
    x = torch.randn(2, 1, 12)
    found = match(extract(_normed(), x), extract(_normed(), x))
    assert found.params == {name: name for name, _ in _normed().named_parameters()}


def test_match_refuses_another_scale_of_the_same_units() -> None:
    x = torch.randn(2, 1, 12)
    with pytest.raises(FamilyMismatchError, match="activation"):
        match(extract(_normed(), x), extract(_normed(nn.Tanh), x))


class _Reused(nn.Module):
    """Two layers that may be one."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
        self.b = self.a if shared else nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


@pytest.mark.parametrize("shared", [True, False])
def test_match_tells_a_shared_layer_from_two(shared: bool) -> None:
    x = torch.randn(2, 3)
    family, other = extract(_Reused(shared=shared), x), extract(_Reused(shared=not shared), x)
    assert match(family, family).params == {name: name for name in family.params}
    with pytest.raises(FamilyMismatchError):
        match(family, other)


class _Column(nn.Module):
    """Dense layers on columns [N, n, 1], as ``W @ x`` or as convolutions of one position."""

    def __init__(self, by: str) -> None:
        super().__init__()
        sizes = list(pairwise((40, 32, 32, 10)))
        if by == "convolution":
            self.layers = nn.ModuleList(nn.Conv1d(a, b, 1) for a, b in sizes)
        elif by == "image":
            self.layers = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in sizes)
        else:
            self.w = nn.ParameterList(torch.randn(b, a) for a, b in sizes)
            self.b = nn.ParameterList(torch.randn(b, 1) for _, b in sizes)
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., None, None] if self.by == "image" else x[..., None]
        for k in range(3):
            x = self.w[k] @ x + self.b[k] if self.by == "matrix" else self.layers[k](x)
            x = x.tanh() if k < 2 else x
        return x.flatten(1)


@pytest.mark.parametrize("by", ["matrix", "convolution", "image"])
def test_dense_layers_on_columns_match(by: str) -> None:
    net, x = _Column(by), torch.randn(5, 40)
    found = match(FAMILY, extract(net, x))
    assert len(found.params) == 6
    # The same numbers in the family's own network compute the same.
    mlp, tensors = _mlp(40, 32, 32, 10), {name: p.detach() for name, p in net.named_parameters()}
    mlp.load_state_dict(found.of_family(tensors))
    assert torch.allclose(mlp(x), net(x), atol=1e-5)
    back = found.of_network(found.of_family(tensors))
    assert all(back[name].equal(tensors[name]) for name in tensors)


def test_a_convolution_of_several_positions_is_no_dense_layer() -> None:
    net = nn.Sequential(nn.Unflatten(1, (20, 2)), nn.Conv1d(20, 32, 1), nn.Flatten(), nn.Linear(64, 10))
    family = nn.Sequential(nn.Unflatten(1, (20, 2)), nn.Linear(2, 2), nn.Flatten(), nn.Linear(40, 10))
    with pytest.raises(FamilyMismatchError):
        match(extract(family, torch.zeros(1, 40)), extract(net, torch.zeros(1, 40)))


def test_a_dense_layer_in_another_way_is_refused_with_the_ways_that_are_known() -> None:
    class Rows(_Column):
        def forward(self, x: Tensor) -> Tensor:
            return (self.w[2] @ (self.w[1] @ (self.w[0] @ x.T).tanh()).tanh()).T

    with pytest.raises(FamilyMismatchError, match=r"a dense layer is known as nn\.Linear, .* x @ W"):
        match(FAMILY, extract(Rows("matrix"), torch.randn(5, 40)))


def test_one_index_of_an_axis_of_size_one_computes_nothing() -> None:
    class Selects(_Column):
        def forward(self, x: Tensor) -> Tensor:
            for k in range(3):
                x = (self.w[k] @ x[..., None])[..., 0] + self.b[k]
                x = x.tanh() if k < 2 else x
            return x

    net = Selects("matrix")
    net.b = nn.ParameterList(torch.randn(len(b)) for b in net.b)
    assert len(match(FAMILY, extract(net, torch.randn(5, 40))).params) == 6
