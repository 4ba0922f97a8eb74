"""Zoos of small CNNs whose test accuracies spread widely, to be predicted from the weights.

After Unterthiner et al. (2020, arXiv 2002.11448): hyper-parameters are drawn anew for every network, such
that the accuracies spread: learning rate, scale of the initialisation, L2, dropout, how many examples it is
trained on, and for how long. All networks of a shard file are trained at once; each has its own examples.

    amortopt zoo cnn --config cnn_mnist_5k_relu --out zoos/cnn_mnist_5k_relu

Legend: B networks, n examples per step, M held-out examples.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.many import elementwise
from amortopt.functional.networks import finite_networks, params_of
from amortopt.system.devices import check_device
from amortopt.system.numbers import check_counts
from amortopt.tasks import Examples, Family, Problem, evaluate_many, init_many, make_family, make_problem
from amortopt.training import Stepper, train_many
from amortopt.zoo.build import build_shards
from amortopt.zoo.config import Table, check_recipe, even_split, make_of_recipe
from amortopt.zoo.store import Manifest

_NETWORK, _OFFSET, _EXAMPLES, _DROPOUT = range(4)  # independent random streams of one zoo seed
_REPORTED = 20  # steps between two reports of progress
_RANGES = ("learning_rate", "init_scale", "weight_decay", "steps", "train_size")


@dataclass(frozen=True)
class CnnZooConfig:
    """Recipe of a zoo of small CNNs. Ranges are drawn from anew for every network.

    Args:
        problem: ``name`` of a problem of images with classes and its arguments, as ``make_problem`` takes
            them.
        family: ``name`` and arguments of the networks, as ``make_family`` takes them.
        count: Number of networks.
        seed: Seed of the zoo.
        trainable: Examples of the problem's train part that networks may be trained on; the rest of it is
            held out, with the val and the test part. None: all.
        learning_rate: Lowest and highest learning rate of Adam, log-uniform.
        init_scale: Lowest and highest factor on the layers' own initialisation, log-uniform.
        weight_decay: Lowest and highest L2 strength, added to the gradient, log-uniform.
        dropout: Lowest and highest share of activations that are dropped behind every convolution, uniform.
        steps: Fewest and most training steps, log-uniform.
        train_size: Fewest and most examples that a network is trained on, log-uniform.
        batch_size: Examples per step.
        val_fraction: Share of networks for validation.
        test_fraction: Share of networks for testing.
        shard_size: Networks per shard file, which are also trained together.

    Raises:
        ValueError: If a value is out of its range; the message names it.
    """

    problem: dict[str, Any] = field(default_factory=lambda: {"name": "mnist_5k", "side": 14})
    family: dict[str, Any] = field(
        default_factory=lambda: {"name": "cnn", "activation": "relu", "input_shape": [1, 14, 14]}
    )
    count: int = 2000
    seed: int = 0
    trainable: int | None = 2000
    learning_rate: tuple[float, float] = (0.001, 0.03)
    init_scale: tuple[float, float] = (0.5, 2.5)
    weight_decay: tuple[float, float] = (1e-6, 0.01)
    dropout: tuple[float, float] = (0.0, 0.4)
    steps: tuple[int, int] = (20, 300)
    train_size: tuple[int, int] = (100, 2000)
    batch_size: int = 32
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    shard_size: int = 125

    def __post_init__(self) -> None:
        for name in ("problem", "family"):
            if not isinstance(getattr(self, name).get("name"), str):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected a mapping with a `name`")
        check_recipe(self, _RANGES, ("count", "batch_size", "shard_size"), ("seed",))
        if not 0 <= self.dropout[0] <= self.dropout[1] < 1:
            raise ValueError(f"dropout: got {list(self.dropout)}, expected 0 <= low <= high < 1")
        if self.trainable is not None:
            check_counts(trainable=self.trainable)

    def make_problem(self) -> Problem:
        """The problem; a ``ValueError`` if it, or one of its arguments, is unknown."""
        return make_of_recipe("problem", make_problem, self.problem)

    def make_family(self) -> Family:
        """The family; a ``ValueError`` if it, or one of its arguments, is unknown."""
        return make_of_recipe("family", make_family, self.family)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain json values, with the defaults of problem and family filled in."""
        resolved = {"problem": self.make_problem().to_config(), "family": self.make_family().to_config()}
        return json.loads(json.dumps(asdict(self) | resolved))


