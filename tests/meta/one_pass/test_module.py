from __future__ import annotations

import copy

import pytest
import torch

from amortopt.functional.networks import apply, unstack
from amortopt.meta.one_pass.module import OnePassModule
from amortopt.tasks import Examples, init_many
from tests.meta.tiny import tiny_module

READS = [[], ["batch"], ["l1"], ["batch", "l1"]]


def inputs(module: OnePassModule, *, per_network: bool) -> tuple:
    params = init_many(module.family.build, range(3))
    lead = (3, 9) if per_network else (9,)
    examples = Examples(torch.randn(*lead, 40), torch.randint(10, lead), shared=not per_network)
    l1 = torch.tensor([0.0, 1e-3, 1e-2]) if "l1" in module.metanet.conditions else None
    return params, examples, Examples(torch.randn(7, 40), torch.randint(10, (7,))), l1


@pytest.mark.parametrize("conditions", READS, ids=str)
@pytest.mark.parametrize("per_network", [True, False])
def test_meta_loss_equals_slow_reference(conditions: list[str], per_network: bool) -> None:
    module = tiny_module(conditions=conditions)
    params, examples, read, l1 = inputs(module, per_network=per_network)
    total = 0.0
    for b, new in enumerate(unstack(module.improve(module.metanet, params, read, l1)[0])):
        x, y = (t[b] if per_network else t for t in (examples.x, examples.y))
        total += torch.nn.functional.cross_entropy(apply(module.network, new, x), y).item()
        if l1 is not None:
            total += l1[b].item() * sum(p.abs().sum().item() for p in new.values())
    assert module.meta_loss(params, examples, read, l1).item() == pytest.approx(total / 3, rel=1e-5)


@pytest.mark.parametrize("conditions", READS, ids=str)
def test_passes_are_unrolled_and_their_losses_averaged(conditions: list[str]) -> None:
    module = tiny_module(conditions=conditions)
    params, examples, read, l1 = inputs(module, per_network=False)
    first = module.meta_loss(params, examples, read, l1)
    (once,) = module.improve(module.metanet, params, read, l1)
    second = module.meta_loss({name: p.detach() for name, p in once.items()}, examples, read, l1)
    module.passes = 2
    assert len(module.improve(module.metanet, params, read, l1)) == 2
    both = module.meta_loss(params, examples, read, l1)
    assert both.item() == pytest.approx((first.item() + second.item()) / 2, rel=1e-6)
    both.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.metanet.parameters())


def test_gradient_flows_through_all_passes() -> None:
    module = tiny_module(start="identity")
    params, *_, read, l1 = inputs(module, per_network=False)
    module.passes = 2
    once, twice = module.improve(module.metanet, params, read, l1)
    grads = torch.autograd.grad(sum(p.sum() for p in twice.values()), list(once.values()), allow_unused=True)
    assert any(g is not None and g.any() for g in grads)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("conditions", READS, ids=str)
@pytest.mark.parametrize("config", [{}, {"direction": "forward"}, {"respects": "permutation"}], ids=str)
def test_step_uses_and_moves_every_parameter(activation: str, conditions: list[str], config: dict) -> None:
    # A parameter without a gradient stops DistributedDataParallel.
    module = tiny_module(activation, conditions=conditions, **config)
    before = copy.deepcopy(dict(module.metanet.named_parameters()))
    optimizer = module.configure_optimizers()
    for _ in range(2):  # after one step nothing is multiplied by a zero any more
        optimizer.zero_grad()
        loss = module.meta_loss(*inputs(module, per_network=True))
        loss.backward()
        assert loss.isfinite()
        assert not [name for name, p in module.metanet.named_parameters() if p.grad is None]
        optimizer.step()
    for name, p in module.metanet.named_parameters():
        assert p.isfinite().all() and not torch.equal(p, before[name]), name


@pytest.mark.parametrize("start", ["identity", "proposal"])
def test_start_says_whether_a_fresh_metanet_changes_anything(start: str) -> None:
    module = tiny_module(start=start)  # pyright: ignore[reportArgumentType]
    params, *_, read, l1 = inputs(module, per_network=True)
    (new,) = module.improve(module.metanet, params, read, l1)
    assert all(torch.allclose(new[name], params[name]) for name in params) == (start == "identity")


def test_average_starts_as_the_metanet_and_is_not_trained() -> None:
    module = tiny_module()
    for (name, p), q in zip(module.average.named_parameters(), module.metanet.parameters(), strict=True):
        assert torch.equal(p, q) and not p.requires_grad, name
    assert not any(name.startswith("_network") for name in module.state_dict())


@pytest.mark.parametrize(
    "key, value",
    [
        ("lr", 0.0),
        ("scalar_lr", -1.0),
        ("correction_lr", float("inf")),
        ("passes", 0),
        ("hold", 1.5),
        ("ema", -0.1),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
        ("prototype_decay", -0.1),
    ],
)
def test_settings_out_of_range_are_named(key: str, value: float) -> None:
    made = {"problem": {"name": "mnist1d"}, "family": {"name": "mlp"}, "metanet": {"name": "scalegmn"}}
    with pytest.raises(ValueError, match=f"^{key}: got"):
        OnePassModule(**made, **{key: value})


@pytest.mark.parametrize("key", ["problem", "family", "metanet"])
@pytest.mark.parametrize("arguments", [{}, {"name": "nothing"}, {"width": 3}], ids=str)
def test_parts_that_cannot_be_made_are_named(key: str, arguments: dict) -> None:
    made = {"problem": {"name": "mnist1d"}, "family": {"name": "mlp"}, "metanet": {"name": "scalegmn"}}
    with pytest.raises(ValueError, match=f"^{key}: got"):
        OnePassModule(**{**made, key: arguments})


def test_penalty_rises_over_its_share_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny_module(conditions=["l1"])
    module.hparams["l1_warmup"] = 0.25
    for progress, expected in ((0.0, 0.0), (0.125, 0.5), (0.25, 1.0), (1.0, 1.0)):
        monkeypatch.setattr(module, "progress", lambda value=progress: value)
        assert module.penalty_factor() == pytest.approx(expected)
    module.hparams["l1_warmup"] = 0.0
    monkeypatch.setattr(module, "progress", lambda: 0.0)
    assert module.penalty_factor() == 1


def test_penalty_of_the_loss_is_not_what_the_metanet_reads() -> None:
    module = tiny_module(conditions=["l1"])
    params, examples, read, l1 = inputs(module, per_network=False)
    assert l1 is not None
    plain = module.meta_loss(params, examples, read, l1, torch.zeros_like(l1))
    (new,) = module.improve(module.metanet, params, read, l1)
    penalty = (0.5 * l1 * sum(p.abs().flatten(1).sum(1) for p in new.values())).mean()
    torch.testing.assert_close(module.meta_loss(params, examples, read, l1, 0.5 * l1), plain + penalty)
