from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amortopt.symmetry import act, align, aligning_element, extract, merge, sample
from amortopt.symmetry.proof.running import Runner, worst
from tests.cases import case

NAMES = [
    *("mlp-tanh", "mlp-relu", "mlp-identity", "matrix-products", "residual", "mixer", "low-rank", "cnn-2d"),
    *("resnet", "resnext", "densenet", "mobilenet-v3", "batch-norm-tanh", "unet", "lstm-stacked", "rnn-relu"),
    *("gru", "lstm-bidirectional", "attention-torch", "attention-packed-by-head", "encoder-pre-norm-gelu"),
    *("gpt-tied", "llama", "vit", "swiglu", "experts"),
]
LATER = [
    "mlp-tanh",
    "cnn-2d",
    "resnet",
    "resnext",
    "lstm",
    "attention-torch",
    "gpt-tied",
    "encoder-pre-norm-gelu",
]


def more(inputs: Any) -> Any:
    """Inputs with enough examples to tell units apart."""
    if isinstance(inputs, tuple):
        return tuple(map(more, inputs))
    if not inputs.is_floating_point():
        return torch.cat([inputs.roll(k, 1) for k in range(inputs.shape[1])])
    return torch.randn(8, *inputs.shape[1:], dtype=torch.float64)


def network(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return case(name).build().eval().double()


def inputs_of(name: str) -> Any:
    torch.manual_seed(9)
    return more(case(name).example_input())


def moved_copy(net: nn.Module, inputs: Any) -> nn.Module:
    """The same function in another gauge."""
    spec, other = extract(net, inputs), copy.deepcopy(net)
    state: dict[str, Tensor] = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    weights = {name: state[name].detach().clone() for name in (*spec.params, *spec.buffers)}
    g = sample(spec, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for name, value in act(spec, g, weights).items():
            state[name].copy_(value)
    return other


def difference(net: nn.Module, other: nn.Module) -> float:
    pairs = zip(net.state_dict().values(), other.state_dict().values(), strict=True)
    return worst(*zip(*pairs, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_align_keeps_the_function(name: str) -> None:
    a, b, x = network(name, 0), network(name, 1), inputs_of(name)
    aligned = align(a, b, x)
    assert difference(aligned, b) > 1e-3
    assert worst(Runner(aligned, x).run({})[0], Runner(b, x).run({})[0]) < 1e-11


@pytest.mark.parametrize("name", LATER)
def test_align_by_activations_keeps_the_function(name: str) -> None:
    a, b, x = network(name, 0), network(name, 1), inputs_of(name)
    aligned = align(a, b, x, by="activations")
    assert difference(aligned, b) > 1e-3
    assert worst(Runner(aligned, x).run({})[0], Runner(b, x).run({})[0]) < 1e-11


@pytest.mark.parametrize("name", NAMES)
def test_align_undoes_any_element(name: str) -> None:
    a, x = network(name, 0), inputs_of(name)
    other = moved_copy(a, x)
    assert difference(other, a) > 1e-3
    assert difference(align(a, other, x), a) < 1e-6


@pytest.mark.parametrize("name", LATER)
def test_align_by_activations_undoes_any_element(name: str) -> None:
    a, x = network(name, 0), inputs_of(name)
    assert difference(align(a, moved_copy(a, x), x, by="activations"), a) < 1e-6


@pytest.mark.parametrize("name", ["mlp-relu", "resnet", "lstm", "attention-torch"])
def test_align_leaves_both_networks_as_they_were(name: str) -> None:
    a, b, x = network(name, 0), network(name, 1), inputs_of(name)
    before = copy.deepcopy((a, b))
    align(a, b, x)
    assert difference(a, before[0]) == difference(b, before[1]) == 0


def test_align_is_at_least_as_close_as_the_best_of_all_elements() -> None:
    """Exhaustive: 3! orders and 2^3 signs of one layer."""
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double() for _ in range(2))
    x = torch.randn(4, 2, dtype=torch.float64)
    spec = extract(a, x)
    first, second = ({n: p.detach() for n, p in net.named_parameters()} for net in (a, b))

    def likeness(g: Any) -> float:
        return sum(float((first[n] * p).sum()) for n, p in act(spec, g, second).items())

    some = [sample(spec, generator=torch.Generator().manual_seed(seed)) for seed in range(400)]
    assert len({(*g.permutations["h1"].tolist(), *g.scales["h1"].tolist()) for g in some}) == 48
    assert likeness(aligning_element(spec, first, second)) == pytest.approx(max(map(likeness, some)))


def test_restarts_are_never_worse() -> None:
    a, b, x = network("mlp-relu", 0), network("mlp-relu", 1), inputs_of("mlp-relu")

    def distance(restarts: int) -> float:
        pairs = zip(a.parameters(), align(a, b, x, restarts=restarts).parameters(), strict=True)
        return sum(float((p - q).detach().square().sum()) for p, q in pairs)

    assert distance(6) <= distance(0) * (1 + 1e-9)


def test_align_refuses_another_architecture() -> None:
    a, b = nn.Linear(4, 3), nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"b: got 'weight' of shape \(2, 4\), expected \(3, 4\)"):
        align(a, b, torch.randn(2, 4))


def test_align_and_merge_refuse_networks_with_another_activation() -> None:
    # The shapes agree, but a sign that leaves tanh as it is changes what ReLU computes.
    tanh, relu = (nn.Sequential(nn.Linear(10, 8), made(), nn.Linear(8, 5)) for made in (nn.Tanh, nn.ReLU))
    x = torch.randn(3, 10)
    for a, b, kinds in ((tanh, relu, "relu, expected tanh"), (relu, tanh, "tanh, expected relu")):
        with pytest.raises(ValueError, match=rf"b: operation 2 is {kinds}"):
            align(a, b, x)
        with pytest.raises(ValueError, match=rf"networks\[1\]: operation 2 is {kinds}"):
            merge([a, b], x)


def test_align_refuses_weights_that_are_not_finite() -> None:
    a, b = (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)) for _ in range(2))
    with torch.no_grad():
        b[2].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"b: got NaN or infinite values in '2\.weight'"):
        align(a, b, torch.randn(3, 4))


