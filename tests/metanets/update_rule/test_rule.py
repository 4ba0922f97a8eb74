from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from amortopt.metanets.update_rule.features import RuleState
from amortopt.metanets.update_rule.layer import REACHES, Reach
from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.symmetry import extract
from amortopt.symmetry.action import act
from tests.cases import CASES, Case
from tests.metanets.update_rule.common import extracted, flat_noise, layout_of, permutation


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def plain() -> UpdateLayout:
    return layout_of(network(), extract(network(), torch.zeros(1, 3)))


def rule_of(**config: Any) -> UNFRule:
    """A rule whose outputs are all in use."""
    rule = UNFRule(**config).double()
    generator = torch.Generator().manual_seed(1)
    for p in rule.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return rule


def steps(rule: UNFRule, layout: UpdateLayout, flat: Tensor, grads: list[Tensor]) -> tuple[Tensor, RuleState]:
    state = rule.init_state(layout, flat)
    for grad in grads:
        update, state = rule(layout, flat, grad, state)
        flat = flat - update
    return flat, state


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rule_is_equivariant_to_permutations(case: Case) -> None:
    _, spec, layout = extracted(case)
    rule, g = rule_of(width=4), permutation(spec)

    def moved(flat: Tensor) -> Tensor:
        return layout.pack(act(spec, g, layout.unpack(flat)))

    flat, grads = flat_noise(layout, 0), [flat_noise(layout, k) for k in (1, 2)]
    out, _ = steps(rule, layout, flat, grads)
    turned, _ = steps(rule, layout, moved(flat), [moved(grad) for grad in grads])
    torch.testing.assert_close(turned, moved(out), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("net", REACHES)
@pytest.mark.parametrize("direction", ["momentum", "adam"])
def test_rule_treats_networks_apart(net: Reach, direction: str) -> None:
    layout, rule = plain(), rule_of(net=net, direction=direction, width=4)
    flat, grads = flat_noise(layout, 0, 3), [flat_noise(layout, k, 3) for k in (1, 2)]
    together, state = steps(rule, layout, flat, grads)
    for b in range(3):
        alone, own = steps(rule, layout, flat[b], [grad[b] for grad in grads])
        torch.testing.assert_close(alone, together[b])
        assert own["step"].shape == ()
        torch.testing.assert_close(own["momenta"], state["momenta"][b])


def test_rule_counts_the_steps_of_every_network() -> None:
    layout, rule = plain(), rule_of(width=4)
    flat, grads = flat_noise(layout, 0), [flat_noise(layout, k) for k in (1, 2, 3)]
    _, late = steps(rule, layout, flat, grads[:2])
    fresh = rule.init_state(layout, flat)
    both = {key: torch.stack([late[key], fresh[key]]) for key in fresh}
    update, _ = rule(layout, flat.repeat(2, 1), grads[2].repeat(2, 1), both)
    torch.testing.assert_close(update[0], rule(layout, flat, grads[2], late)[0])
    torch.testing.assert_close(update[1], rule(layout, flat, grads[2], fresh)[0])
    assert not torch.allclose(update[0], update[1])


def test_rule_does_not_touch_its_arguments_unless_inplace() -> None:
    layout, rule = plain(), rule_of(width=4)
    flat, grad = flat_noise(layout, 0), flat_noise(layout, 1)
    state = rule.init_state(layout, flat)
    kept = {key: value.clone() for key, value in state.items()}
    with torch.no_grad():
        update, new = rule(layout, flat, grad, state)
        assert all(torch.equal(state[key], kept[key]) for key in kept)
        again, overwritten = rule(layout, flat, grad, state, inplace=True)
    torch.testing.assert_close(again, update)
    assert all(torch.equal(overwritten[key], new[key]) for key in new)
    assert overwritten["momenta"].data_ptr() == state["momenta"].data_ptr()


@pytest.mark.parametrize("net", REACHES)
def test_rule_runs_under_vmap_over_its_own_parameters(net: Reach) -> None:
    layout, rule = plain(), rule_of(net=net, width=4)
    flat, grad = flat_noise(layout, 0, 3, 2), flat_noise(layout, 1, 3, 2)
    state = rule.init_state(layout, flat)
    many = {name: torch.stack([p + 0.1 * k for k in range(3)]) for name, p in rule.named_parameters()}
    got, _ = vmap(lambda phi, w, g, s: functional_call(rule, phi, (layout, w, g, s)))(many, flat, grad, state)
    for k in range(3):
        own = {name: value[k] for name, value in many.items()}
        inner = {key: value[k] for key, value in state.items()}
        want, _ = functional_call(rule, own, (layout, flat[k], grad[k], inner))
        torch.testing.assert_close(got[k], want)


def test_rule_starts_as_its_base() -> None:
    """With nothing learned yet, and nothing but the base, a step is Adam's, or that of momentum."""
    layout = plain()
    flat, grads = flat_noise(layout, 0), [flat_noise(layout, k) for k in (1, 2, 3)]
    rule = UNFRule(direction="adam", alpha=0.01, beta=1e-30, gamma=0.9).double()
    weight = nn.Parameter(flat.clone())
    adam = torch.optim.Adam([weight], lr=0.01, betas=(0.9, 0.999), eps=0.0)
    for grad in grads:
        weight.grad = grad
        adam.step()
    torch.testing.assert_close(steps(rule, layout, flat, grads)[0], weight.data)

    rule = UNFRule(direction="momentum", alpha=0.1, beta=1e-30, gamma=0.9, second=False, gate=False).double()
    momentum, want = torch.zeros_like(flat), flat.clone()
    for grad in grads:
        momentum = 0.9 * momentum + 0.1 * grad
        want = want - 0.1 * momentum
    out, state = steps(rule, layout, flat, grads)
    torch.testing.assert_close(out, want)
    assert "second" not in state


def test_rule_ignores_the_scale_of_the_loss_in_direction() -> None:
    """Gradients a thousand times larger: the inputs are normalised, only their logarithms differ."""
    layout = plain()
    rule = UNFRule(width=4).double()
    rule.context = nn.ParameterList(torch.zeros_like(p) for p in rule.context)
    flat, grad = flat_noise(layout, 0), flat_noise(layout, 1)
    first, _ = rule(layout, flat, grad, rule.init_state(layout, flat))
    second, _ = rule(layout, flat, 1000 * grad, rule.init_state(layout, flat))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)


