"""ScaleGMN where numbers are hard: zeros, huge and tiny weights, narrow networks."""

from __future__ import annotations

import pytest
import torch

from amortopt._types import Params
from amortopt.metanets import ScaleGMN
from amortopt.testing import assert_equivariant
from tests.cases import Case, case
from tests.metanets.networks import READABLE, conditions_of, metanet, networks, relative, spec_of
from tests.metanets.scalegmn.zeros import DEAD, zero


def _assert_finite(made: ScaleGMN, params: Params, grads: Params | None = None) -> None:
    """Outputs, and gradients with respect to the metanet and to all inputs, are finite."""
    inputs = [p.requires_grad_() for p in (*params.values(), *(grads or {}).values())]
    better = made(params, conditions_of(grads))
    assert all(bool(p.isfinite().all()) for p in better.values())
    # In units of the outputs, as a network's loss would be.
    loss = torch.stack(
        [(p / p.detach().abs().amax().clamp(min=1e-20)).square().sum() for p in better.values()]
    )
    wanted = [*made.parameters(), *inputs]
    for gradient in torch.autograd.grad(loss.sum(), wanted, allow_unused=True):
        assert gradient is None or bool(gradient.isfinite().all())


@pytest.mark.parametrize("value", [0.0, 1e-6, 1e6])
@pytest.mark.parametrize("base", READABLE, ids=str)
def test_scalegmn_float32_finite_for_weights_of_size(base: Case, value: float) -> None:
    made = metanet(spec_of(base), dtype=torch.float32, conditions=("batch",))
    params = {name: p * value for name, p in networks(base, dtype=torch.float32).items()}
    grads = {name: torch.randn_like(p) * value for name, p in params.items()}
    _assert_finite(made, params, grads)


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("name", ["mlp-tanh", "mlp-relu", "mlp-identity", "residual", "cnn-flatten"])
@pytest.mark.parametrize("fresh", [False, True], ids=["random", "fresh"])
def test_scalegmn_float32_finite_with_exact_zeros(name: str, dead: str, fresh: bool) -> None:
    base = case(name)
    made = ScaleGMN(spec_of(base)) if fresh else metanet(spec_of(base), dtype=torch.float32)
    params = networks(base, dtype=torch.float32)
    zero(params, dead)
    _assert_finite(made, params)


# Units of far smaller weights differ by less than rounding, so their order is not kept.
@pytest.mark.parametrize("value", [1e-2, 1e6])
@pytest.mark.parametrize("name", ["mlp-relu", "cnn-1d"])
def test_scalegmn_float32_keeps_what_float64_computes(name: str, value: float) -> None:
    base = case(name)
    made = metanet(spec_of(base))
    params = {key: p * value for key, p in networks(base).items()}
    expected = made(params)
    got = made.float()({key: p.float() for key, p in params.items()})
    for key, p in expected.items():
        # The gate mixes proposal and input: rounding is relative to the larger.
        size = torch.maximum(p.norm(), params[key].norm())
        assert (got[key].double() - p).norm() <= 1e-3 * size


def test_scalegmn_deep_network_of_large_weights_is_finite() -> None:
    # 1e6 ** 5 is inside float32's range, its square is not.
    base = Case("deep", _deep, lambda: torch.randn(2, 4), ("positive",) * 5)
    made = metanet(spec_of(base), dtype=torch.float32)
    for value in (1e-6, 1e6):
        _assert_finite(made, {name: p * value for name, p in networks(base, dtype=torch.float32).items()})


def _deep() -> torch.nn.Module:
    layers = [part for _ in range(5) for part in (torch.nn.Linear(4, 4), torch.nn.ReLU())]
    return torch.nn.Sequential(*layers, torch.nn.Linear(4, 2))


@pytest.mark.parametrize("name", ["mlp-tanh", "mlp-relu", "cnn-1d", "residual"])
def test_scalegmn_float32_equivariant_within_rounding(name: str) -> None:
    base = case(name)
    made = metanet(spec_of(base), dtype=torch.float32)
    params = networks(base, dtype=torch.float32)
    assert_equivariant(made, spec_of(base), params, batched=True, low=1e-3, high=1e3, rtol=1e-2)


@pytest.mark.parametrize("name", ["mlp-tanh", "mlp-relu"])
def test_scalegmn_one_networks_output_is_independent_of_the_batch(name: str) -> None:
    base = case(name)
    made = metanet(spec_of(base))
    params = networks(base, 3)
    params["0.weight"][1] *= 1e6
    alone = made({key: p[:1] for key, p in params.items()})
    together = {key: p[:1] for key, p in made(params).items()}
    assert relative(alone, together) < 1e-10
