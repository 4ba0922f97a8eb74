"""Steps of many networks against torch.optim, one network at a time, over a hundred steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.training import Stepper
from amortopt.training.muon import Muon

B, STEPS = 3, 100
SHAPES = {"in.weight": (6, 4), "kernel": (8, 6, 3), "wide": (5, 8), "bias": (5,), "out.weight": (2, 5)}
RATES = torch.tensor([0.1, 0.01, 0.003], dtype=torch.float64)
DECAYS = torch.tensor([0.0, 0.1, 0.02], dtype=torch.float64)


def start(generator: torch.Generator) -> Params:
    return {
        name: torch.randn(B, *shape, generator=generator, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }


def gradients(params: Params, step: int) -> Params:
    """Of a bowl whose middle wanders: signs change, and every entry is another."""
    return {
        name: p - 0.5 * torch.sin(torch.arange(p[0].numel(), dtype=p.dtype).view(p.shape[1:]) + step)
        for name, p in params.items()
    }


def one_by_one(
    params: Params,
    build: Callable[[list[Tensor], int], list[torch.optim.Optimizer]],
    clip: float | None = None,
) -> Params:
    """Each network by itself, with optimizers that ``build`` makes of its params and its position."""
    rows = []
    for b in range(B):
        leaves = {name: p[b].clone().requires_grad_() for name, p in params.items()}
        optimizers = build(list(leaves.values()), b)
        for step in range(STEPS):
            for name, g in gradients({n: p.detach()[None] for n, p in leaves.items()}, step).items():
                leaves[name].grad = g[0]
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(list(leaves.values()), clip)
            for optimizer in optimizers:
                optimizer.step()
        rows.append({name: p.detach() for name, p in leaves.items()})
    return {name: torch.stack([row[name] for row in rows]) for name in params}


def trained(params: Params, stepper: Stepper) -> Params:
    params = {name: p.clone() for name, p in params.items()}
    state = stepper.start(params)
    for step in range(STEPS):
        stepper.step(params, gradients(params, step), state, steps=STEPS)
    return params


def assert_close(got: Params, expected: Params) -> None:
    for name, p in expected.items():
        torch.testing.assert_close(got[name], p, rtol=1e-6, atol=1e-10, msg=name)


OPTIM = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}, {}),
    "sgd without momentum": (torch.optim.SGD, {"momentum": 0.0}, {"momentum": 0.0}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, {"nesterov": True}),
    "adam": (torch.optim.Adam, {}, {}),
    "adamw": (torch.optim.AdamW, {"betas": (0.9, 0.99)}, {"betas": (0.9, 0.99)}),
    "nadam": (torch.optim.NAdam, {}, {}),
}


@pytest.mark.parametrize("decays", [None, DECAYS], ids=["plain", "decay"])
@pytest.mark.parametrize("name", OPTIM)
def test_stepper_is_torch_optim(name: str, decays: Tensor | None, generator: torch.Generator) -> None:
    kind, theirs, ours = OPTIM[name]
    weight_decay = [0.0] * B if decays is None else decays.tolist()
    params = start(generator)
    expected = one_by_one(
        params, lambda p, b: [kind(p, lr=float(RATES[b]), weight_decay=weight_decay[b], **theirs)]
    )
    optimizer: Any = name.split()[0].replace("nesterov", "sgd")
    stepper = Stepper(optimizer, RATES, weight_decay=0.0 if decays is None else decays, **ours)
    assert_close(trained(params, stepper), expected)


def test_stepper_muon_is_the_optimizer_on_hidden_matrices(generator: torch.Generator) -> None:
    params, hidden = start(generator), ("kernel", "wide")

    def build(leaves: list[Tensor], b: int) -> list[torch.optim.Optimizer]:
        # The optimizer takes kernels as matrices [O, I K]; the view and the parameter share their numbers.
        named = dict(zip(SHAPES, leaves, strict=True))
        matrices = [named[name].detach().flatten(1).requires_grad_() for name in hidden]
        rate = float(RATES[b])
        rest = [p for name, p in named.items() if name not in hidden]
        muon = Muon(
            [
                {"params": matrices, "muon": True, "lr": rate, "weight_decay": 0.1},
                {"params": rest, "lr": 0.1 * rate, "betas": (0.9, 0.999), "weight_decay": 0.1},
            ]
        )

        def share(*_: Any) -> None:
            for matrix, name in zip(matrices, hidden, strict=True):
                matrix.grad = named[name].grad.flatten(1)  # type: ignore[union-attr]

        muon.register_step_pre_hook(share)
        return [muon]

    stepper = Stepper("muon", RATES, weight_decay=0.1)
    assert_close(trained(params, stepper), one_by_one(params, build))
    named = Stepper("muon", RATES, weight_decay=0.1, matrices=hidden)
    assert_close(trained(params, named), trained(params, stepper))


def test_stepper_clips_each_networks_gradient(generator: torch.Generator) -> None:
    params = start(generator)
    expected = one_by_one(params, lambda p, b: [torch.optim.SGD(p, float(RATES[b]), 0.9)], clip=1.0)
    assert_close(trained(params, Stepper("sgd", RATES, clip=1.0)), expected)


@pytest.mark.parametrize("schedule", ["cosine", "warmup"])
def test_stepper_schedule_is_torch_optims(schedule: Any, generator: torch.Generator) -> None:
    params = start(generator)

    class Scheduled(torch.optim.SGD):
        def __init__(self, leaves: list[Tensor], rate: float) -> None:
            super().__init__(leaves, rate, 0.9)
            warm = 10 if schedule == "warmup" else 0
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(self, STEPS - warm)
            self.plan: Any = cosine
            if warm:
                rising = torch.optim.lr_scheduler.LambdaLR(self, lambda step: (step + 1) / warm)
                self.plan = torch.optim.lr_scheduler.SequentialLR(self, [rising, cosine], [warm])
            self.register_step_post_hook(lambda *_: self.plan.step())

    expected = one_by_one(params, lambda p, b: [Scheduled(p, float(RATES[b]))])
    assert_close(trained(params, Stepper("sgd", RATES, schedule)), expected)


def test_stepper_schedules_networks_of_different_lengths(generator: torch.Generator) -> None:
    params, lengths = start(generator), torch.tensor([100, 50, 100])
    stepper = Stepper("sgd", RATES, "cosine")
    many = {name: p.clone() for name, p in params.items()}
    state = stepper.start(many)
    for step in range(50):
        stepper.step(many, gradients(many, step), state, steps=lengths)
    for b, length in enumerate(lengths.tolist()):
        one = {name: p[b : b + 1].clone() for name, p in params.items()}
        alone = stepper.of(torch.tensor([b]))
        state = alone.start(one)
        for step in range(50):
            alone.step(one, gradients(one, step), state, steps=length)
        assert_close({name: p[b : b + 1] for name, p in many.items()}, one)


def test_stepper_moves_only_the_networks_with_gradients(generator: torch.Generator) -> None:
    params = start(generator)
    before = {name: p.clone() for name, p in params.items()}
    stepper = Stepper("adamw", RATES, weight_decay=DECAYS)
    stepper.step(params, {n: p[:2].clone() for n, p in params.items()}, stepper.start(params))
    for name, p in params.items():
        assert torch.equal(p[2], before[name][2]) and not torch.equal(p[1], before[name][1])


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"optimizer": "lion"}, "optimizer: got 'lion', expected one of sgd, adam"),
        ({"schedule": "linear"}, "schedule: got 'linear', expected one of constant, cosine, warmup"),
        ({"l1": -1e-3}, "l1: got -0.001"),
        ({"l1": float("nan")}, "l1: got nan"),
        ({"weight_decay": torch.tensor([0.1, -0.1])}, "weight_decay: got"),
        ({"optimizer": "muon", "proximal": True}, "proximal: got True with muon"),
        ({"nesterov": True, "proximal": True}, "proximal: got True with nesterov"),
    ],
)
def test_stepper_refuses_bad_settings(wrong: dict[str, Any], message: str) -> None:
    settings: Any = {"optimizer": "sgd", "learning_rate": 0.1} | wrong
    with pytest.raises(ValueError, match=message):
        Stepper(**settings)


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "l1"])
def test_stepper_refuses_settings_of_other_networks(name: str) -> None:
    settings: Any = {"learning_rate": 0.1} | {name: torch.ones(2)}
    with pytest.raises(ValueError, match=rf"{name}: got shape \(2,\), expected a number or 3"):
        Stepper("sgd", **settings).start({"weight": torch.zeros(3, 4)})