def test_rule_is_finite_at_zero() -> None:
    layout, rule = plain(), rule_of(width=4)
    flat = torch.zeros(layout.size, dtype=torch.float64, requires_grad=True)
    update, _ = rule(layout, flat, torch.zeros_like(flat), rule.init_state(layout, flat))
    update.sum().backward()
    assert update.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in rule.parameters())
    assert flat.grad is not None and flat.grad.isfinite().all()


def test_rule_serves_any_architecture_with_the_same_weights() -> None:
    rule = UNFRule(width=4)
    before = sum(p.numel() for p in rule.parameters())
    for case in CASES[:6]:
        _, _, layout = extracted(case)
        flat = flat_noise(layout, 0, dtype=torch.float32)
        update, _ = rule(layout, flat, flat, rule.init_state(layout, flat))
        assert update.shape == flat.shape and update.isfinite().all()
    assert sum(p.numel() for p in rule.parameters()) == before


def test_rule_config_makes_a_copy() -> None:
    rule = UNFRule("nfn", width=5, depth=3, direction="momentum", second=False, gate=False)
    copy = UNFRule(**rule.config)
    copy.load_state_dict(rule.state_dict())
    assert copy.config == rule.config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"net": "gnn"}, "net: got 'gnn', expected one of unf, nfn, deepset, mlp"),
        ({"direction": "sgd"}, "direction: got 'sgd'"),
        ({"width": 0}, "width: got 0"),
        ({"depth": 1.5}, "depth: got 1.5"),
        ({"alpha": 0.0}, "alpha: got 0.0"),
        ({"beta": float("nan")}, "beta: got nan"),
        ({"gamma": 1.0}, "gamma: got 1.0"),
    ],
)
def test_rule_refuses_bad_arguments(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNFRule(**config)


def test_rule_damping_changes_derivatives_only() -> None:
    layout = plain()
    flat, first, grad = (flat_noise(layout, k) for k in range(3))
    first[:3] *= 1e-6
    found = []
    for damping in (0.0, 0.1):
        torch.manual_seed(0)
        rule = UNFRule(width=4, damping=damping).double()
        _, state = rule(layout, flat, first, rule.init_state(layout, flat))
        moved = torch.cat([first[:3], grad[3:]]).requires_grad_()
        update, _ = rule(layout, flat, moved, state)
        (slope,) = torch.autograd.grad(update[:3].sum(), moved)
        found.append((update.detach(), slope[:3].abs().max()))
    torch.testing.assert_close(found[1][0], found[0][0])
    assert found[1][1] < 0.1 * found[0][1]
