from __future__ import annotations

import json
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from amortopt.metanets.update_rule.history import RuleState, length
from amortopt.metanets.update_rule.layout import CLASSES, UpdateLayout
from amortopt.metanets.update_rule.rule import Reach, UNFRule
from amortopt.symmetry import extract
from amortopt.symmetry.action import act
from amortopt.training.muon import Muon
from tests.cases import CASES, Case
from tests.metanets.update_rule.common import extracted, flat_noise, layout_of, permutation

REACHES = get_args(Reach)
LR = 0.1


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


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
    with torch.no_grad():
        for grad in grads:
            direction, state = rule(layout, flat, grad, state)
            flat = flat - LR * direction
    return flat, state


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rule_is_equivariant_to_permutations(case: Case) -> None:
    _, spec, layout = extracted(case)
    rule, g = rule_of(width=4, floor=0.1), permutation(spec)

    def moved(flat: Tensor) -> Tensor:
        return layout.pack(act(spec, g, layout.unpack(flat)))

    flat, grads = 0.1 * flat_noise(layout, 0), [flat_noise(layout, k) for k in (1, 2)]
    out, _ = steps(rule, layout, flat, grads)
    turned, _ = steps(rule, layout, moved(flat), [moved(grad) for grad in grads])
    torch.testing.assert_close(turned, moved(out), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("net", REACHES)
def test_rule_treats_networks_apart(net: Reach) -> None:
    layout, rule = plain(), rule_of(net=net, width=4, floor=0.1)
    flat, grads = 0.2 * flat_noise(layout, 0, 3), [flat_noise(layout, k, 3) for k in (1, 2)]
    together, state = steps(rule, layout, flat, grads)
    for b in range(3):
        alone, single = steps(rule, layout, flat[b], [grad[b] for grad in grads])
        torch.testing.assert_close(alone, together[b])
        assert single["step"].shape == ()
        torch.testing.assert_close(single["momenta"], state["momenta"][b])


def test_rule_counts_the_steps_of_every_network() -> None:
    layout, rule = plain(), rule_of(width=4)
    flat, grads = flat_noise(layout, 0), [flat_noise(layout, k) for k in (1, 2, 3)]
    _, late = steps(rule, layout, flat, grads[:2])
    fresh = rule.init_state(layout, flat)
    both = {key: torch.stack([late[key], fresh[key]]) for key in fresh}
    direction, _ = rule(layout, flat.repeat(2, 1), grads[2].repeat(2, 1), both)
    torch.testing.assert_close(direction[0], rule(layout, flat, grads[2], late)[0])
    torch.testing.assert_close(direction[1], rule(layout, flat, grads[2], fresh)[0])
    assert not torch.allclose(direction[0], direction[1])


def test_rule_does_not_touch_its_arguments_unless_inplace() -> None:
    layout, rule = plain(), rule_of(width=4)
    flat, grad = flat_noise(layout, 0), flat_noise(layout, 1)
    state = rule.init_state(layout, flat)
    kept = {key: value.clone() for key, value in state.items()}
    with torch.no_grad():
        direction, new = rule(layout, flat, grad, state)
        assert all(torch.equal(state[key], kept[key]) for key in kept)
        again, overwritten = rule(layout, flat, grad, state, inplace=True)
    torch.testing.assert_close(again, direction)
    for key in new:
        torch.testing.assert_close(overwritten[key], new[key])
    assert overwritten["momenta"].data_ptr() == state["momenta"].data_ptr()


@pytest.mark.parametrize("net", REACHES)
def test_rule_runs_under_vmap_over_its_parameters(net: Reach) -> None:
    layout, rule = plain(), rule_of(net=net, width=4)
    flat, grad = flat_noise(layout, 0, 3, 2), flat_noise(layout, 1, 3, 2)
    state = rule.init_state(layout, flat)
    many = {name: torch.stack([p + 0.1 * k for k in range(3)]) for name, p in rule.named_parameters()}
    with torch.no_grad():
        got, _ = vmap(lambda phi, w, g, s: functional_call(rule, phi, (layout, w, g, s)))(
            many, flat, grad, state
        )
        for k in range(3):
            phi = {name: value[k] for name, value in many.items()}
            inner = {key: value[k] for key, value in state.items()}
            want, _ = functional_call(rule, phi, (layout, flat[k], grad[k], inner))
            torch.testing.assert_close(got[k], want)


@pytest.mark.parametrize("net", ["unf", "deepset", "mlp"])
def test_every_network_may_have_a_rule_of_its_own(net: Reach) -> None:
    layout, rule = plain(), rule_of(net=net, width=4)
    flat, grad = flat_noise(layout, 0, 3), flat_noise(layout, 1, 3)
    state = rule.init_state(layout, flat)
    center = torch.nn.utils.parameters_to_vector(rule.parameters()).detach()
    vectors = center + 0.1 * torch.arange(3.0, dtype=center.dtype)[:, None]
    with torch.no_grad():
        got, _ = functional_call(rule, rule.of_vectors(vectors), (layout, flat, grad, state))
        for k in range(3):
            torch.nn.utils.vector_to_parameters(vectors[k], rule.parameters())
            want, _ = rule(layout, flat[k], grad[k], {key: value[k] for key, value in state.items()})
            torch.testing.assert_close(got[k], want)
    assert not torch.allclose(got[0], got[1])


@pytest.mark.parametrize("net", REACHES)
def test_fresh_rule_is_muon_and_adam(net: Reach) -> None:
    """A hundred steps on a loss, against the optimizers written by hand.

    The loss is large, because Muon adds 1e-7 to the norm of a momentum, and small singular values mind that.
    """
    torch.manual_seed(0)
    model = network().double()
    layout = layout_of(model, extract(network(), torch.zeros(1, 3)))
    x, y = torch.randn(32, 3).double(), torch.randn(32, 2).double()
    weights = dict(model.named_parameters())
    matrices = [weights["0.weight"], weights["2.weight"]]
    others = [p for p in weights.values() if all(p is not m for m in matrices)]
    rule = UNFRule(net, vector_rate=0.3, table_rate=0.3).double()
    muon = Muon(
        [
            {"params": matrices, "muon": True, "lr": 0.02, "momentum": 0.95},
            {"params": others, "muon": False, "lr": 0.3 * 0.02, "betas": (0.9, 0.99)},
        ],
        eps=1e-30,
    )
    flat = layout.pack({name: p.detach().clone() for name, p in weights.items()})
    state = rule.init_state(layout, flat)
    for _ in range(100):
        params = {name: p.requires_grad_() for name, p in layout.unpack(flat).items()}
        loss = 1e6 * (functional_call(model, params, (x,)) - y).square().mean()
        grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
        with torch.no_grad():
            direction, state = rule(layout, flat, layout.pack(grads), state)
            flat = flat - 0.02 * direction
        muon.zero_grad()
        (1e6 * (model(x) - y).square().mean()).backward()
        muon.step()
    torch.testing.assert_close(
        flat, layout.pack({n: p.detach() for n, p in weights.items()}), rtol=1e-3, atol=2e-5
    )


def test_embeddings_and_heads_are_moved_by_adam_and_all_that_writes_hidden_units_by_muon() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.gru = nn.Embedding(7, 4), nn.GRU(4, 5, batch_first=True)
            self.norm, self.head = nn.LayerNorm(5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.gru(self.embedding(x))[0]))

    layout = layout_of(Net(), extract(Net(), torch.zeros(2, 3, dtype=torch.int64)))
    spans = {k: range(*b.elements) for k, b in enumerate(layout.buckets)}
    kinds = {
        place.block.param: CLASSES[layout.buckets[k].kind]
        for place in layout.places
        for k, span in spans.items()
        if place.start in span
    }
    assert {name for name, kind in kinds.items() if kind == "table"} == {"embedding.weight", "head.weight"}
    assert {n for n, k in kinds.items() if k == "matrix"} == {"gru.weight_ih_l0", "gru.weight_hh_l0"}


