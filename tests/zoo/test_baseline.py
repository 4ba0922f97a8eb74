from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from amortopt.tasks import Split, init_many, make_family, make_task
from amortopt.zoo import ZooConfig, build_zoo, load_zoo
from amortopt.zoo.baseline import finetune, starting_networks
from amortopt.zoo.command import build_parser
from amortopt.zoo.draw import epoch_order, noise_generator

TASK = make_task("mnist1d")
FAMILY = make_family("mlp", activation="tanh", widths=(40, 8, 6, 10))
RATES = torch.tensor([0.02, 0.003], dtype=torch.float64)
RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "zoo").glob("mnist1d_mlp_*.yaml"))


def examples() -> Split:
    data = TASK.split("train")
    return Split(data.x[:70].double(), data.y[:70])


def double_params(count: int):
    return {name: p.double() for name, p in init_many(FAMILY.build, range(count)).items()}


def finetune_one_reference(params, data, *, optimizer, lr, schedule, epochs, noise):
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
        generator = noise_generator(3, epoch, torch.device("cpu"))
        for batch in epoch_order(3, epoch, len(data)).split(32):
            x = data.x[batch]
            x = x + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype) if noise else x
            opt.zero_grad()
            torch.nn.functional.cross_entropy(module(x), data.y[batch]).backward()
            opt.step()
            if schedule == "cosine":
                scheduler.step()
    return dict(module.named_parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_finetune_equals_torch_optim_per_network(optimizer, schedule, noise) -> None:
    data, params = examples(), double_params(2)
    done = finetune(
        FAMILY.build(), params, data, TASK, optimizer=optimizer, learning_rate=RATES, schedule=schedule,
        epochs=4, seed=3, batch_size=32, input_noise=noise,
    )  # fmt: skip
    for b in range(2):
        expected = finetune_one_reference(
            {name: p[b] for name, p in params.items()}, data, optimizer=optimizer, lr=float(RATES[b]),
            schedule=schedule, epochs=4, noise=noise,
        )  # fmt: skip
        for name, p in expected.items():
            torch.testing.assert_close(done.params[name][b], p.detach(), rtol=1e-9, atol=1e-12)


def test_finetune_leaves_its_input_and_stops_where_asked() -> None:
    params, stops, epochs = double_params(2), [], []
    before = {name: p.clone() for name, p in params.items()}
    done = finetune(
        FAMILY.build(), params, examples(), TASK, learning_rate=0.1, epochs=3, seed=0, stops=(1, 3),
        on_stop=lambda epoch, seconds, p: stops.append((epoch, seconds, p["0.weight"].clone())),
        on_epoch=epochs.append,
    )  # fmt: skip
    assert all(torch.equal(params[name], before[name]) for name in params)
    assert [stop[0] for stop in stops] == [1, 3] and epochs == [1, 2, 3]
    assert 0 < stops[0][1] < stops[1][1] == done.seconds
    assert not torch.equal(stops[0][2], stops[1][2])
    assert torch.equal(stops[1][2], done.params["0.weight"])


@pytest.mark.parametrize("wrong", [{"optimizer": "lion"}, {"schedule": "linear"}])
def test_finetune_refuses_unknown_names(wrong) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got"):
        finetune(
            FAMILY.build(), double_params(1), examples(), TASK, learning_rate=0.1, epochs=1, seed=0, **wrong
        )


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_starting_networks_are_drawn_as_the_recipes_say(recipe: Path, tmp_path: Path) -> None:
    parser: ArgumentParser = build_parser()
    parsed = parser.parse_args(["--config", str(recipe)]).as_dict()
    config = ZooConfig(**{key: parsed[key] for key in ZooConfig.__dataclass_fields__})
    build_zoo(replace(config, count=4), tmp_path / "z")
    expected = load_zoo(tmp_path / "z").params
    start = starting_networks(config.task, config.family, count=4, seed=config.seed)
    for name, p in start.items():
        torch.testing.assert_close(p, expected[name])
    other = starting_networks(config.task, config.family, count=4, seed=config.seed + 1)
    assert not torch.allclose(start["0.weight"], other["0.weight"])
