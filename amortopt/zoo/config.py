"""Recipes of zoos, and what they draw for every network.

A draw is a function of the zoo's seed and the network's index, never of a generator that is handed on. So no
result depends on which process builds what, and the first n networks of a recipe are the same whatever its
count is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from torch import Tensor

from amortopt.system.numbers import check_counts
from amortopt.tasks import Family, Problem, make_family, make_problem
from amortopt.training import Stepper

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser  # pyright: ignore[reportPrivateImportUsage]

Made = TypeVar("Made", Family, Problem)
Table: TypeAlias = dict[str, np.ndarray]  # column name -> [n]

_NETWORK, _OFFSET = 0, 3  # independent random streams of one zoo seed; 1 and 2 are the training's
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class ZooConfig:
    """Recipe of a zoo. Hyper-parameters given as a range are drawn anew for every base network.

    Args:
        problem: ``name`` of the problem and its own arguments, as ``make_problem`` takes them.
        family: ``name`` of the family and its own arguments, as ``make_family`` takes them.
        count: Number of base networks.
        seed: Seed of the zoo: of the draws per network, the order of the examples and the input noise.
        learning_rate: Lowest and highest learning rate, drawn log-uniformly.
        init_scale: Lowest and highest factor on the module's own initialisation, drawn log-uniformly.
        epochs: Training lengths to draw from, all equally likely: a list, or n for 0, 1, ..., n.
        batch_size: Examples per SGD step.
        momentum: Momentum of SGD.
        input_noise: Standard deviation of Gaussian noise added to every input, in units of the input's own.
        l1: Factor of the sum of absolute params, added to the loss.
        weight_decay: Factor of params, added to the gradient.
        val_fraction: Share of networks for validation.
        test_fraction: Share of networks for testing.
        shard_size: Networks per shard file, which are also trained together.

    Raises:
        ValueError: If a value is out of its range; the message names it.
    """

    problem: dict[str, Any] = field(default_factory=lambda: {"name": "mnist1d"})
    family: dict[str, Any] = field(default_factory=lambda: {"name": "mlp", "activation": "tanh"})
    count: int = 1024
    seed: int = 0
    learning_rate: tuple[float, float] = (0.001, 0.1)
    init_scale: tuple[float, float] = (0.8, 1.25)
    epochs: int | list[int] = 30
    batch_size: int = 128
    momentum: float = 0.9
    input_noise: float = 0.0
    l1: float = 0.0
    weight_decay: float = 0.0
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    shard_size: int = 256

    def __post_init__(self) -> None:
        for name in ("problem", "family"):
            if not isinstance(getattr(self, name).get("name"), str):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected a mapping with a `name`")
        check_recipe(
            self,
            ("learning_rate", "init_scale"),
            ("count", "batch_size", "shard_size"),
            ("seed", "input_noise", "l1", "weight_decay"),
        )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: got {self.momentum}, expected a number in [0, 1)")
        if not self.epoch_choices() or min(self.epoch_choices()) < 0:
            raise ValueError(f"epochs: got {self.epochs}, expected n >= 0 or a list of such numbers")

    def epoch_choices(self) -> list[int]:
        """Training lengths to draw from, in epochs."""
        return list(range(self.epochs + 1)) if isinstance(self.epochs, int) else list(self.epochs)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain json values, with the defaults of problem and family filled in."""
        resolved = {"problem": self.make_problem().to_config(), "family": self.make_family().to_config()}
        return json.loads(json.dumps(asdict(self) | resolved))

    def make_problem(self) -> Problem:
        """The problem named by the recipe; a ``ValueError`` if it, or one of its arguments, is unknown."""
        return make_of_recipe("problem", make_problem, self.problem)

    def make_family(self) -> Family:
        """The family named by the recipe; a ``ValueError`` if it, or one of its arguments, is unknown."""
        return make_of_recipe("family", make_family, self.family)

    def stepper(self, learning_rate: Tensor) -> Stepper:
        """SGD as the recipe says, with one learning rate per network [B]."""
        return Stepper(
            "sgd", learning_rate, momentum=self.momentum, weight_decay=self.weight_decay, l1=self.l1
        )


