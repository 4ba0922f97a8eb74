"""Networks of mixed architectures in one packed pass, held to one dense pass each."""

from __future__ import annotations

import pytest
import torch

from amortopt._types import Params
from amortopt.metanets import ScaleGMN
from amortopt.metanets.scalegmn import scatter
from tests.cases import Case, case
from tests.metanets.networks import RESIZABLE, metanet, networks, relative, spec_of, wider
from tests.metanets.scalegmn.fakes import FakeScatter


def _mixed(base: Case) -> list[Params]:
    same = networks(base, 2)
    unstacked = [{name: p[k] for name, p in same.items()} for k in range(2)]
    return [unstacked[0], wider(base, 1), unstacked[1], wider(base, 3), wider(base, 1)]


def _one_by_one(
    made: ScaleGMN, given: list[Params], grads: list[Params] | None, l1: torch.Tensor | None
) -> list[Params]:
    results = []
    for k, network in enumerate(given):
        better = made(
            {name: p[None] for name, p in network.items()},
            grads=None if grads is None else {name: g[None] for name, g in grads[k].items()},
            l1=None if l1 is None else l1[k : k + 1],
        )
        results.append({name: p[0] for name, p in better.items()})
    return results


@pytest.mark.parametrize("fake", [False, True], ids=["torch", "torch-scatter"])
@pytest.mark.parametrize("base", RESIZABLE, ids=str)
def test_forward_mixed_agrees_with_dense(base: Case, fake: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeScatter() if fake else None
    monkeypatch.setattr(scatter, "torch_scatter", lambda: module)
    made = metanet(spec_of(base), reads=("grads", "l1"))
    given = _mixed(base)
    grads = [{name: torch.randn_like(p) for name, p in network.items()} for network in given]
    l1 = torch.tensor([0, 1e-3, 1e-4, 0, 1e-2], dtype=torch.float64)
    got = made.forward_mixed(given, grads=grads, l1=l1)
    for x, y in zip(got, _one_by_one(made, given, grads, l1), strict=True):
        assert relative(x, y) < 1e-10
    one_architecture = len({tuple(p.shape for p in network.values()) for network in given}) == 1
    assert module is None or one_architecture or module.calls > 0


@pytest.mark.parametrize("config", [{"symmetry": "permutation"}, {"direction": "forward"}], ids=str)
@pytest.mark.parametrize("name", ["mlp-tanh", "mlp-relu", "cnn-flatten"])
def test_forward_mixed_agrees_with_dense_for_options(name: str, config: dict[str, str]) -> None:
    base = case(name)
    made = metanet(spec_of(base), **config)
    given = _mixed(base)
    for x, y in zip(made.forward_mixed(given), _one_by_one(made, given, None, None), strict=True):
        assert relative(x, y) < 1e-10


@pytest.mark.parametrize("name", ["mlp-tanh", "residual"])
def test_forward_mixed_gradients_agree_with_dense(name: str) -> None:
    base = case(name)
    made = metanet(spec_of(base))
    given = _mixed(base)
    inputs = [p.requires_grad_() for network in given for p in network.values()]

    def gradients(results: list[Params]) -> Params:
        loss = torch.stack([p.square().sum() for network in results for p in network.values()]).sum()
        parameters = dict(made.named_parameters())
        wanted = [*parameters.values(), *inputs]
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
        names = [*parameters, *(f"input {k}" for k in range(len(inputs)))]
        return {key: g for key, g in zip(names, found, strict=True) if g is not None}

    packed = gradients(made.forward_mixed(given))
    dense = gradients(_one_by_one(made, given, None, None))
    largest = max(float(g.norm()) for g in dense.values())
    assert packed.keys() == dense.keys()
    for key, g in packed.items():
        assert (g - dense[key]).norm() <= 1e-10 * max(float(dense[key].norm()), 1e-3 * largest), key


def test_forward_mixed_of_one_architecture_runs_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    base = case("mlp-tanh")
    made = metanet(spec_of(base))
    stacked = networks(base, 3)
    monkeypatch.delattr("amortopt.metanets.scalegmn.model.PackedWiring")
    got = made.forward_mixed([{name: p[k] for name, p in stacked.items()} for k in range(3)])
    expected = made(stacked)
    for k, network in enumerate(got):
        assert relative(network, {name: p[k] for name, p in expected.items()}) == 0


def test_forward_mixed_keeps_each_networks_order_of_names() -> None:
    base = case("mlp-tanh")
    one, other = wider(base, 0), wider(base, 2)
    turned = dict(reversed(one.items()))
    got = metanet(spec_of(base)).forward_mixed([one, other, turned])
    assert list(got[0]) == list(one) and list(got[2]) == list(turned)
    torch.testing.assert_close({name: got[2][name] for name in one}, got[0])


def test_forward_mixed_fresh_metanet_is_the_identity() -> None:
    base = case("mlp-relu")
    given = _mixed(base)
    for x, y in zip(ScaleGMN(spec_of(base)).double().forward_mixed(given), given, strict=True):
        assert relative(x, y) < 1e-6


def test_forward_mixed_refuses_bad_input() -> None:
    base = case("mlp-tanh")
    plain, full = metanet(spec_of(base)), metanet(spec_of(base), reads=("grads", "l1"))
    given = _mixed(base)
    l1 = torch.zeros(5, dtype=torch.float64)
    with pytest.raises(ValueError, match="networks: got none, expected at least one"):
        plain.forward_mixed([])
    with pytest.raises(ValueError, match="grads: got none, but this metanet needs it"):
        full.forward_mixed(given, l1=l1)
    with pytest.raises(ValueError, match=r"grads: got 1, expected one per network \(5\)"):
        full.forward_mixed(given, grads=given[:1], l1=l1)
    with pytest.raises(ValueError, match=r"l1: got shape \(3,\), expected \(5,\)"):
        full.forward_mixed(given, grads=given, l1=l1[:3])
    with pytest.raises(ValueError, match=r"grads: got .*expected"):
        full.forward_mixed(given, grads=given[::-1][1:] + given[:1], l1=l1)
    with pytest.raises(ValueError, match=r"got 41 units in group .*expected 40"):
        plain.forward_mixed([*given, {**given[0], "0.weight": torch.zeros(32, 41, dtype=torch.float64)}])