@pytest.mark.parametrize("factor", [1e-8, 1e-3, 1e4])
def test_direction_does_not_depend_on_the_scale_of_the_loss(factor: float) -> None:
    layout, rule = plain(), rule_of(width=4).float()
    flat, grads = flat_noise(layout, 0).float(), [flat_noise(layout, k).float() for k in (1, 2, 3)]
    first, _ = steps(rule, layout, flat, grads)
    second, _ = steps(rule, layout, flat, [factor * grad for grad in grads])
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_direction_is_within_its_bound_whatever_was_learned(seed: int) -> None:
    """Rules with weights as large as they come, gradients of all sizes and with bursts."""
    layout = plain()
    torch.manual_seed(seed)
    rule = UNFRule(width=4)
    with torch.no_grad():
        for p in rule.parameters():
            p.copy_(3 * torch.randn_like(p))
    flat = torch.randn(layout.size)
    state = rule.init_state(layout, flat)
    for k in range(12):
        grad = torch.randn(layout.size) * 10 ** (4 * torch.rand(layout.size) * (k % 4))
        with torch.no_grad():
            direction, state = rule(layout, flat, grad, state)
        for bucket, part in zip(layout.buckets, layout.split(direction), strict=True):
            columns = part[0, 0].numel()
            kind = CLASSES[bucket.kind]
            bound = 2 * 1.21 / columns**0.5 if kind == "matrix" else 4.7 * rule.rates[kind]
            for block in part:
                assert float(block.square().mean().sqrt()) < bound