def check_recipe(config: Any, ranges: Iterable[str], counts: Iterable[str], amounts: Iterable[str]) -> None:
    """Raise a ``ValueError`` that names the field unless a recipe's values are in their ranges.

    Those are 0 < low <= high for the fields ``ranges``, at least 1 for ``counts``, at least 0 and finite for
    ``amounts``; and the shares for validation and testing have to leave something to train on.
    """
    for name in ranges:
        low, high = getattr(config, name)
        if not (0 < low <= high < math.inf):
            raise ValueError(f"{name}: got [{low}, {high}], expected [low, high] with 0 < low <= high")
    check_counts(**{name: getattr(config, name) for name in counts})
    for name in (*amounts, "val_fraction", "test_fraction"):
        if not (0 <= getattr(config, name) < math.inf):
            raise ValueError(f"{name}: got {getattr(config, name)}, expected a finite number of at least 0")
    if config.val_fraction + config.test_fraction >= 1:
        raise ValueError(
            f"val_fraction + test_fraction: got {config.val_fraction} + {config.test_fraction}, "
            "expected less than 1, so that networks are left to train on"
        )


def make_of_recipe(key: str, make: Callable[..., Made], arguments: dict[str, Any]) -> Made:
    """What a recipe's mapping describes; a ``ValueError`` that names its key if there is no such thing."""
    try:
        return make(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: got {arguments}, but {error}; correct this key of the recipe") from error


def differing_keys(stored: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """Where two stored recipes differ, as lines ``key: stored value, not wanted value``."""
    lines: list[str] = []
    for key in sorted(stored.keys() | wanted.keys()):
        old, new = stored.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differing_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} there, {new!r} asked for")
    return lines


def draw_table(config: ZooConfig, start: int = 0, stop: int | None = None) -> Table:
    """Hyper-parameters of the networks with index in ``[start, stop)``.

    ``stop`` is by default the recipe's count. Columns index, seed, learning_rate, init_scale, epochs and
    split, each of shape [stop - start].
    """
    index = np.arange(start, config.count if stop is None else stop)
    choices = np.array(config.epoch_choices())
    seeds, uniforms = [], []
    for i in index:
        rng = np.random.default_rng([config.seed, _NETWORK, int(i)])
        seeds.append(rng.integers(2**48))
        uniforms.append(rng.random(3))
    u = np.array(uniforms).reshape(-1, 3)  # [n, 3], uniform in [0, 1)

    def log_uniform(column: int, bounds: tuple[float, float]) -> np.ndarray:
        low, high = np.log(bounds[0]), np.log(bounds[1])
        return np.exp(low + u[:, column] * (high - low))

    return {
        "index": index,
        "seed": np.array(seeds, dtype=np.int64),
        "learning_rate": log_uniform(0, config.learning_rate),
        "init_scale": log_uniform(1, config.init_scale),
        "epochs": choices[(u[:, 2] * len(choices)).astype(np.int64)],
        "split": draw_split(config, index),
    }


def draw_split(config: ZooConfig, index: np.ndarray) -> np.ndarray:
    """Split of the networks: "train", "val" or "test" per index, shape [n].

    The fractions hold for any count, and a network keeps its split when the count grows.
    """
    offset = np.random.default_rng([config.seed, _OFFSET]).random()
    return even_split(index, config.val_fraction, config.test_fraction, offset)


def even_split(
    index: np.ndarray, val_fraction: float, test_fraction: float, offset: float = 0.0
) -> np.ndarray:
    """Split of networks by their index [n]: "train", "val" or "test", shape [n].

    A golden-ratio sequence, from ``offset`` in [0, 1), is spread evenly over [0, 1) at every length.
    """
    u = (offset + _GOLDEN * index) % 1.0  # [n], spread evenly over [0, 1)
    return np.select([u < val_fraction, u < val_fraction + test_fraction], ["val", "test"], default="train")


def recipe_parser(config: type = ZooConfig, command: str = "build") -> ArgumentParser:
    """Parser of a zoo's recipe for `amortopt zoo COMMAND`; every argument of ``config`` is an option."""
    from jsonargparse import ActionConfigFile, ArgumentParser  # pyright: ignore[reportPrivateImportUsage]

    parser = ArgumentParser(
        prog=f"amortopt zoo {command}",
        description="Train many base networks at once and store them. "
        "Finished parts are kept: run it again after an interruption.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="Recipe: a YAML file, or the name of one that comes with the package.",
    )
    parser.add_class_arguments(config)
    return parser
