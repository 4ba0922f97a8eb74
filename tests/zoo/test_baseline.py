from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from amortopt.cli.zoo import build_parser
from amortopt.tasks import Examples, init_many, loss_and_grad_many, make_family, make_problem
from amortopt.zoo import ZooConfig, build_zoo, load_zoo
from amortopt.zoo.baseline import finetune, starting_networks
from amortopt.zoo.draw import epoch_order, noise_generator

PROBLEM = make_problem("mnist1d")
FAMILY = make_family("mlp", activation="tanh", widths=(40, 8, 6, 10))
RATES = torch.tensor([0.02, 0.003], dtype=torch.float64)
RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "zoo").glob("mnist1d_mlp_*.yaml"))


def examples() -> Examples:
    data = PROBLEM.split("train")
    return Examples(data.x[:70].double(), data.y[:70])


def double_params(count: int):
    return {name: p.double() for name, p in init_many(FAMILY.build, range(count)).items()}


def finetune_one_reference(params, data, *, optimizer, lr, schedule, epochs, noise, l1=0.0):
    """Slow and obvious: one ordinary module, torch.optim and a scheduler."""
    module = FAMILY.build().double()
    module.load_state_dict(params)
    kinds = {
        "sgd": lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr),
    }
    opt = kinds[optimizer](module.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, epochs * 3)
    for epoch in range(epochs):
        for x, y in batches(data, epoch, noise):
            opt.zero_grad()
            penalty = l1 * sum(p.abs().sum() for p in module.parameters())
            (torch.nn.functional.cross_entropy(module(x), y) + penalty).backward()
            opt.step()
            if schedule == "cosine":
                scheduler.step()
    return {name: p.detach() for name, p in module.named_parameters()}


def proximal_one_reference(params, data, *, optimizer, lr, epochs, l1):
    """The papers' formulas, one network, one tensor at a time, constant learning rate."""
    module, step = FAMILY.build().double(), 0
    module.load_state_dict(params)
    old = {name: p.detach().clone() for name, p in module.named_parameters()}
    mean, square = ({name: torch.zeros_like(p) for name, p in old.items()} for _ in range(2))
    for epoch in range(epochs):
        for x, y in batches(data, epoch, 0.0):
            step += 1
            module.zero_grad()
            torch.nn.functional.cross_entropy(module(x), y).backward()
            for name, p in module.named_parameters():
                now, t = p.detach().clone(), torch.full_like(p, lr * l1)
                if optimizer == "sgd":
                    moved = now - lr * p.grad + 0.9 * (now - old[name])
                else:
                    mean[name] = 0.9 * mean[name] + 0.1 * p.grad
                    square[name] = 0.999 * square[name] + 0.001 * p.grad**2
                    size = (square[name] / (1 - 0.999**step)).sqrt() + 1e-8
                    moved, t = now - lr * mean[name] / (1 - 0.9**step) / size, t / size
                p.data = moved.sign() * (moved.abs() - t).clamp(min=0)
                old[name] = now
    return {name: p.detach() for name, p in module.named_parameters()}


def batches(data, epoch, noise):
    generator = noise_generator(3, epoch, torch.device("cpu"))
    for batch in epoch_order(3, epoch, len(data)).split(32):
        x = data.x[batch]
        x = x + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype) if noise else x
        yield x, data.y[batch]


