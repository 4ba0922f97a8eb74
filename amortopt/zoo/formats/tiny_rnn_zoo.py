"""The Tiny RNN Zoo: small GRUs that were trained to add, more or less well, to be judged by their weights.

After Zhou, Finn and Harrison (NeurIPS 2024, arXiv 2402.05232), who predict from the weights how often such a
network answers rightly. Hyper-parameters are drawn anew for every network, such that the success rates spread
over [0, 1]: learning rate, scale of the initialisation, length of the training, number of texts to train on,
weight decay. All networks of a shard file are trained at once; each has its own texts.

    amortopt zoo tiny-rnn --out zoos/tiny_rnn             # 10,000 networks
    amortopt zoo tiny-rnn --out zoos/small --count 500

Legend: B networks, n texts per step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import apply_many, finite_networks, params_of
from amortopt.system.devices import check_device
from amortopt.tasks import Arithmetic, ArithmeticRnn, Examples
from amortopt.training import Stepper, train_many
from amortopt.zoo.build import build_shards
from amortopt.zoo.config import Table, check_recipe, even_split
from amortopt.zoo.store import Manifest

_NETWORK, _OFFSET = range(2)  # independent random streams of one zoo seed
_REPORTED = 20  # steps between two reports of progress
_RECENT = 10  # steps of the training loss
_RANGES = ("learning_rate", "init_scale", "steps", "train_size", "weight_decay")
_NAMES = ("arithmetic", "arithmetic_rnn")


@dataclass(frozen=True)
class TinyRNNZooConfig:
    """Recipe of a Tiny RNN Zoo. Ranges are drawn from log-uniformly, anew for every network.

    Args:
        count: Number of networks.
        seed: Seed of the zoo.
        hidden: Units of a network's state.
        terms: How many numbers are added.
        digits: Digits of each of them.
        held_out: Texts that no network is trained on.
        order_seed: Seed of the order of the texts, by which some are held out.
        learning_rate: Lowest and highest learning rate of AdamW.
        init_scale: Lowest and highest factor on the standard initialisation, uniform in ±1/sqrt(hidden).
        steps: Fewest and most training steps.
        train_size: Fewest and most texts that a network is trained on, drawn from those that are not held
            out.
        weight_decay: Lowest and highest weight decay of AdamW.
        batch_size: Texts per step.
        val_fraction: Share of networks for validation.
        test_fraction: Share of networks for testing.
        shard_size: Networks per shard file, which are also trained together.

    Raises:
        ValueError: If a value is out of its range; the message names it.
    """

    count: int = 10_000
    seed: int = 0
    hidden: int = 16
    terms: int = 3
    digits: int = 1
    held_out: int = 300
    order_seed: int = 0
    learning_rate: tuple[float, float] = (0.003, 0.05)
    init_scale: tuple[float, float] = (0.3, 3.0)
    steps: tuple[int, int] = (100, 1600)
    train_size: tuple[int, int] = (100, 700)
    weight_decay: tuple[float, float] = (0.001, 1.0)
    batch_size: int = 32
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    shard_size: int = 250

    def __post_init__(self) -> None:
        check_recipe(self, _RANGES, ("count", "hidden", "batch_size", "shard_size"), ("seed",))
        trainable = len(self.problem.split("train"))
        if self.train_size[1] > trainable:
            raise ValueError(
                f"train_size: got {self.train_size}, expected at most the {trainable} texts that are not "
                "held out; hold out fewer, or make it smaller"
            )

    @property
    def problem(self) -> Arithmetic:
        """The sums that the networks learn."""
        return Arithmetic(self.terms, self.digits, self.held_out, self.order_seed)

    @property
    def family(self) -> ArithmeticRnn:
        """The networks' architecture."""
        return ArithmeticRnn(self.hidden, self.problem.input_shape, self.problem.answer)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain json values, which `from_dict` reads."""
        described = {"problem": self.problem.to_config(), "family": self.family.to_config()}
        inside = ("hidden", "terms", "digits", "held_out", "order_seed")
        rest = {key: value for key, value in asdict(self).items() if key not in inside}
        return json.loads(json.dumps(described | rest))


def from_dict(config: dict[str, Any]) -> TinyRNNZooConfig:
    """The recipe of a zoo that [load_zoo][amortopt.zoo.load_zoo] read, from its ``config``.

    Raises:
        ValueError: If the zoo is no Tiny RNN Zoo.
    """
    problem, family = config.get("problem", {}), config.get("family", {})
    if (problem.get("name"), family.get("name")) != _NAMES:
        raise ValueError(
            f"config: got problem {problem}, family {family}, expected a Tiny RNN Zoo; build one with "
            "`amortopt zoo tiny-rnn`"
        )
    flat = config | family | problem | {"seed": config["seed"], "order_seed": problem["seed"]}
    values: dict[str, Any] = {f.name: flat[f.name] for f in fields(TinyRNNZooConfig)}
    values.update({name: tuple(values[name]) for name in _RANGES})
    return TinyRNNZooConfig(**values)


def build_tiny_rnn_zoo(
    config: TinyRNNZooConfig,
    folder: str | Path,
    *,
    shard: str = "1/1",
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> list[int]:
    """Train the networks of a recipe and store them in a folder, as far as they are not there yet.

    [load_zoo][amortopt.zoo.load_zoo] reads it. Its table has the columns index, seed, split, the drawn
    hyper-parameters, finite, train_loss (nats, of the last steps), ``test_accuracy`` (of the digits) and
    ``success_rate``: the fraction of held-out texts that were answered without a single wrong digit.
    Arguments, value and errors are those of [build_zoo][amortopt.zoo.build_zoo].
    """
    device = check_device(device)
    with torch.random.fork_rng(devices=[]):
        shapes = {name: list(p.shape) for name, p in params_of(config.family.build()).items()}
    manifest = Manifest(config.to_dict(), shapes)

    def train(number: int, on_steps: Callable[[int], None]) -> tuple[Params, Table]:
        return train_networks(config, *manifest.bounds(number), device=device, on_steps=on_steps)

    def work(number: int) -> int:
        return int(draw_networks(config, *manifest.bounds(number))["steps"].sum())

    return build_shards(
        folder, manifest, train, work, shard=shard, device=device, progress=progress, unit="networks x steps"
    )


def draw_networks(config: TinyRNNZooConfig, start: int, stop: int) -> Table:
    """Hyper-parameters of the networks with index in ``[start, stop)``, whatever the recipe's count.

    Columns index, seed, split, learning_rate, init_scale, steps, train_size, weight_decay [stop - start].
    """
    index = np.arange(start, stop)
    sources = [np.random.default_rng([config.seed, _NETWORK, int(i)]) for i in index]
    seeds = np.array([rng.integers(2**48) for rng in sources], dtype=np.int64)
    u = np.array([rng.random(len(_RANGES)) for rng in sources]).reshape(-1, len(_RANGES))
    bounds = np.log([getattr(config, name) for name in _RANGES])  # [R, 2]
    drawn = dict(zip(_RANGES, np.exp(bounds[:, :1] + u.T * np.diff(bounds)), strict=True))
    whole = {name: np.rint(drawn[name]).astype(np.int64) for name in ("steps", "train_size")}
    offset = np.random.default_rng([config.seed, _OFFSET]).random()
    split = even_split(index, config.val_fraction, config.test_fraction, offset)
    return {"index": index, "seed": seeds, "split": split} | drawn | whole


def train_networks(
    config: TinyRNNZooConfig,
    start: int,
    stop: int,
    *,
    device: torch.device | str = "cpu",
    on_steps: Callable[[int], None] | None = None,
) -> tuple[Params, Table]:
    """Train the networks with index in ``[start, stop)`` at once, and test them on the held-out texts.

    ``on_steps`` is called now and then with the number of networks x steps that were done since. Returns
    params [n, ...] and the table, as `build_tiny_rnn_zoo` stores them.
    """
    table = draw_networks(config, start, stop)
    steps, trainable = table["steps"], len(config.problem.split("train"))
    with torch.random.fork_rng(devices=[]):
        module = config.family.build().to(device)
    drawn = [
        draw_training(config, module, trainable, *row)
        for row in zip(
            *(table[k].tolist() for k in ("seed", "init_scale", "steps", "train_size")), strict=True
        )
    ]
    params = {name: torch.stack([one[name] for one, _ in drawn]).to(device) for name in drawn[0][0]}
    # Positions of every step's texts, [B, T, n]; zeros after a network's last step.
    chosen = torch.zeros(len(drawn), int(steps.max()), config.batch_size, dtype=torch.int32, device=device)
    for row, (_, texts) in zip(chosen, drawn, strict=True):
        row[: len(texts)] = torch.from_numpy(texts)
    data, done = config.problem.split("train").to(device), 0

    def report(step: int, _: float, __: Params) -> None:
        nonlocal done
        total = int(np.minimum(steps, step).sum())
        if on_steps is not None:
            on_steps(total - done)
        done = total

    trained = train_many(
        module,
        params,
        lambda step, networks: data.take(chosen[networks, step].long()),
        config.problem.objective,
        Stepper(
            "adamw",
            torch.as_tensor(table["learning_rate"]),
            betas=(0.9, 0.99),
            weight_decay=torch.as_tensor(table["weight_decay"]),
        ),
        steps=steps,
        every=_REPORTED,
        on_steps=report,
    )
    age = torch.from_numpy(steps).to(device) - torch.arange(len(trained.losses), device=device).unsqueeze(1)
    recent = (age > 0) & (age <= _RECENT)
    accuracy, success = answers(module, trained.params, config.problem.split("test").to(device))
    results = {
        "finite": finite_networks(trained.params),
        "train_loss": torch.where(recent, trained.losses, 0).sum(0) / recent.sum(0),
        "test_accuracy": accuracy,
        "success_rate": success,
    }
    return trained.params, table | {name: column.cpu().numpy() for name, column in results.items()}


def draw_training(
    config: TinyRNNZooConfig,
    module: nn.Module,
    trainable: int,
    seed: int,
    init_scale: float,
    steps: int,
    train_size: int,
) -> tuple[Params, np.ndarray]:
    """Initial params of a network, and the numbers of every step's texts [T, n], from its seed alone."""
    rng = np.random.default_rng(seed)
    bound = init_scale / config.hidden**0.5
    start = {
        name: torch.from_numpy(rng.uniform(-bound, bound, tuple(p.shape)).astype(np.float32))
        for name, p in module.named_parameters()
    }
    numbers = rng.permutation(trainable)[:train_size].astype(np.int32)
    return start, numbers[rng.integers(train_size, size=(steps, config.batch_size))]


@torch.no_grad()
def answers(module: nn.Module, params: Params, texts: Examples, *, chunk: int = 100) -> tuple[Tensor, Tensor]:
    """How well each network adds.

    A network reads the true digits before the one that it predicts. For whole answers that is the same as
    reading its own predictions: the first wrong digit makes the answer wrong either way.

    Args:
        module: Architecture; its own params are not read.
        params: [B, ...].
        texts: The same for all networks.
        chunk: Texts per pass, which bounds the memory.

    Returns:
        Fraction of digits that are right and fraction of texts whose digits are all right, both [B] in
        [0, 1], float64; where logits are not finite, nothing is right.
    """
    hits = []
    for part in texts.chunks(chunk):
        logits = apply_many(module, params, part.x)
        hits.append((logits.argmax(-1) == part.y) & logits.isfinite().all(-1))
    right = torch.cat(hits, 1)  # [B, N, A]
    return right.double().mean((1, 2)), right.all(2).double().mean(1)
