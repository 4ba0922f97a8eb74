"""Networks of mixed architectures in one packed pass, held to one dense pass each."""

from __future__ import annotations

import pytest
import torch

from amortopt._types import Params
from amortopt.metanets import Conditions, ScaleGMN
from tests.cases import Case, case
from tests.metanets.networks import RESIZABLE, conditions_of, metanet, networks, relative, spec_of, wider


def _mixed(base: Case) -> list[Params]:
    """Two networks of one architecture, and one each of three others."""
    return [networks(base, 2), *({n: p[None] for n, p in wider(base, k).items()} for k in (1, 3, 1))]


def _apart(made: ScaleGMN, batches: list[Params]) -> list[Params]:
    return [made(batch) for batch in batches]


def _together(made: ScaleGMN, batches: list[Params]) -> list[Params]:
    return made.forward_mixed(batches, [Conditions()] * len(batches))


@pytest.mark.parametrize("base", RESIZABLE, ids=str)
def test_forward_mixed_agrees_with_dense(base: Case) -> None:
    made = metanet(spec_of(base), conditions=("batch", "l1"))
    batches = _mixed(base)
    conditions = [
        conditions_of({n: torch.randn_like(p) for n, p in batch.items()}, torch.tensor(l1).double())
        for batch, l1 in zip(batches, ([0, 1e-3], [1e-4], [0], [1e-2]), strict=True)
    ]
    got = made.forward_mixed(batches, conditions)
    for x, *given in zip(got, batches, conditions, strict=True):
        assert relative(x, made(*given)) < 1e-10


@pytest.mark.parametrize("config", [{"respects": "permutation"}, {"direction": "forward"}], ids=str)
@pytest.mark.parametrize("name", ["mlp-tanh", "mlp-relu", "cnn-flatten"])
def test_forward_mixed_agrees_with_dense_for_options(name: str, config: dict[str, str]) -> None:
    base = case(name)
    made = metanet(spec_of(base), **config)
    batches = _mixed(base)
    for x, y in zip(_together(made, batches), _apart(made, batches), strict=True):
        assert relative(x, y) < 1e-10


@pytest.mark.parametrize("name", ["mlp-tanh", "residual"])
def test_forward_mixed_gradients_agree_with_dense(name: str) -> None:
    base = case(name)
    made = metanet(spec_of(base))
    batches = _mixed(base)
    inputs = [p.requires_grad_() for batch in batches for p in batch.values()]

    def gradients(results: list[Params]) -> Params:
        loss = torch.stack([p.square().sum() for network in results for p in network.values()]).sum()
        parameters = dict(made.named_parameters())
        wanted = [*parameters.values(), *inputs]
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
        names = [*parameters, *(f"input {k}" for k in range(len(inputs)))]
        return {key: g for key, g in zip(names, found, strict=True) if g is not None}

    packed = gradients(_together(made, batches))
    dense = gradients(_apart(made, batches))
    largest = max(float(g.norm()) for g in dense.values())
    assert packed.keys() == dense.keys()
    for key, g in packed.items():
        assert (g - dense[key]).norm() <= 1e-10 * max(float(dense[key].norm()), 1e-3 * largest), key


def test_forward_mixed_of_one_architecture_runs_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    base = case("mlp-tanh")
    made = metanet(spec_of(base))
    stacked = networks(base, 3)
    monkeypatch.delattr("amortopt.metanets.scalegmn.encoder.PackedWiring")
    assert relative(_together(made, [stacked])[0], made(stacked)) == 0


def test_forward_mixed_keeps_each_networks_order_of_names() -> None:
    batches = _mixed(case("mlp-tanh"))
    batches[1] = dict(reversed(batches[1].items()))
    made = metanet(spec_of(case("mlp-tanh")))
    assert [list(x) for x in _together(made, batches)] == [list(batch) for batch in batches]


def test_forward_mixed_fresh_metanet_is_the_identity() -> None:
    base = case("mlp-relu")
    batches = _mixed(base)
    for x, y in zip(_together(ScaleGMN(spec_of(base)).double(), batches), batches, strict=True):
        assert relative(x, y) < 1e-6


def test_forward_mixed_refuses_bad_input() -> None:
    base = case("mlp-tanh")
    plain, full = metanet(spec_of(base)), metanet(spec_of(base), conditions=("batch", "l1"))
    batches = _mixed(base)[:2]
    l1 = torch.zeros(2, dtype=torch.float64)
    given = [conditions_of(batch, l1[: 2 - k]) for k, batch in enumerate(batches)]
    with pytest.raises(ValueError, match="networks, conditions: got 0 and 0, expected at least one"):
        plain.forward_mixed([], [])
    with pytest.raises(ValueError, match="networks, conditions: got 2 and 1, expected"):
        full.forward_mixed(batches, given[:1])
    with pytest.raises(ValueError, match=r"conditions.gradient: got none, .* conditions=\['batch', 'l1'\]"):
        full.forward_mixed(batches, [given[0], conditions_of(l1=l1[:1])])
    with pytest.raises(ValueError, match=r"conditions.l1: got shape \(2,\), expected \(1,\)"):
        full.forward_mixed(batches, [given[0], conditions_of(batches[1], l1)])
    with pytest.raises(ValueError, match=r"conditions.gradient: got .*expected"):
        full.forward_mixed(batches, [given[0], conditions_of(batches[0], l1[:1])])
    odd = {**batches[1], "0.weight": torch.zeros(1, 32, 41, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"got 41 units in group .*expected 40|has .* units of group"):
        _together(plain, [*batches, odd])