def network(params, b):
    return {name: p[b] for name, p in params.items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("noise", [0.0, 0.4])
@pytest.mark.parametrize("l1", [0.0, 3e-3])
def test_finetune_equals_torch_optim_per_network(optimizer, schedule, noise, l1) -> None:
    data, params = examples(), double_params(2)
    done = finetune(
        FAMILY.build(), params, data, PROBLEM, optimizer=optimizer, learning_rate=RATES, schedule=schedule,
        epochs=4, seed=3, batch_size=32, input_noise=noise, l1=l1,
    )  # fmt: skip
    for b in range(2):
        expected = finetune_one_reference(
            network(params, b), data, optimizer=optimizer, lr=float(RATES[b]), schedule=schedule, epochs=4,
            noise=noise, l1=l1,
        )  # fmt: skip
        for name, p in expected.items():
            torch.testing.assert_close(done.params[name][b], p, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_finetune_proximal_equals_the_papers_formulas(optimizer) -> None:
    data, params, strengths = examples(), double_params(2), torch.tensor([0.2, 0.03], dtype=torch.float64)
    done = finetune(
        FAMILY.build(), params, data, PROBLEM, optimizer=optimizer, learning_rate=RATES, schedule="constant",
        epochs=5, seed=3, batch_size=32, l1=strengths, proximal=True,
    )  # fmt: skip
    zeros = 0
    for b in range(2):
        expected = proximal_one_reference(
            network(params, b),
            data,
            optimizer=optimizer,
            lr=float(RATES[b]),
            epochs=5,
            l1=float(strengths[b]),
        )
        for name, p in expected.items():
            torch.testing.assert_close(done.params[name][b], p, rtol=1e-8, atol=1e-11)
            assert torch.equal(done.params[name][b] == 0, p == 0)
            zeros += int((p == 0).sum())
    assert zeros > 20


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("proximal", [False, True])
def test_finetune_takes_one_strength_per_network(optimizer, proximal) -> None:
    def trained(l1, params):
        done = finetune(
            FAMILY.build(), params, examples(), PROBLEM, optimizer=optimizer, learning_rate=0.01, epochs=3,
            seed=0, l1=l1, proximal=proximal,
        )  # fmt: skip
        return done.params

    params = double_params(2)
    both = trained(torch.tensor([0.0, 0.05], dtype=torch.float64), params)
    for b, strength in enumerate((0.0, 0.05)):
        alone = trained(strength, {name: p[b : b + 1] for name, p in params.items()})
        for name, p in alone.items():
            torch.testing.assert_close(both[name][b], p[0], rtol=1e-9, atol=1e-12)
    assert not any(bool((p[0] == 0).any()) for p in both.values())
    assert proximal == any(bool((p[1] == 0).any()) for p in both.values())


@pytest.mark.parametrize(
    "optimizer, rate, proximal", [("sgd", 0.05, False), ("sgd", 0.05, True), ("adam", 0.02, True)]
)
def test_finetune_approaches_the_minimum_of_the_penalised_loss(optimizer, rate, proximal) -> None:
    # A linear network has one minimum: where every gradient is -λ sign(weight), or at most λ at a zero.
    family, lam = make_family("mlp", widths=(40, 10)), 0.02
    params = {name: p.double() for name, p in init_many(family.build, range(1)).items()}
    data = examples()
    done = finetune(
        family.build(), params, data, PROBLEM, optimizer=optimizer, learning_rate=rate, epochs=1500,
        seed=0, l1=lam, proximal=proximal,
    ).params  # fmt: skip
    grads = loss_and_grad_many(family.build(), done, data, PROBLEM.objective)[1]
    p = torch.cat([value.flatten() for value in done.values()])
    g = torch.cat([value.flatten() for value in grads.values()])
    alive = p.abs() > 1e-3
    assert 0.02 < alive.double().mean() < 0.9
    torch.testing.assert_close(g[alive], -lam * p[alive].sign(), rtol=0, atol=5e-4)
    assert float(g.abs().max()) < lam + 5e-4


def test_finetune_leaves_its_input_and_stops_where_asked() -> None:
    params, stops, epochs = double_params(2), [], []
    before = {name: p.clone() for name, p in params.items()}
    done = finetune(
        FAMILY.build(), params, examples(), PROBLEM, learning_rate=0.1, epochs=3, seed=0, stops=(1, 3),
        on_stop=lambda epoch, seconds, p: stops.append((epoch, seconds, p["0.weight"].clone())),
        on_epoch=epochs.append,
    )  # fmt: skip
    assert all(torch.equal(params[name], before[name]) for name in params)
    assert [stop[0] for stop in stops] == [1, 3] and epochs == [1, 2, 3]
    assert 0 < stops[0][1] < stops[1][1] == done.seconds
    assert not torch.equal(stops[0][2], stops[1][2])
    assert torch.equal(stops[1][2], done.params["0.weight"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": "lion"},
        {"schedule": "linear"},
        {"l1": -1e-3},
        {"l1": float("nan")},
        {"l1": torch.zeros(3)},
        {"learning_rate": torch.ones(2)},
    ],
)
def test_finetune_refuses_bad_arguments(wrong) -> None:
    given = {"learning_rate": 0.1, "epochs": 1, "seed": 0} | wrong
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got"):
        finetune(FAMILY.build(), double_params(1), examples(), PROBLEM, **given)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_starting_networks_are_drawn_as_the_recipes_say(recipe: Path, tmp_path: Path) -> None:
    parser: ArgumentParser = build_parser()
    parsed = parser.parse_args(["--config", str(recipe)]).as_dict()
    config = ZooConfig(**{key: parsed[key] for key in ZooConfig.__dataclass_fields__})
    build_zoo(replace(config, count=4), tmp_path / "z")
    expected = load_zoo(tmp_path / "z").params
    start = starting_networks(config.problem, config.family, count=4, seed=config.seed)
    for name, p in start.items():
        torch.testing.assert_close(p, expected[name])
    settings = {key: value for key, value in parsed.items() if key in ZooConfig.__dataclass_fields__}
    shorter = starting_networks(
        config.problem, config.family, count=4, seed=config.seed, recipe=settings | {"epochs": 0}
    )
    assert not torch.equal(shorter["0.weight"], start["0.weight"])
    other = starting_networks(config.problem, config.family, count=4, seed=config.seed + 1)
    assert not torch.allclose(start["0.weight"], other["0.weight"])


def test_starting_networks_refuse_unknown_keys() -> None:
    with pytest.raises(ValueError, match="recipe: got rate, expected keys"):
        starting_networks(
            PROBLEM.to_config(), FAMILY.to_config(), count=1, seed=0, recipe={"rate": 0.1, "epochs": 0}
        )