@elementwise
class NetworkDropout(nn.Module):
    """Dropout with a rate of its own for every network, for chains of layers that run many at once.

    Attributes:
        rates: Share of activations that are dropped, [B], of the networks that run next.
        generator: Source of the masks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rates = torch.zeros(1)
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        keep = (1 - self.rates).view(-1, *[1] * (x.ndim - 1))
        mask = torch.rand(x.shape, generator=self.generator, device=x.device) < keep
        return x * mask / keep


def build_cnn_zoo(
    config: CnnZooConfig,
    folder: str | Path,
    *,
    shard: str = "1/1",
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> list[int]:
    """Train the networks of a recipe and store them in a folder, as far as they are not there yet.

    [load_zoo][amortopt.zoo.load_zoo] reads it. Its table has the columns index, seed, split, the drawn
    hyper-parameters, epochs (steps in passes over the network's own examples), finite, and test_loss and
    ``test_accuracy`` on the held-out examples, without dropout. Arguments, value and errors are those of
    [build_zoo][amortopt.zoo.build_zoo].

    Raises:
        ValueError: Family and problem do not fit, or there are not so many trainable examples.
    """
    device, problem, family = check_device(device), config.make_problem(), config.make_family()
    if family.input_shape != problem.input_shape:
        raise ValueError(
            f"family: {family} takes inputs of shape {family.input_shape}, but {problem} has "
            f"{problem.input_shape}; change one of the two"
        )
    trainable, _ = parts_of(config)
    if config.train_size[1] > len(trainable):
        raise ValueError(
            f"train_size: got {list(config.train_size)}, expected at most the {len(trainable)} trainable "
            "examples"
        )
    with torch.random.fork_rng(devices=[]):
        shapes = {name: list(p.shape) for name, p in params_of(family.build()).items()}
    manifest = Manifest(config.to_dict(), shapes)

    def train(number: int, on_steps: Callable[[int], None]) -> tuple[Params, Table]:
        return train_cnns(config, *manifest.bounds(number), device=device, on_steps=on_steps)

    def work(number: int) -> int:
        return int(draw_cnns(config, *manifest.bounds(number))["steps"].sum())

    return build_shards(
        folder, manifest, train, work, shard=shard, device=device, progress=progress, unit="networks x steps"
    )


def parts_of(config: CnnZooConfig) -> tuple[Examples, Examples]:
    """Trainable examples, and the held-out ones that all networks are tested on.

    Raises:
        ValueError: The problem has fewer trainable examples.
    """
    train, *held = (config.make_problem().split(which) for which in ("train", "val", "test"))
    count = len(train) if config.trainable is None else config.trainable
    if count > len(train):
        raise ValueError(f"trainable: got {count}, expected at most the {len(train)} that the problem has")
    held = [train.take(slice(count, None)), *held]
    return (
        train.take(slice(count)),
        Examples(torch.cat([part.x for part in held]), torch.cat([part.y for part in held])),
    )


def draw_cnns(config: CnnZooConfig, start: int, stop: int) -> Table:
    """Hyper-parameters of the networks with index in ``[start, stop)``, whatever the recipe's count.

    Columns index, seed, split, learning_rate, init_scale, weight_decay, dropout, steps, train_size and
    epochs, [stop - start] each.
    """
    index = np.arange(start, stop)
    sources = [np.random.default_rng([config.seed, _NETWORK, int(i)]) for i in index]
    seeds = np.array([rng.integers(2**48) for rng in sources], dtype=np.int64)
    u = np.array([rng.random(1 + len(_RANGES)) for rng in sources]).reshape(-1, 1 + len(_RANGES))
    bounds = np.log([getattr(config, name) for name in _RANGES])  # [R, 2]
    drawn = dict(zip(_RANGES, np.exp(bounds[:, :1] + u.T[1:] * np.diff(bounds)), strict=True))
    whole = {name: np.rint(drawn[name]).astype(np.int64) for name in ("steps", "train_size")}
    low, high = config.dropout
    offset = np.random.default_rng([config.seed, _OFFSET]).random()
    split = even_split(index, config.val_fraction, config.test_fraction, offset)
    return {
        "index": index, "seed": seeds, "split": split, **drawn, **whole,
        "dropout": low + (high - low) * u[:, 0],
        "epochs": whole["steps"] * config.batch_size / whole["train_size"],
    }  # fmt: skip


def train_cnns(
    config: CnnZooConfig,
    start: int,
    stop: int,
    *,
    device: torch.device | str = "cpu",
    on_steps: Callable[[int], None] | None = None,
) -> tuple[Params, Table]:
    """Train the networks with index in ``[start, stop)`` at once, and test them on the held-out examples.

    ``on_steps`` is called now and then with the number of networks x steps that were done since. Returns
    params [n, ...] and the table, as `build_cnn_zoo` stores them.
    """
    table, family, objective = (
        draw_cnns(config, start, stop), config.make_family(), config.make_problem().objective
    )  # fmt: skip
    steps, done = table["steps"], 0
    data, held = (part.to(device) for part in parts_of(config))
    with torch.random.fork_rng(devices=[]):
        plain = family.build().to(device)
    module, dropouts = with_dropout(plain)
    params = init_many(family.build, table["seed"].tolist(), table["init_scale"].tolist())
    # Positions of every step's examples, [B, T, n]; zeros after a network's last step.
    chosen = torch.zeros(len(steps), int(steps.max()), config.batch_size, dtype=torch.int32, device=device)
    for row, seed, count, size in zip(chosen, table["seed"], steps, table["train_size"], strict=True):
        rng = np.random.default_rng([_EXAMPLES, int(seed)])
        own = rng.permutation(len(data))[:size].astype(np.int32)
        row[:count] = torch.from_numpy(own[rng.integers(size, size=(count, config.batch_size))])
    rates = torch.from_numpy(table["dropout"]).float().to(device)
    key = np.random.SeedSequence((config.seed, _DROPOUT, start)).generate_state(1, np.uint64)[0]
    generator = torch.Generator(device).manual_seed(int(key >> 1))

    def draw(step: int, networks: Tensor) -> Examples:
        for layer in dropouts:
            layer.rates, layer.generator = rates[networks], generator
        index = chosen[networks, step].long()
        return Examples(data.x[index], data.y[index], shared=False)

    def report(step: int, _: float, __: Params) -> None:
        nonlocal done
        total = int(np.minimum(steps, step).sum())
        if on_steps is not None:
            on_steps(total - done)
        done = total

    trained = train_many(
        module,
        {name: p.to(device) for name, p in params.items()},
        draw,
        objective,
        Stepper(
            "adam",
            torch.as_tensor(table["learning_rate"]),
            weight_decay=torch.as_tensor(table["weight_decay"]),
        ),
        steps=steps,
        every=_REPORTED,
        on_steps=report,
    ).params
    loss, score = evaluate_many(plain, trained, held, objective)
    results = {
        "finite": finite_networks(trained), "test_loss": loss, f"test_{objective.score_name}": score,
    }  # fmt: skip
    return trained, table | {name: column.cpu().numpy() for name, column in results.items()}


def with_dropout(network: nn.Module) -> tuple[nn.Module, list[NetworkDropout]]:
    """A chain with dropout behind the activation of every convolution, its other layers under their names.

    Raises:
        ValueError: The network is no ``nn.Sequential`` with convolutions.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    dropouts: list[NetworkDropout] = []
    after = False
    for name, layer in network.named_children():
        layers[name] = layer
        if after:
            layers[f"dropout{len(dropouts)}"] = NetworkDropout()
            dropouts.append(layers[f"dropout{len(dropouts)}"])  # type: ignore[arg-type]
        after = isinstance(layer, nn.Conv1d | nn.Conv2d)
    if not isinstance(network, nn.Sequential) or not dropouts:
        raise ValueError(
            f"family: got {type(network).__name__}, expected a chain of convolutions such as cnn"
        )
    return nn.Sequential(layers), dropouts