def test_align_refuses_an_unknown_way() -> None:
    net = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"by: got 'loss', expected 'weights' or 'activations'"):
        align(net, net, torch.randn(2, 4), by="loss")  # type: ignore[arg-type]


class Branching(nn.Module):
    """Runs another operation where its bias says so."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.out = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x).tanh()
        return self.out(x if self.linear.bias[0] > 0 else x * 2)


def test_align_by_activations_refuses_networks_that_run_other_operations() -> None:
    a, b, plain = Branching(), Branching(), nn.Sequential()
    plain.linear, plain.act, plain.out = nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)
    x = torch.randn(5, 4)
    nn.init.ones_(a.linear.bias), nn.init.constant_(b.linear.bias, -1.0)
    with pytest.raises(ValueError, match=r"other operations on these inputs"):
        align(a, b, x, by="activations", spec=extract(plain, x))


@pytest.mark.parametrize("name", ["restarts", "halfway", "seed"])
@pytest.mark.parametrize("count", [-1, 0.5, True, "yes", None])
def test_align_refuses_what_is_no_count(name: str, count: object) -> None:
    net = network("mlp-relu", 0)
    with pytest.raises(ValueError, match=f"{name}: got .* whole number of at least 0"):
        align(net, net, inputs_of("mlp-relu"), **{name: count})  # type: ignore[arg-type]


def test_align_refuses_what_is_no_network_or_spec() -> None:
    net, x = network("mlp-relu", 0), inputs_of("mlp-relu")
    with pytest.raises(ValueError, match=r"b: got OrderedDict, expected an nn\.Module"):
        align(net, net.state_dict(), x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="spec: got str, expected a SymmetrySpec"):
        align(net, net, x, spec="h1")  # type: ignore[arg-type]