@pytest.mark.parametrize("net", ["unf", "deepset"])
def test_steps_without_sizes_are_as_long_as_the_base(net: Reach) -> None:
    layout, numbers = plain(), {"vector_rate": 0.4, "floor": 0.1, "ramp": 3}
    flat, grads = flat_noise(layout, 0, 2), [flat_noise(layout, k, 2) for k in (1, 2)]

    def lengths(rule: UNFRule) -> tuple[Tensor, Tensor]:
        state = rule.init_state(layout, flat)
        with torch.no_grad():
            for grad in grads:
                direction, state = rule(layout, flat, grad, state)
        roots = [part.flatten(2).square().mean(2).sqrt() for part in layout.split(direction)]
        return torch.cat(roots, 1), direction

    base, without = lengths(UNFRule("none", **numbers).double())
    learned, turned = lengths(rule_of(net=net, width=4, sizes=False, **numbers))
    torch.testing.assert_close(learned, base)
    assert not torch.allclose(turned, without)
    resized, _ = lengths(rule_of(net=net, width=4, **numbers))
    assert not torch.allclose(resized, base)


def test_rule_is_finite_at_zero() -> None:
    layout, rule = plain(), rule_of(width=4, floor=0.1)
    flat = torch.zeros(layout.size, dtype=torch.float64, requires_grad=True)
    direction, _ = rule(layout, flat, torch.zeros_like(flat), rule.init_state(layout, flat))
    direction.sum().backward()
    assert not direction.any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in rule.parameters())
    assert flat.grad is not None and flat.grad.isfinite().all()


def test_direction_can_be_differentiated_by_what_is_learned() -> None:
    """Against differences, for a parameter of every kind."""
    layout, rule = plain(), rule_of(width=4)
    flat, grads = flat_noise(layout, 0), [flat_noise(layout, k) for k in (1, 2)]
    _, state = rule(layout, flat, grads[0], rule.init_state(layout, flat))
    state = {key: value.detach() for key, value in state.items()}
    weights = flat_noise(layout, 3)

    def value() -> Tensor:
        return (rule(layout, flat, grads[1], state)[0] * weights).sum()

    value().backward()
    for p in rule.parameters():
        assert p.grad is not None
        way = torch.randn_like(p) * (p.grad != 0)
        with torch.no_grad():
            p += 1e-6 * way
            above = value()
            p -= 2e-6 * way
            below = value()
            p += 1e-6 * way
        torch.testing.assert_close((above - below) / 2e-6, (p.grad * way).sum(), rtol=1e-4, atol=1e-6)


def test_derivative_by_gradients_is_bounded_where_second_moments_are_tiny() -> None:
    layout = plain()
    flat, first, grad = (flat_noise(layout, k) for k in range(3))
    first[:3] *= 1e-6
    found = []
    for damping in (0.0, 0.1):
        rule = UNFRule(width=4, damping=damping).double()
        _, state = rule(layout, flat, first, rule.init_state(layout, flat))
        moved = torch.cat([first[:3], grad[3:]]).requires_grad_()
        direction, _ = rule(layout, flat, moved, state)
        (slope,) = torch.autograd.grad(direction[:3].sum(), moved)
        found.append((direction.detach(), slope[:3].abs().max()))
    torch.testing.assert_close(found[1][0], found[0][0])
    assert found[1][1] < 0.1 * found[0][1]


def test_rule_serves_any_architecture_with_the_same_weights() -> None:
    rule = UNFRule(width=4)
    before = sum(p.numel() for p in rule.parameters())
    for case in CASES[:6]:
        _, _, layout = extracted(case)
        flat = flat_noise(layout, 0, dtype=torch.float32)
        direction, _ = rule(layout, flat, flat, rule.init_state(layout, flat))
        assert direction.shape == flat.shape and direction.isfinite().all()
    assert sum(p.numel() for p in rule.parameters()) == before


def test_rule_keeps_four_numbers_per_weight() -> None:
    assert sum(UNFRule.state_sizes.values()) == 4


