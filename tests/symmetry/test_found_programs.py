"""What random programs found, as short as it gets: once too much was claimed, or nothing came out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.symmetry import UnknownOperationWarning, extract
from amortopt.testing import assert_function_preserved

_PROGRAMS: dict[str, Callable[[Program, Tensor], Tensor]] = {}


class Program(nn.Module):
    """A function of an input [N, 3, 6] with a linear layer after it; parameters are made when first used."""

    def __init__(self, function: Callable[[Program, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weights, self.parts = nn.ParameterList(), nn.ModuleDict()
        with torch.no_grad():
            self.forward(torch.randn(2, 3, 6))

    def forward(self, x: Tensor) -> Tensor:
        self.used = 0
        x = self.function(self, x).flatten(1)
        return F.linear(x, self.weight(2, x.shape[1]))

    def weight(self, *shape: int) -> Tensor:
        if self.used == len(self.weights):
            self.weights.append(nn.Parameter(torch.randn(shape)))
        self.used += 1
        return self.weights[self.used - 1]

    def part(self, make: Callable[[], nn.Module]) -> nn.Module:
        if "part" not in self.parts:
            self.parts["part"] = make().eval()
        return self.parts["part"]


def _program(function: Callable[[Program, Tensor], Tensor]) -> Callable[[Program, Tensor], Tensor]:
    _PROGRAMS[function.__name__] = function
    return function


def _matrices(p: Program, x: Tensor, width: int = 4) -> Tensor:
    return torch.einsum("nei,eio->neo", x, p.weight(x.shape[1], x.shape[2], width))


@_program
def glu_of_scaled_rows(p: Program, x: Tensor) -> Tensor:
    return F.glu(F.linear(x, p.weight(4, 6)) * p.weight(3, 1), -1)


@_program
def convolution_over_layers(p: Program, x: Tensor) -> Tensor:
    _, (last, _) = p.part(lambda: nn.LSTM(6, 4, num_layers=2, batch_first=True))(x)
    return F.conv1d(last.transpose(0, 1), p.weight(4, 2, 3), padding=1)


@_program
def norm_of_directions(p: Program, x: Tensor) -> Tensor:
    _, last = p.part(lambda: nn.GRU(6, 4, bidirectional=True, batch_first=True))(x)
    return F.group_norm(last.transpose(0, 1), 2, p.weight(2), p.weight(2))


@_program
def matrix_per_direction(p: Program, x: Tensor) -> Tensor:
    _, last = p.part(lambda: nn.GRU(6, 4, bidirectional=True, batch_first=True))(x)
    return _matrices(p, last.transpose(0, 1))


@_program
def larger_of_two_scales_per_direction(p: Program, x: Tensor) -> Tensor:
    _, last = p.part(lambda: nn.GRU(6, 4, bidirectional=True, batch_first=True))(x)
    last = last.transpose(0, 1)
    return torch.maximum(last, F.layer_norm(last, (4,), p.weight(4), p.weight(4)))


@_program
def norm_of_layers_and_directions(p: Program, x: Tensor) -> Tensor:
    _, last = p.part(lambda: nn.GRU(6, 4, num_layers=2, bidirectional=True, batch_first=True))(x)
    return F.batch_norm(last.transpose(0, 1).flatten(1), torch.zeros(16), torch.ones(16), p.weight(16))


@_program
def products_of_nested_units(p: Program, x: Tensor) -> Tensor:
    y = _matrices(p, x)
    return y @ y.transpose(1, 2)


@_program
def outer_product_of_nested_units(p: Program, x: Tensor) -> Tensor:
    y = _matrices(p, x)
    return y.unsqueeze(1) * y.unsqueeze(2)


@_program
def scaled_input_in_parts(p: Program, x: Tensor) -> Tensor:
    return F.rms_norm(x, (6,), p.weight(6)).unflatten(2, (2, 3)).tanh()


@_program
def scaled_input_flattened(p: Program, x: Tensor) -> Tensor:
    return F.group_norm(x, 3, p.weight(3)).flatten(1)


@_program
def index_of_nested_maxima(p: Program, x: Tensor) -> Tensor:
    y = torch.einsum("ne...i,eio->ne...o", x.unsqueeze(2).expand(-1, 3, 2, 6), p.weight(3, 6, 6))
    y.amax(3, keepdim=True)
    return y.select(1, 0)


@_program
def matrices_between_grouped_convolutions(p: Program, x: Tensor) -> Tensor:
    y = F.conv1d(x @ x.transpose(1, 2), p.weight(6, 1, 3), padding=1, groups=3)
    y = F.conv1d(_matrices(p, y) + p.weight(6, 4), p.weight(12, 1, 3), p.weight(12), padding=1, groups=6)
    return F.conv1d(y, p.weight(2, 6, 1), groups=2)


@_program
def groups_with_a_scale(p: Program, x: Tensor) -> Tensor:
    y = F.linear(x, p.weight(6, 6), p.weight(6)).transpose(1, 2)
    return F.conv1d(F.channel_shuffle(y, 2), p.weight(3, 2, 1), groups=3)


@_program
def groups_across_a_shuffle(p: Program, x: Tensor) -> Tensor:
    y = F.channel_shuffle(F.conv1d(x, p.weight(6, 3, 1)), 2)
    return F.group_norm(y, 3, p.weight(6), None, 1e-3)


@_program
def convolution_of_two_kinds_of_positions(p: Program, x: Tensor) -> Tensor:
    y = _matrices(p, x)
    return F.conv_transpose1d(torch.cat([y[..., 2:], y[..., :2]], 2), p.weight(3, 4, 2), p.weight(4))


@_program
def pointwise_convolution_of_nested_positions(p: Program, x: Tensor) -> Tensor:
    return F.conv1d(_matrices(p, x), p.weight(6, 3, 1)).amin(2)


@_program
def halves_of_a_padded_input(p: Program, x: Tensor) -> Tensor:
    a, b = F.pad(x, (1, 1)).unflatten(2, (2, 4)).chunk(2, 3)
    return a * b


@_program
def padding_shuffled(p: Program, x: Tensor) -> Tensor:
    return F.channel_shuffle(F.pad(x.transpose(1, 2), (0, 0, 1, 1)), 2)


@_program
def reduced_over_nested_units(p: Program, x: Tensor) -> Tensor:
    return _matrices(p, x).logsumexp(2)


@_program
def concatenation_of_single_positions(p: Program, x: Tensor) -> Tensor:
    a, b, _ = x.unsqueeze(1).expand(-1, 3, 3, 6).amax(3, keepdim=True).unbind(2)
    return torch.cat([a, b], 2)


@_program
def groups_of_an_input_that_owns_units(p: Program, x: Tensor) -> Tensor:
    y = F.group_norm(_matrices(p, x.transpose(1, 2), 6), 3, p.weight(6), None, 1e-3)
    return y.transpose(1, 2) @ y


@_program
def depthwise_over_a_choice(p: Program, x: Tensor) -> Tensor:
    y = F.linear(x, torch.cat([p.weight(2, 6), p.weight(2, 6)])).select(1, 0)
    y = F.channel_shuffle(y[:, :, None] * y[:, None, :], 2)
    return F.conv1d(y, p.weight(4, 1, 1), p.weight(4), groups=4)


@_program
def parameters_nested_in_each_other(p: Program, x: Tensor) -> Tensor:
    w = p.weight(3, 6, 6)
    return torch.einsum("nei,eio->neo", x, w) + torch.einsum("nei,eoi->neo", x, w.transpose(1, 2) + 0 * w)


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", _PROGRAMS)
def test_what_is_claimed_of_a_found_program_holds(name: str) -> None:
    torch.manual_seed(0)
    net, x = Program(_PROGRAMS[name]).eval(), torch.randn(3, 3, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownOperationWarning)
        spec = extract(net, x)
    # Some of these programs hardly use some of their weights: no negative control.
    assert_function_preserved(net, x, spec, low=0.3, high=3, rtol=1e-8, control=False)
