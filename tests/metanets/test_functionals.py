"""Contract of every functional: invariant in float64, one function of mixed batches, errors that help."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.metanets import Functional, ProbedFunctional, ScaleGMNFunctional, UNFFunctional, make
from amortopt.symmetry import Element, act, extract, sample
from amortopt.tasks import make_family
from tests.cases import Case, case
from tests.metanets.networks import networks, spec_of, wider, without_scales

SMALL = {
    "scalegmn_functional": {"width": 8, "channels": 2, "sweeps": 2, "hidden": 8},
    "unf_functional": {"width": 3, "layers": 2, "hidden": 8},
}
NAMES = ("hand-written", "residual", "per-position", "mixer", "low-rank", "cnn-2d", "cnn-flatten", "experts")
NAMES += (
    "resnext",
    "rnn-tanh",
    "lstm",
    "gru",
    "attention-packed-by-head",
    "gpt-tied",
    "mlp-relu",
    "mlp-tanh",
)
SOME = tuple(case(name) for name in NAMES)
HEADS = (
    {"name": "classes", "count": 3},
    {"name": "regression", "outputs": 2},
    {"name": "regression", "low": 0.0, "high": 1.0},
)


def _made(kind: str, base: Case, head: dict, **config: object) -> Functional:  # type: ignore[type-arg]
    torch.manual_seed(0)
    spec = spec_of(base) if kind == "scalegmn_functional" else without_scales(spec_of(base))
    return make(kind, spec, head=head, **(SMALL[kind] | config)).double()


def _networks(base: Case, count: int = 2) -> Params:
    spec = spec_of(base)
    return {name: value for name, value in networks(base, count).items() if name in spec.params}


def _moved(made: Functional, params: Params, seed: int = 0) -> tuple[Element, Params]:
    g = sample(
        made.spec, generator=torch.Generator().manual_seed(seed), batch=len(next(iter(params.values())))
    )
    return g, act(made.spec, g, params, batched=True)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("base", SOME, ids=str)
def test_functional_invariant(kind: str, base: Case) -> None:
    params = _networks(base)
    made = _made(kind, base, HEADS[1])
    made.standardize(params)
    before = made(params)
    assert before.shape == (2, 2)
    _, moved = _moved(made, params)
    torch.testing.assert_close(made(moved), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("head", HEADS, ids=lambda head: "-".join(map(str, head.values())))
def test_functional_invariant_with_every_head(kind: str, head: dict) -> None:  # type: ignore[type-arg]
    base = case("mlp-relu")
    params, made = _networks(base, 3), _made(kind, base, head)
    before = made(params)
    assert before.shape == (3, made.head.raw)
    torch.testing.assert_close(made(_moved(made, params)[1]), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", SMALL)
def test_functional_per_unit_numbers_follow_the_units(kind: str) -> None:
    base = case("mlp-relu")
    group = next(group for group in spec_of(base).groups if group.permutable)
    made = _made(kind, base, {"name": "regression", "outputs": 2, "units": group.name})
    params = _networks(base)
    before = made(params)
    assert before.shape == (2, group.size, 2)
    g, moved = _moved(made, params)
    expected = torch.stack([y[p] for y, p in zip(before, g.permutations[group.name], strict=True)])
    torch.testing.assert_close(made(moved), expected, rtol=1e-9, atol=1e-9)
    assert (before[:, 0] - before[:, 1]).abs().max() > 1e-9  # and units differ


@pytest.mark.parametrize("kind", SMALL)
def test_functional_tells_networks_apart_that_differ_beyond_symmetry(kind: str) -> None:
    base = case("mlp-tanh")
    made, params = _made(kind, base, HEADS[0]), _networks(base)
    name = next(name for name, p in params.items() if p.ndim == 3)
    other = {**params, name: params[name].flip(1)}  # one layer's units, but not what reads them
    assert (made(params) - made(other)).abs().max() > 1e-6


def test_twin_is_invariant_to_permutations_and_not_to_scales() -> None:
    base = case("mlp-relu")
    twin, params = _made("scalegmn_functional", base, HEADS[0], respects="permutation"), _networks(base)
    _, moved = _moved(twin, params)
    assert (twin(moved) - twin(params)).abs().max() > 1e-6
    spec = without_scales(twin.spec)
    g = sample(spec, generator=torch.Generator().manual_seed(0), batch=2)
    permuted = act(spec, g, params, batched=True)
    torch.testing.assert_close(twin(permuted), twin(params), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", SMALL)
def test_functional_mixed_widths_is_the_same_function(kind: str) -> None:
    base = case("mlp-tanh")
    made = _made(kind, base, HEADS[0])
    many = [_networks(base, 3), {k: p[None] for k, p in wider(base, 2).items()}]
    together = made.forward_mixed(many)
    for params, answers in zip(many, together, strict=True):
        torch.testing.assert_close(answers, made(params), rtol=1e-9, atol=1e-9)


def test_forward_direction_differs_from_bidirectional() -> None:
    base = case("mlp-tanh")
    both = [_made("scalegmn_functional", base, HEADS[0], direction=d) for d in ("forward", "bidirectional")]
    assert sum(p.numel() for p in both[0].parameters()) < sum(p.numel() for p in both[1].parameters())
    params = _networks(base)
    torch.testing.assert_close(both[0](_moved(both[0], params)[1]), both[0](params), rtol=1e-9, atol=1e-9)


def test_functional_of_sirens_knows_phases() -> None:
    family = make_family("siren", widths=(2, 6, 5, 1), w0=3.0)
    network = family.build().double()
    spec = extract(network, family.example_input().double())
    torch.manual_seed(0)
    made = ScaleGMNFunctional(spec, head=HEADS[0], **SMALL["scalegmn_functional"]).double()  # type: ignore[arg-type]
    params = {name: p.detach()[None] for name, p in network.named_parameters()}
    turned = {name: p.clone() for name, p in params.items()}
    turned["0.bias"][0, 2] += 3 * torch.pi / 3.0
    turned["2.weight"][0, :, 2] *= -1
    turned["2.bias"][0, 1] -= 2 * torch.pi / 3.0
    x = torch.randn(7, 2, dtype=torch.float64)
    same = [
        torch.func.functional_call(network, {k: p[0] for k, p in q.items()}, (x,)) for q in (params, turned)
    ]
    torch.testing.assert_close(*same, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(made(turned), made(params), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", SMALL)
def test_functional_names_weights_that_are_not_finite(kind: str) -> None:
    base = case("mlp-tanh")
    made, params = _made(kind, base, HEADS[0]), _networks(base)
    params["2.bias"][1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"'2\.bias' of network 1 is NaN or infinite"):
        made(params)


@pytest.mark.parametrize("kind", SMALL)
def test_functional_names_what_is_missing(kind: str) -> None:
    base = case("mlp-tanh")
    made, params = _made(kind, base, HEADS[0]), _networks(base)
    with pytest.raises(ValueError, match=r"'0\.bias'"):
        made({name: p for name, p in params.items() if name != "0.bias"})


REFUSED = [
    (
        "0.bias",
        lambda p: p[:1],
        r"'0.bias' has shape \(1, .* \[B, ...\] with as many networks B .*: 2",
    ),
    ("0.bias", lambda p: p[0, 0], r"'0.bias' has shape \(\), expected \[B, ...\]"),
    ("0.bias", lambda p: p[:, 1:], r"'0.bias' has . units of group 'h1', expected"),
    ("0.weight", lambda p: p[..., 1:], r"'0.weight' has . units of group 'in', expected"),
    ("0.weight", lambda p: p.float(), r"'0.weight' is torch.float32, expected torch.float64"),
    ("0.weight", lambda p: p.long(), r"'0.weight' is torch.int64, expected torch.float64"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
@pytest.mark.parametrize("kind", [*SMALL, "probed_functional", "picture_functional"])
def test_functional_refuses_networks_that_are_not_of_its_family(
    kind: str, name: str, change: Callable[[Tensor], Tensor], message: str
) -> None:
    family = make_family("siren", widths=(2, 4, 1))
    config = {"family": family.to_config()} if kind.startswith("p") else SMALL[kind]
    made = make(kind, extract(family.build(), family.example_input()), head=HEADS[0], **config).double()
    params = {n: p.detach().double().expand(2, *p.shape) for n, p in family.build().named_parameters()}
    assert made(params).shape == (2, 3)
    with pytest.raises(ValueError, match=message):
        made(params | {name: change(params[name])})
    with pytest.raises(ValueError, match=rf"expected '{name}' among them"):
        made({n: p for n, p in params.items() if n != name})
    with pytest.raises(ValueError, match="at least one"):
        made({n: p[:0] for n, p in params.items()})


def test_functional_refuses_bad_arguments() -> None:
    spec = spec_of(case("mlp-tanh"))
    with pytest.raises(ValueError, match=r"head: got \{\}, expected a mapping with a name"):
        UNFFunctional(spec, head={})
    with pytest.raises(ValueError, match="head: got 'classes', expected a mapping with a name"):
        UNFFunctional(spec, head="classes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="family: got 'siren', expected a mapping with a name"):
        ProbedFunctional(spec, head=HEADS[0], family="siren")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got unknown head 'no-such', expected one of classes, regression"):
        UNFFunctional(spec, head={"name": "no-such"})
    with pytest.raises(ValueError, match=r"head\.units: got 'nowhere', expected a group: in, h1"):
        UNFFunctional(spec, head={"name": "regression", "units": "nowhere"})
    with pytest.raises(ValueError, match="layers: got 0"):
        UNFFunctional(spec, head=HEADS[0], layers=0)
    with pytest.raises(ValueError, match="channels: got 3, expected a divisor of width=8"):
        ScaleGMNFunctional(spec, head=HEADS[0], width=8, channels=3)
    with pytest.raises(ValueError, match="networks: got none"):
        UNFFunctional(spec, head=HEADS[0]).forward_mixed([])


@pytest.mark.parametrize("kind", SMALL)
def test_functional_standardized_does_not_depend_on_the_size_of_blocks(kind: str) -> None:
    base = case("mlp-tanh")
    params = _networks(base)
    larger = {name: 3 * p if name == "2.weight" else p for name, p in params.items()}
    answers = []
    for each in (params, larger):
        made = _made(kind, base, HEADS[0])
        made.standardize(each)
        answers.append(made(each))
    torch.testing.assert_close(*answers, rtol=1e-9, atol=1e-9)
