from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.symmetry import Axis, Block, NeuronGroup, SymmetrySpec, extract
from amortopt.symmetry.axes import ScaleKind
from amortopt.symmetry.proof.probes import candidates, element_of, spread
from amortopt.testing import assert_function_preserved
from tests.cases import CASES, Case, case
from tests.symmetry.solve.nested import nested


class Normed(nn.Module):
    """A convolution, batch norm, ReLU, dropout, stochastic depth; and a head."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.activation = activation

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = F.dropout(self.activation(self.norm(self.conv(x))), 0.3, self.training)
        if self.training:
            x = x * x.new_empty(x.shape[0], 1, 1).bernoulli_(0.8).div_(0.8)
        x = self.head(x.mean(-1))
        return {"logits": x, "parts": (x[:1], [x.softmax(-1)])}


def normed_spec(
    before: ScaleKind = "sign", after: ScaleKind = "positive", *, buffers: bool = True
) -> SymmetrySpec:
    groups = (
        NeuronGroup("in", 2, "none", False, "input"),
        NeuronGroup("h1", 4, after, True, "norm"),
        NeuronGroup("h2", 4, before, False, "conv", "h1"),
        NeuronGroup("out", 3, "none", False, "output"),
    )
    conv = Axis("h1", 0, 4, also=(("h2", 1),))
    blocks = [
        Block("conv.weight", (conv, Axis("in", -1, 2), Axis(None, 0, 3, "kernel"))),
        Block("conv.bias", (conv,)),
        Block("norm.weight", (Axis("h1", 1, 4, also=(("h2", -1),)),)),
        Block("norm.bias", (Axis("h1", 1, 4),)),
        Block("head.weight", (Axis("out", 1, 3), Axis("h1", -1, 4))),
        Block("head.bias", (Axis("out", 1, 3),)),
    ]
    if buffers:
        blocks.append(Block("norm.running_mean", (conv,), buffer=True))
        blocks.append(Block("norm.running_var", (Axis("h1", 0, 4),), buffer=True))
    return SymmetrySpec(groups, tuple(blocks))


def proof_of(spec: SymmetrySpec, net: nn.Module | None = None, **options: Any) -> Any:
    return spec.verify(Normed() if net is None else net, torch.randn(5, 2, 9), **options)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_proof_of_every_case_holds_and_nothing_larger_is_found(case: Case) -> None:
    net, x = case.build(), case.example_input()
    proof = extract(net, x).verify(net, x, probes=None)
    assert proof.holds and proof.errors.keys() == {"eval", "training"}
    assert max(proof.errors.values()) < 1e-12
    assert proof.probes == proof.possible
    if case.name != "mlp-relu6":
        assert proof.larger == ()


def test_a_norm_and_dropout_are_proved_in_both_modes() -> None:
    proof = proof_of(normed_spec())
    assert proof.holds and proof.errors.keys() == {"eval", "training"}
    assert proof.statistics is not None and proof.statistics < 1e-12
    assert (proof.groups, proof.moved, proof.units) == (4, 2, 8)
    assert proof.larger == () and proof.probes == proof.possible == 2
    assert "holds" in repr(proof) and "running statistics" in repr(proof)


def test_scales_that_only_eval_mode_allows_are_refused() -> None:
    """Running statistics do not know of the epsilon that a larger scale before the norm runs into."""
    spec = normed_spec(before="free")
    assert proof_of(spec, modes=("eval",)).holds
    proof = proof_of(spec)
    assert not proof.holds and proof.errors["eval"] < 1e-12 and proof.errors["training"] > 1e-9
    assert "DOES NOT HOLD" in repr(proof) and proof.probes == 0


def test_running_statistics_that_stay_behind_are_noticed() -> None:
    proof = proof_of(normed_spec(buffers=False))
    assert not proof.holds
    assert proof.errors["eval"] > 1e-3 and proof.errors["training"] < 1e-12 and proof.statistics > 1e-3


def test_a_spec_that_claims_too_much_does_not_hold() -> None:
    assert not proof_of(normed_spec(after="free")).holds
    spec = normed_spec()
    wrong = dataclasses.replace(spec.groups[0], permutable=True)
    assert not proof_of(dataclasses.replace(spec, groups=(wrong, *spec.groups[1:]))).holds


@pytest.mark.parametrize("noise", [0.5, 0.0])
def test_weights_at_initialisation_hide_errors_unless_disturbed(noise: float) -> None:
    """Fresh biases and gains of a norm are all alike: that they are permuted cannot be seen."""
    spec = normed_spec()
    still = tuple(
        dataclasses.replace(b, axes=(Axis(None, 0, 4, "fixed"),)) if b.param == "norm.bias" else b
        for b in spec.blocks
    )
    proof = proof_of(dataclasses.replace(spec, blocks=still), noise=noise)
    assert proof.holds == (noise == 0)


def test_inputs_that_are_all_zero_are_replaced() -> None:
    """Where nothing goes in, what the first weights read does not matter."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    spec = extract(net, torch.zeros(5, 3))
    axes = (Axis("h1", 1, 3), Axis("h1", -1, 3))
    wrong = tuple(dataclasses.replace(b, axes=axes) if b.param == "0.weight" else b for b in spec.blocks)
    assert spec.verify(net, torch.zeros(5, 3)).holds
    assert not dataclasses.replace(spec, blocks=wrong).verify(net, torch.zeros(5, 3)).holds


