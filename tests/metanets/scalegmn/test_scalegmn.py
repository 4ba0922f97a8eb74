"""ScaleGMN: the identity at the start, its options, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from amortopt._types import Params
from amortopt.metanets import ScaleGMN, make
from tests.cases import Case, case
from tests.metanets.networks import (
    READABLE,
    RESIZABLE,
    SMALL,
    conditions_of,
    metanet,
    networks,
    relative,
    spec_of,
    wider,
)

TANH = case("mlp-tanh")


@pytest.mark.parametrize("base", READABLE, ids=str)
def test_scalegmn_fresh_is_the_identity(base: Case) -> None:
    made = ScaleGMN(spec_of(base), **SMALL, conditions=("batch", "l1"))  # type: ignore[arg-type]
    params = networks(base, dtype=torch.float32)
    grads = {name: torch.randn_like(p) for name, p in params.items()}
    for value in (1e-3, 1.0, 1e3):
        given = {name: value * p for name, p in params.items()}
        assert relative(made(given, conditions_of(grads, torch.rand(2))), given) <= 1e-6


def test_scalegmn_with_open_gates_returns_the_proposal() -> None:
    made = ScaleGMN(spec_of(TANH), **SMALL)  # type: ignore[arg-type]
    params = networks(TANH, dtype=torch.float32)
    assert relative(made(params), params) <= 1e-6
    made.open_gates()
    assert relative(made(params), params) > 0.5
    # Biases are proposed as zero at the start.
    assert float(made(params)["0.bias"].detach().abs().max()) < 1e-6


def test_scalegmn_gates_learn_the_identity_and_to_leave_it() -> None:
    made = ScaleGMN(spec_of(TANH), **SMALL)  # type: ignore[arg-type]
    params = networks(TANH, dtype=torch.float32)

    def distance(target: Params) -> torch.Tensor:
        better = made(params)
        return torch.stack([(better[name] - target[name]).square().mean() for name in params]).sum()

    other = {name: p.detach() for name, p in metanet(spec_of(TANH), dtype=torch.float32)(params).items()}
    gates = [made.node_gate, made.edge_gate]
    assert all(bool(g.any()) for g in torch.autograd.grad(distance(other), gates))
    made.open_gates()
    far = float(distance(params).detach())
    optimizer = torch.optim.Adam(gates, lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        distance(params).backward()
        optimizer.step()
    assert float(distance(params).detach()) < 1e-2 * far


@pytest.mark.parametrize("base", READABLE, ids=str)
def test_scalegmn_every_parameter_matters(base: Case) -> None:
    made = metanet(spec_of(base), conditions=("batch", "l1"))
    params = networks(base)
    grads = {name: torch.randn_like(p) for name, p in params.items()}
    better = made(params, conditions_of(grads, torch.tensor([1e-3, 1e-2], dtype=torch.float64)))
    loss = torch.stack([p.square().sum() for p in better.values()]).sum()
    loss.backward()
    assert not [name for name, p in made.named_parameters() if p.grad is None]


@pytest.mark.parametrize("base", READABLE, ids=str)
def test_scalegmn_keeps_names_shapes_dtype(base: Case) -> None:
    for dtype in (torch.float32, torch.float64):
        params = dict(reversed(networks(base, 3, dtype=dtype).items()))
        better = metanet(spec_of(base), dtype=dtype)(params)
        assert list(better) == list(params)
        for name, p in params.items():
            assert better[name].shape == p.shape and better[name].dtype == dtype


@pytest.mark.parametrize("base", READABLE, ids=str)
def test_scalegmn_does_not_modify_its_inputs(base: Case) -> None:
    made = metanet(spec_of(base), conditions=("batch",))
    params, grads = networks(base), networks(base)
    before = [p.clone() for p in (*params.values(), *grads.values())]
    made(params, conditions_of(grads))
    after = [*params.values(), *grads.values()]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("base", READABLE, ids=str)
def test_scalegmn_permutation_option_has_the_same_size(base: Case) -> None:
    count = lambda made: sum(p.numel() for p in made.parameters())  # noqa: E731
    scaled, ablated = (
        count(ScaleGMN(spec_of(base), respects=respects))  # type: ignore[arg-type]
        for respects in ("scale", "permutation")
    )
    assert ablated == scaled


@pytest.mark.parametrize("conditions", [(), ("batch",), ("l1",), ("l1", "batch")], ids=str)
def test_scalegmn_reads_what_it_was_asked_to(conditions: tuple[str, ...]) -> None:
    made = metanet(spec_of(TANH), conditions=conditions)
    params = networks(TANH)
    grads = networks(TANH) if "batch" in conditions else None
    l1 = torch.tensor([0.0, 1e-3], dtype=torch.float64) if "l1" in conditions else None
    assert made.conditions == set(conditions)
    before = made(params, conditions_of(grads, l1))
    if grads is not None:
        other = made(params, conditions_of({name: g.flip(0) for name, g in grads.items()}, l1))
        assert relative(other, before) > 1e-6
        # Relative to each block's own size.
        torch.testing.assert_close(
            made(params, conditions_of({n: 1e3 * g for n, g in grads.items()}, l1)), before
        )
    if l1 is not None:
        other = made(params, conditions_of(grads, l1.flip(0)))
        assert relative(other, before) > 1e-6


def test_scalegmn_made_again_from_its_config() -> None:
    made = ScaleGMN(
        spec_of(TANH),
        **SMALL,
        direction="forward",
        respects="permutation",
        conditions=("l1",),  # type: ignore[arg-type]
    )
    again = make(made.name, made.spec, **made.config)
    again.load_state_dict(made.state_dict())
    assert again.config == made.config and again.conditions == made.conditions


def test_scalegmn_forward_depends_only_on_what_is_read() -> None:
    base = case("mlp-relu")
    both, forward = (
        ScaleGMN(spec_of(base), direction=direction)  # type: ignore[arg-type]
        for direction in ("bidirectional", "forward")
    )
    assert not any(len(layer.from_out) for layer in forward.encoder.layers)  # type: ignore[arg-type]
    assert all(len(layer.from_out) for layer in both.encoder.layers)  # type: ignore[arg-type]


@pytest.mark.parametrize("base", RESIZABLE, ids=str)
def test_scalegmn_runs_on_other_widths(base: Case) -> None:
    made = metanet(spec_of(base))
    params = {name: p[None] for name, p in wider(base, 4).items()}
    better = made(params)
    assert {n: p.shape for n, p in better.items()} == {n: p.shape for n, p in params.items()}
    assert all(bool(p.isfinite().all()) for p in better.values())


def test_scalegmn_refuses_other_widths_of_units_that_several_sets_are_about() -> None:
    base = case("mixer")
    params = networks(base)
    params["units.weight"], params["units.bias"] = torch.zeros(2, 9, 4).double(), torch.zeros(2, 9).double()
    with pytest.raises(ValueError, match=r"got 9 units in group .*, expected 6; other groups or blocks are"):
        metanet(spec_of(base))(params)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": 0}, "width: got 0, expected a whole number of at least 1"),
        ({"layers": 0}, "layers: got 0, expected a whole number of at least 1"),
        ({"channels": 5}, "channels: got 5, expected a divisor of width=8"),
        ({"heads": 3}, "heads: got 3, expected a divisor of width=8"),
        ({"respects": "scales"}, "respects: got 'scales', expected 'scale' or 'permutation'"),
        ({"direction": "backward"}, "direction: got 'backward', expected 'forward' or 'bidirectional'"),
        ({"conditions": ("gradients",)}, r"conditions: got \['gradients'\], expected some of"),
    ],
    ids=str,
)
def test_scalegmn_refuses_bad_options(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScaleGMN(spec_of(TANH), **{**SMALL, **config})


def test_scalegmn_refuses_missing_and_unasked_inputs() -> None:
    params = networks(TANH)
    l1 = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"conditions.gradient: got none, but this metanet .*batch"):
        metanet(spec_of(TANH), conditions=("batch",))(params)
    with pytest.raises(ValueError, match=r"conditions.l1: got none"):
        metanet(spec_of(TANH), conditions=("l1",))(params)
    with pytest.raises(ValueError, match=r"conditions.gradient: got one.* made with conditions=\[\]"):
        metanet(spec_of(TANH))(params, conditions_of(params))
    with pytest.raises(ValueError, match=r"conditions.l1: got one.* made with conditions=\[\]"):
        metanet(spec_of(TANH))(params, conditions_of(l1=l1))


def test_scalegmn_refuses_inputs_that_do_not_fit() -> None:
    params = networks(TANH)
    with pytest.raises(ValueError, match=r"conditions.gradient: got none for '0\.bias', expected"):
        grads = {name: p for name, p in params.items() if name != "0.bias"}
        metanet(spec_of(TANH), conditions=("batch",))(params, conditions_of(grads))
    with pytest.raises(
        ValueError, match=r"conditions.gradient: got \(1, 32, 40\) for '0\.weight', expected .*\(2, 32, 40\)"
    ):
        metanet(spec_of(TANH), conditions=("batch",))(
            params, conditions_of({n: p[:1] for n, p in params.items()})
        )
    with pytest.raises(ValueError, match=r"l1: got shape \(\), expected \(2,\), one strength per network"):
        metanet(spec_of(TANH), conditions=("l1",))(params, conditions_of(l1=torch.tensor(1e-3)))


def test_scalegmn_refuses_another_input_width() -> None:
    params = networks(TANH)
    params["0.weight"] = torch.zeros(2, 32, 41, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"got 41 units in group .*, expected 40; its units are known by"):
        metanet(spec_of(TANH))(params)