def test_rule_config_makes_a_copy() -> None:
    rule = UNFRule("deepset", width=5, depth=3, vector_rate=0.5, mix=(0, 0.5, 0.5, 0), floor=0.5, sizes=False)
    copy = UNFRule(**json.loads(json.dumps(rule.config)))
    copy.load_state_dict(rule.state_dict())
    assert copy.config == rule.config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"net": "gnn"}, "net: got 'gnn', expected one of unf, deepset, mlp"),
        ({"width": 0}, "width: got 0"),
        ({"depth": 1.5}, "depth: got 1.5"),
        ({"table_rate": 0.0}, "table_rate: got 0.0"),
        ({"mix": (0.0, 0.0, 0.0, 0.0)}, r"mix: got \(0.0, 0.0, 0.0, 0.0\), expected 4 finite numbers"),
        ({"floor": 0.0}, "floor: got 0.0, expected a number above 0 and at most 1"),
        ({"floor": 1.5}, "floor: got 1.5"),
        ({"sizes": 1}, "sizes: got 1, expected true or false"),
        ({"ramp": 0}, "ramp: got 0, expected a whole number of at least 1"),
        ({"mix": (1.0, 0.0)}, r"mix: got \(1.0, 0.0\)"),
        ({"damping": float("nan")}, "damping: got nan"),
    ],
)
def test_rule_refuses_bad_arguments(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNFRule(**config)


def fresh(factor: float) -> tuple[UpdateLayout, Tensor]:
    """Layout and weights [1, N] of a network as torch makes it, its middle layer so many times larger."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 2))
    layout = layout_of(model, extract(model, torch.zeros(1, 30)))
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    middle = {name: factor * p for name, p in weights.items() if name.startswith("2.")}
    return layout, layout.pack({**weights, **middle}).unsqueeze(0)


def test_steps_of_networks_as_torch_makes_them_are_not_shortened() -> None:
    for factor in (0.55, 1.0, 5.0):
        assert float(length(*fresh(factor), 1 / 16)) == 1


@pytest.mark.parametrize(("factor", "left"), [(0.125, 0.25), (1e-3, 1 / 16), (0.0, 1 / 16)])
def test_steps_are_shorter_by_the_geometric_mean_of_how_small_the_weights_are(
    factor: float, left: float
) -> None:
    found = float(length(*fresh(factor), 1 / 16))
    assert found == pytest.approx(left ** (1 / 3), rel=0.02)  # one of three matrices


@pytest.mark.parametrize("net", REACHES)
def test_networks_with_usual_weights_take_the_same_steps_to_the_bit(net: Reach) -> None:
    layout, flat = fresh(1.0)
    grads = [flat_noise(layout, k, 1) for k in range(3)]
    before, _ = steps(UNFRule(net).double(), layout, flat, grads)
    torch.manual_seed(0)
    after, _ = steps(UNFRule(net, floor=1 / 16).double(), layout, flat, grads)
    assert torch.equal(before, after)


@pytest.mark.parametrize("net", REACHES)
def test_all_directions_of_a_network_have_its_length(net: Reach) -> None:
    layout, flat = fresh(0.125)
    plain_rule, rule = UNFRule(net).double(), UNFRule(net, floor=1 / 16).double()
    grad = flat_noise(layout, 1, 1)
    long, _ = plain_rule(layout, flat, grad, plain_rule.init_state(layout, flat))
    short, _ = rule(layout, flat, grad, rule.init_state(layout, flat))
    torch.testing.assert_close(short, long * length(layout, flat, 1 / 16))


@pytest.mark.parametrize("net", REACHES)
def test_steps_grow_along_the_ramp(net: Reach) -> None:
    layout, flat = fresh(1.0)
    without, rule = UNFRule(net).double(), UNFRule(net, ramp=4).double()
    state = twin = rule.init_state(layout, flat)
    for share in (0.25, 0.5, 0.75, 1.0, 1.0):
        grad = flat_noise(layout, round(4 * share), 1)
        full, twin = without(layout, flat, grad, twin)
        step, state = rule(layout, flat, grad, state)
        torch.testing.assert_close(step, share * full)


def test_length_is_that_of_the_weights_before_the_first_step() -> None:
    layout, small = fresh(0.125)
    rule, grad = UNFRule("none", floor=1 / 16).double(), flat_noise(layout, 1, 1)
    _, state = rule(layout, small, grad, rule.init_state(layout, small))
    _, later = rule(layout, 8 * small, grad, state)
    assert torch.equal(later["length"], length(layout, small, 1 / 16))