@pytest.mark.parametrize(
    ("kind", "what"), [("none", {"signs", "positive scales"}), ("sign", {"positive scales"})]
)
def test_a_smaller_scale_kind_is_reported(kind: ScaleKind, what: set[str]) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    spec = extract(net, torch.zeros(5, 4))
    assert spec.group("h1").kind == "free"
    groups = tuple(dataclasses.replace(g, kind=kind) if g.name == "h1" else g for g in spec.groups)
    proof = dataclasses.replace(spec, groups=groups).verify(net, torch.zeros(5, 4))
    assert proof.holds and {larger.what for larger in proof.larger} == what
    assert {larger.group for larger in proof.larger} == {"h1"}
    assert "could allow:" in repr(proof) and "h1" in repr(proof)


def test_a_missing_permutation_is_reported() -> None:
    net, x = case("mlp-tanh").build(), case("mlp-tanh").example_input()
    spec = extract(net, x)
    groups = tuple(dataclasses.replace(g, permutable=False) if g.name == "h2" else g for g in spec.groups)
    proof = dataclasses.replace(spec, groups=groups).verify(net, x)
    assert [(larger.group, larger.what) for larger in proof.larger] == [("h2", "permutation")]


class Grouped(nn.Module):
    """Units that a spec may or may not take to come in runs."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.up, self.down, self.tied = nn.Linear(3, 6), nn.Linear(6, 2), tied

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.tied:
            return self.down((x.unflatten(-1, (2, 3)).softmax(-1)).flatten(-2))
        return self.down(torch.tanh(x))


@pytest.mark.parametrize("tied", [True, False])
def test_units_that_need_not_stay_in_their_runs_are_reported(tied: bool) -> None:
    spec = SymmetrySpec(
        (
            NeuronGroup("heads", 2, "none", True, "up"),
            NeuronGroup("h", 6, "none" if tied else "sign", True, "up", "heads"),
        ),
        (
            Block("up.weight", (Axis("h", 1, 6), Axis(None, 0, 3))),
            Block("up.bias", (Axis("h", 1, 6),)),
            Block("down.weight", (Axis(None, 0, 2), Axis("h", -1, 6))),
            Block("down.bias", (Axis(None, 0, 2),)),
        ),
    )
    proof = spec.verify(Grouped(tied), torch.randn(4, 3))
    assert proof.holds
    assert [larger.what for larger in proof.larger] == ([] if tied else ["permutation across heads"])


def test_what_only_dead_units_allow_is_not_reported() -> None:
    """A hidden layer that is off at these weights may do anything; at other weights it is on."""
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].bias.fill_(-100)
    x = torch.randn(5, 4)
    proof = extract(net, x).verify(net, x, noise=0.01)
    assert proof.holds and proof.probes == 1 and proof.larger == ()


def test_what_another_group_allows_is_not_reported() -> None:
    """To rescale a head is to rescale its units alike."""
    groups = (
        NeuronGroup("heads", 2, "none", True, "0"),
        NeuronGroup("h", 6, "free", True, "0", "heads"),
    )
    blocks = (
        Block("0.weight", (Axis("heads", 1, 2), Axis("h", 1, 3), Axis(None, 0, 4))),
        Block("0.bias", (Axis("h", 1, 6, also=(("heads", 1),)),)),
        Block("1.weight", (Axis(None, 0, 2), Axis("h", -1, 6, also=(("heads", -1),)))),
        Block("1.bias", (Axis(None, 0, 2),)),
    )
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    proof = SymmetrySpec(groups, blocks).verify(net, torch.randn(5, 4), probes=None)
    # Units cannot be asked to leave their run where an axis lies along single runs.
    assert proof.holds and proof.probes == proof.possible == 2 and proof.larger == ()


def test_probes_are_spread_over_the_groups(generator: torch.Generator) -> None:
    groups = tuple(NeuronGroup(f"h{i}", 3, "none", False, "") for i in range(5))
    blocks = tuple(Block(f"w{i}", (Axis(f"h{i}", 1, 3),)) for i in range(5))
    possible = candidates(SymmetrySpec(groups, blocks))
    assert len(possible) == 15
    assert spread(possible, None, generator) == possible
    chosen = spread(possible, 5, generator)
    assert {probe.group for probe in chosen} == {group.name for group in groups}
    assert len({*spread(possible, 12, generator)}) == 12


@pytest.mark.parametrize("seed", range(10))
def test_elements_outside_are_outside(seed: int) -> None:
    spec, _ = nested()
    generator = torch.Generator().manual_seed(seed)
    for probe in candidates(spec):
        g, own, run = element_of(spec, probe, generator), spec.group(probe.group), spec.run(probe.group)
        permutation, scale = g.permutations[own.name], g.scales[own.name]
        assert torch.equal(permutation.sort().values, torch.arange(own.size))
        if probe.what == "signs":
            assert own.kind in ("none", "positive") and set(scale.tolist()) == {-1, 1}
        elif probe.what == "positive scales":
            assert own.kind in ("none", "sign") and (scale > 0).all() and (scale != 1).any()
        else:
            across = not torch.equal(permutation // run, torch.arange(own.size) // run)
            assert across == ("across" in probe.what)
            assert not torch.equal(permutation, torch.arange(own.size))


def test_progress_is_reported() -> None:
    seen: list[tuple[int, int]] = []
    proof_of(normed_spec(), probes=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_a_mode_that_does_not_run_is_left_out_with_the_reason() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    spec = SymmetrySpec(
        (NeuronGroup("h", 3, "sign", False, "0"),),
        (
            Block("0.weight", (Axis("h", 1, 3), Axis(None, 0, 4))),
            Block("0.bias", (Axis("h", 1, 3),)),
            Block("1.weight", (Axis("h", -1, 3),)),
            Block("1.bias", (Axis(None, 0, 3),)),
            Block("1.running_mean", (Axis("h", 1, 3),), buffer=True),
        ),
    )
    proof = spec.verify(net, torch.randn(1, 4))
    assert proof.holds and proof.errors.keys() == {"eval"}
    assert "training mode left out" in proof.notes[0] and "more than 1 value per channel" in repr(proof)
    assert spec.verify(net, torch.randn(2, 4)).errors.keys() == {"eval", "training"}


def test_weights_that_noise_would_break_are_taken_as_they_are() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1e-2, 1.0, 2.0]))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.w.sqrt()

    spec = SymmetrySpec((), (Block("w", (Axis(None, 0, 3),)),))
    proof = spec.verify(Root(), torch.randn(2, 3), noise=3.0)
    assert proof.holds and "weights taken as they are" in repr(proof)


def test_the_network_is_left_as_it_was() -> None:
    net = Normed().train()
    net.norm.eval()
    net.conv.weight.requires_grad_(False)
    state = copy.deepcopy(net.state_dict())
    x, random = torch.randn(5, 2, 9), torch.random.get_rng_state()
    assert normed_spec().verify(net, x).holds
    assert torch.equal(torch.random.get_rng_state(), random)
    assert (
        net.training
        and not net.norm.training
        and not net.conv.weight.requires_grad
        and net.head.weight.requires_grad
    )
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(value.dtype == state[name].dtype for name, value in net.state_dict().items())


def test_verify_refuses_what_does_not_fit() -> None:
    spec = normed_spec()
    with pytest.raises(ValueError, match=r"lacks \['conv.weight'.*extract it from this model"):
        extract(nn.Linear(2, 3), torch.zeros(1, 2)).verify(Normed(), torch.zeros(5, 2, 9))
    with pytest.raises(ValueError, match="does not run on the example input in float64 and eval mode"):
        spec.verify(Normed(), torch.zeros(5, 3, 9))
    with pytest.raises(ValueError, match="elements: got 0"):
        proof_of(spec, elements=0)
    with pytest.raises(ValueError, match="modes: got"):
        proof_of(spec, modes=("evaluation",))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("elements", value) for value in (1.5, True, "all", None)),
        *(("probes", value) for value in (-1, 1.5, "all")),
        *(("seed", value) for value in (-1, "one", None)),
        *(
            (name, value)
            for name in ("probe_seconds", "noise", "rtol")
            for value in (-1, "x", torch.nan, None)
        ),
    ],
)
def test_verify_refuses_options_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: got .*expected"):
        proof_of(normed_spec(), **{name: value})


@pytest.mark.gpu
def test_a_network_on_the_gpu_is_proved_there() -> None:
    net = Normed().cuda()
    proof = normed_spec().verify(net, torch.randn(5, 2, 9, device="cuda"))
    assert proof.holds and proof.errors.keys() == {"eval", "training"} and proof.larger == ()


def test_verify_shows_nothing_where_nothing_can_differ() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)[:0]

    net, x = Nothing(), torch.randn(2, 4)
    spec = extract(net, x)
    proof = spec.verify(net, x)
    assert not proof.holds and "SHOWS NOTHING" in repr(proof)
    with pytest.raises(AssertionError, match="nothing was compared"):
        assert_function_preserved(net, x, spec)


def test_verify_is_not_fooled_by_inputs_that_are_all_equal() -> None:
    net = nn.Linear(4, 3)
    spec = extract(net, torch.ones(2, 4))
    wrong = dataclasses.replace(
        spec, groups=tuple(dataclasses.replace(g, permutable=g.name == "in") for g in spec.groups)
    )
    assert not wrong.verify(net, torch.ones(2, 4)).holds
