"""The Tiny RNN Zoo: small GRUs that were trained to add, more or less well, to be judged by their weights.

After Zhou, Finn and Harrison (NeurIPS 2024, arXiv 2402.05232), who predict from the weights how often such a
network answers rightly. Hyper-parameters are drawn anew for every network, such that the success rates spread
over [0, 1]: learning rate, scale of the initialisation, length of the training, number of problems to train
on, weight decay. All networks of a shard file are trained at once; each has its own problems.

    amortopt zoo tiny-rnn --out zoos/tiny_rnn             # 10,000 networks
    amortopt zoo tiny-rnn --out zoos/small --count 500

Legend: B networks, N problems per step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.functional.networks import params_of
from amortopt.tasks.arithmetic import Arithmetic, ArithmeticRNN
from amortopt.zoo.build import build_shards
from amortopt.zoo.draw import Table, even_split
from amortopt.zoo.formats.many_grus import answers, loss_and_grads
from amortopt.zoo.store import Manifest

_NETWORK, _OFFSET = range(2)  # independent random streams of one zoo seed
_BETAS, _EPS = (0.9, 0.99), 1e-8
_REPORTED = 20  # steps between two reports of progress
_FAMILY, _PROBLEM = "arithmetic_rnn", "arithmetic"
_RANGES = ("learning_rate", "init_scale", "steps", "train_size", "weight_decay")


@dataclass(frozen=True)
class TinyRNNZooConfig:
    """Recipe of a Tiny RNN Zoo. Ranges are drawn from log-uniformly, anew for every network.

    Args:
        count: Number of networks.
        seed: Seed of the zoo.
        hidden: Units of a network's state.
        arithmetic: The problems, as [Arithmetic][amortopt.tasks.arithmetic.Arithmetic] takes them.
        learning_rate: Lowest and highest learning rate of AdamW.
        init_scale: Lowest and highest factor on the standard initialisation, uniform in ±1/sqrt(hidden).
        steps: Fewest and most training steps.
        train_size: Fewest and most problems that a network is trained on, drawn from those that are not held
            out.
        weight_decay: Lowest and highest weight decay of AdamW.
        batch_size: Problems per step.
        val_fraction: Share of networks for validation.
        test_fraction: Share of networks for testing.
        shard_size: Networks per shard file, which are also trained together.

    Raises:
        ValueError: If a value is out of its range; the message names it.
    """

    count: int = 10_000
    seed: int = 0
    hidden: int = 16
    arithmetic: Arithmetic = field(default_factory=Arithmetic)
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
        for name in _RANGES:
            low, high = getattr(self, name)
            if not (0 < low <= high < math.inf):
                raise ValueError(f"{name}: got [{low}, {high}], expected [low, high] with 0 < low <= high")
        for name in ("count", "hidden", "batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a whole number of at least 1")
        for name in ("seed", "val_fraction", "test_fraction"):
            if not (0 <= getattr(self, name) < math.inf):
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a finite number of at least 0")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction + test_fraction: got {self.val_fraction} + {self.test_fraction}, "
                "expected less than 1, so that networks are left to train on"
            )
        there = self.arithmetic.count - self.arithmetic.held_out
        if self.train_size[1] > there:
            raise ValueError(
                f"train_size: got {self.train_size}, expected at most the {there} problems that are not held "
                "out; hold out fewer, or make it smaller"
            )

    def build(self) -> ArithmeticRNN:
        """One network of the zoo's architecture, initialised from the global random state."""
        return ArithmeticRNN(self.hidden)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain json values; `from_dict` reads it."""
        rest = {key: value for key, value in asdict(self).items() if key not in ("arithmetic", "hidden")}
        own = {
            "problem": {"name": _PROBLEM} | self.arithmetic.to_config(),
            "family": {"name": _FAMILY, "hidden": self.hidden},
        }
        return json.loads(json.dumps(own | rest))


def from_dict(config: dict[str, Any]) -> TinyRNNZooConfig:
    """The recipe that a zoo was built by.

    Args:
        config: ``zoo.config`` of a zoo that [load_zoo][amortopt.zoo.load_zoo] read.

    Returns:
        The recipe.

    Raises:
        ValueError: If the zoo is no Tiny RNN Zoo.
    """
    problem, family = dict(config.get("problem", {})), dict(config.get("family", {}))
    if (problem.pop("name", None), family.pop("name", None)) != (_PROBLEM, _FAMILY):
        raise ValueError(
            f"config: got problem {config.get('problem')}, family {config.get('family')}, expected a Tiny "
            "RNN Zoo; build one with `amortopt zoo tiny-rnn`"
        )
    names = {f.name for f in fields(TinyRNNZooConfig)} & config.keys()
    rest: dict[str, Any] = {key: config[key] for key in names}
    rest |= {key: tuple(rest[key]) for key in names & set(_RANGES)}
    return TinyRNNZooConfig(arithmetic=Arithmetic(**problem), **family, **rest)


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
    ``success_rate``: the fraction of held-out problems that were answered without a single wrong digit.

    Args:
        config: Recipe.
        folder: Zoo folder; made if it is not there. Several processes may build into one.
        shard: ``"k/n"``: build the k-th of n parts of the zoo (k from 1), one part per process.
        device: Where to train.
        progress: Whether to show a progress bar.

    Returns:
        Numbers of the shard files that are still missing; empty if the zoo is complete.

    Raises:
        ValueError: If the folder holds something else.
        OSError: If the disk is full; finished shards are kept.
    """
    with torch.random.fork_rng(devices=[]):
        shapes = {name: list(p.shape) for name, p in params_of(config.build()).items()}
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

    Returns:
        Columns index, seed, split, learning_rate, init_scale, steps, train_size and weight_decay, each of
        shape [stop - start].
    """
    index = np.arange(start, stop)
    sources = [np.random.default_rng([config.seed, _NETWORK, int(i)]) for i in index]
    seeds = np.array([rng.integers(2**48) for rng in sources], dtype=np.int64)
    u = np.array([rng.random(len(_RANGES)) for rng in sources]).reshape(-1, len(_RANGES))
    bounds = np.log([getattr(config, name) for name in _RANGES])
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
    """Train the networks with index in ``[start, stop)`` at once, and let them answer the held-out problems.

    Args:
        config: Recipe.
        start: First index.
        stop: One past the last index.
        device: Where to train.
        on_steps: Called now and then with the number of networks x steps that were done since.

    Returns:
        Params [n, ...] and the table, as `build_tiny_rnn_zoo`
        stores them.
    """
    table = draw_networks(config, start, stop)
    draws = [
        draw_training(config, *row)
        for row in zip(
            *(table[k].tolist() for k in ("seed", "init_scale", "steps", "train_size")), strict=True
        )
    ]
    params = {name: torch.stack([own[name] for own, _ in draws]).to(device) for name in draws[0][0]}
    batches = [chosen for _, chosen in draws]
    params, losses = train_many_grus(
        params,
        config.arithmetic.train().to(device),
        batches,
        config.arithmetic.answer,
        learning_rate=torch.as_tensor(table["learning_rate"]),
        weight_decay=torch.as_tensor(table["weight_decay"]),
        on_steps=on_steps,
    )
    accuracy, success = answers(params, config.arithmetic.test().to(device), config.arithmetic.answer)
    finite = torch.stack([p.flatten(1).isfinite().all(1) for p in params.values()]).all(0)
    results = {"finite": finite, "train_loss": losses, "test_accuracy": accuracy, "success_rate": success}
    return params, table | {name: column.cpu().numpy() for name, column in results.items()}


def draw_training(
    config: TinyRNNZooConfig, seed: int, init_scale: float, steps: int, train_size: int
) -> tuple[Params, Tensor]:
    """What one network starts from, and which problems it reads; a function of its own seed alone.

    Returns:
        Initial params, and the numbers of the problems of every step, int32 [steps, N].
    """
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        shapes = {name: tuple(p.shape) for name, p in config.build().named_parameters()}
    bound = init_scale / config.hidden**0.5
    start = {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}
    there = config.arithmetic.count - config.arithmetic.held_out
    own = rng.permutation(there)[:train_size].astype(np.int32)
    chosen = own[rng.integers(train_size, size=(steps, config.batch_size))]
    return {name: torch.from_numpy(p) for name, p in start.items()}, torch.from_numpy(chosen)


def train_many_grus(
    params: Params,
    problems: Tensor,
    batches: list[Tensor],
    answer: int,
    *,
    learning_rate: Tensor,
    weight_decay: Tensor,
    on_steps: Callable[[int], None] | None = None,
) -> tuple[Params, Tensor]:
    """Train stacked networks by AdamW, each on its own problems and for its own number of steps.

    The update is torch.optim.AdamW's with betas 0.9 and 0.99. The networks are sorted by their number of
    steps, so that those that are done stand at the end and cost nothing.

    Args:
        params: Names of ``ArithmeticRNN`` -> [B, ...]; not modified.
        problems: Symbols int64 [M, T + 1], on the params' device.
        batches: Of each network, the numbers of the problems of every step, [steps, N].
        answer: Digits of an answer.
        learning_rate: [B].
        weight_decay: [B].
        on_steps: Called now and then with the number of networks x steps that were done since.

    Returns:
        Trained params, and each network's loss in nats [B], a running mean over some ten steps.
    """
    lasting = np.array([len(own) for own in batches])
    rank = np.argsort(-lasting, kind="stable")
    by_rank = torch.as_tensor(rank, device=problems.device)
    theta = {name: p[by_rank] for name, p in params.items()}
    first, second = ({name: torch.zeros_like(p) for name, p in theta.items()} for _ in range(2))
    rate = learning_rate.to(by_rank.device)[by_rank].float()
    kept = 1 - rate * weight_decay.to(by_rank.device)[by_rank].float()
    loss, done = torch.zeros(len(rank), device=by_rank.device), 0
    for step in range(int(lasting.max(initial=0))):
        active = int((lasting > step).sum())
        chosen = torch.stack([batches[b][step] for b in rank[:active]]).to(by_rank.device).long()
        view = {name: p[:active] for name, p in theta.items()}
        losses, grads = loss_and_grads(view, problems[chosen], answer)
        loss[:active].lerp_(losses.to(loss.dtype), 0.1 if step else 1.0)
        bias = [1 - beta ** (step + 1) for beta in _BETAS]
        for name, g in grads.items():
            p, shape = view[name], (-1, *[1] * (view[name].ndim - 1))
            m = first[name][:active].lerp_(g, 1 - _BETAS[0])
            v = second[name][:active].mul_(_BETAS[1]).addcmul_(g, g, value=1 - _BETAS[1])
            direction = m / (v / bias[1]).sqrt_().add_(_EPS)
            p.mul_(kept[:active].view(shape)).sub_(direction.mul_(rate[:active].view(shape) / bias[0]))
        done += active
        if on_steps is not None and (step + 1) % _REPORTED == 0:
            on_steps(done)
            done = 0
    if on_steps is not None:
        on_steps(done)
    unsort = torch.argsort(by_rank)
    return {name: p[unsort] for name, p in theta.items()}, loss[unsort]
