"""What meta-training reads: networks of a zoo, examples of a problem, and the draws of every step.

Legend: B networks, N examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from jsonargparse import ArgumentError  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets import L1Range, Metanet
from amortopt.system.numbers import check_counts
from amortopt.system.recipes import find_recipe
from amortopt.tasks import Examples, Family, Problem, answers_many
from amortopt.tasks.problem import Which
from amortopt.zoo import Zoo, ZooConfig, build_zoo, load_zoo
from amortopt.zoo.config import recipe_parser

_PLACES = {"root", "download"}
"""Arguments of problems that say where the data are, not what they are."""


@dataclass(frozen=True, eq=False)
class View:
    """Problems of B networks, seen in another way: new problems, with networks that need no training.

    Attributes:
        classes: Number that each class of a network's problem gets, [B, C]; None: its own.
        signs: Sign that the inputs of each problem get, [B] of 1 and -1; None: their own.
    """

    classes: Tensor | None = None
    signs: Tensor | None = None

    def of(self, examples: Examples) -> Examples:
        """Examples [B, N, ...] of the problems, as they are seen."""
        x, y = examples.x, examples.y
        if self.signs is not None:
            x = x * self.signs.view(-1, *[1] * (x.ndim - 1))
        if self.classes is not None:
            y = self.classes.gather(1, y)
        return replace(examples, x=x, y=y)

    def answers(self, module: nn.Module, params: Params, inputs: Tensor) -> Examples:
        """What networks [B, ...] would answer to inputs [N, ...] if they were trained on what is seen."""
        y = answers_many(module, params, inputs).y
        if self.signs is not None:
            opposite = answers_many(module, params, -inputs).y
            y = torch.where(self.signs.view(-1, *[1] * (y.ndim - 1)) > 0, y, opposite)
        if self.classes is not None:
            # Column classes[c] of the answers is what the network says of class c.
            y = y.gather(2, self.classes.argsort(1)[:, None].expand_as(y))
        return Examples(inputs.expand(len(y), *inputs.shape), y, shared=False)


@dataclass(frozen=True, eq=False)
class Batch:
    """What one meta step reads.

    Attributes:
        params: Base networks, [B, ...].
        examples: For the loss; shared by all networks, or per network where noise makes them differ.
        read: Another minibatch, for gradients that the metanet reads.
        l1: L1 strength per network [B]; None if the metanet reads none.
        view: How the examples differ from those that the networks were trained on; None: not at all.
    """

    params: Params
    examples: Examples
    read: Examples
    l1: Tensor | None
    view: View | None = None


@dataclass(frozen=True, eq=False)
class Held:
    """What a validation reads.

    Attributes:
        params: Base networks that training does not see, [n, ...].
        data: Name of a part of the data -> examples.
        read: Train examples, for gradients that the metanet reads.
        strengths: Suffix of what is logged -> L1 strength, for metanets that read it: "" is 0 (the lowest
            one if 0 is not trained), "_l1_low", "_l1_mid" and "_l1_high" are ends and middle of the range.
        starts: Epochs that networks were trained for on their problems -> these, [n, ...], for metanets that
            read functions; rising.
    """

    params: Params
    data: dict[str, Examples]
    read: Examples
    strengths: dict[str, float]
    starts: dict[int, Params] = field(default_factory=dict)


class DrawnDataModule(L.LightningDataModule, ABC):
    """Draws networks and examples for every step, as a function of seed, step and process alone.

    Attributes:
        l1_range: The L1 strengths that are drawn; None if none are.
    """

    l1_range: L1Range | None

    @abstractmethod
    def draw(self, step: int, rank: int = 0, *, trained: bool = False) -> Batch:
        """What meta step ``step``, from 0, of process ``rank`` reads.

        With ``trained``, networks that were trained on their problems, whose functions are worth reading.
        """

    @abstractmethod
    def probes(self, count: int) -> Tensor:
        """Training inputs [count, ...] at which functions are read.

        Raises:
            ValueError: There are no trained networks, or not so many inputs.
        """

    @abstractmethod
    def validation(self) -> Held:
        """What a validation reads."""

    def strengths(self) -> dict[str, float]:
        """The L1 strengths of a validation, see [Held][amortopt.meta.one_pass.data.Held]."""
        if self.l1_range is None:
            return {"": 0.0}
        points = self.l1_range.points(3)
        # A range of one strength has one point, which stands for all three.
        low, mid, high = points[0], points[len(points) // 2], points[-1]
        return {"": 0.0 if self.l1_range.zero else low, "_l1_low": low, "_l1_mid": mid, "_l1_high": high}

    def check_strengths(self, metanet: Metanet) -> None:
        """Raise a ``ValueError`` unless L1 strengths are drawn exactly if the metanet reads them."""
        if ("l1" in metanet.conditions) != (self.l1_range is not None):
            reads = f"the metanet reads the conditions {sorted(metanet.conditions)}"
            raise ValueError(
                f"data.l1: got {self.l1_range}, but {reads}; set both data.l1: [low, high] and l1 in "
                "model.metanet.conditions, or neither"
            )

    def train_dataloader(self) -> Iterator[int]:
        """Endless zeros: what a step reads is drawn from its number, in ``on_after_batch_transfer``."""
        return repeat(0)

    def val_dataloader(self) -> range:
        """One batch."""
        return range(1)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch | Held:
        """Called by the Trainer before every step."""
        trainer: Any = self.trainer
        if trainer.training:
            trained = trainer.lightning_module.stage().reading in ("function", "both")
            return self.draw(trainer.global_step, trainer.global_rank, trained=trained)
        return self.validation()


class ZooDataModule(DrawnDataModule):
    """Draws base networks and examples. A zoo that does not exist is built.

    Everything stays on the device. What a step draws is a function of seed, step and process alone, so a run
    that was resumed reads the same as one that was never interrupted.

    Args:
        zoo: Folder of the zoo.
        zoo_recipe: Recipe by which the zoo is built if it is missing or incomplete: a path from the current
            folder, or from one of ``recipe_roots``, or the name of a zoo recipe of the package.
        networks: Base networks per step and device, B.
        examples: Examples per step and device, N; all networks of a step read the same ones.
        input_noise: Standard deviation of Gaussian noise on the inputs, drawn for every network anew, in
            units of the standardised inputs.
        l1: Lowest and highest L1 strength, drawn log-uniformly per network; for metanets that read ``l1``.
            The draws of a step are stratified: its networks spread over the whole range.
        l1_zero: Share of networks with strength 0 instead, in [0, 1).
        val_networks: At most so many of the zoo's val networks are used for validation.
        seed: Seed of the draws.

    Attributes:
        recipe_roots: Further folders in which ``zoo_recipe`` is looked for.
        held: Split of the zoo -> its networks [n, ...], on the device once loaded.

    Raises:
        ValueError: If a value is out of its range; the message names it.
    """

    def __init__(
        self,
        zoo: str,
        zoo_recipe: str | None = None,
        *,
        networks: int = 16,
        examples: int = 256,
        input_noise: float = 0.0,
        l1: tuple[float, float] | None = None,
        l1_zero: float = 0.1,
        val_networks: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_counts(networks=networks, examples=examples, val_networks=val_networks)
        if not 0 <= input_noise < float("inf"):
            raise ValueError(f"input_noise: got {input_noise}, expected a finite standard deviation >= 0")
        if not 0 <= l1_zero < 1:
            raise ValueError(f"l1_zero: got {l1_zero}, expected a share in [0, 1)")
        self.l1_range = None if l1 is None else L1Range(*l1, zero=l1_zero > 0)
        self.folder, self.recipe = Path(zoo), zoo_recipe
        self.recipe_roots: Sequence[Path] = ()
        self.networks, self.examples, self.val_networks = networks, examples, val_networks
        self.input_noise, self.l1_zero, self.seed = input_noise, l1_zero, seed
        self.held: dict[Which, Params] = {}
        self._data: dict[Which, Examples] = {}
        self._generator: torch.Generator | None = None

    @cached_property
    def zoo(self) -> Zoo:
        """All networks of the zoo, on the CPU; it has to be built."""
        return load_zoo(self.folder)

    def prepare_data(self) -> None:
        """Build the zoo, as far as it is not built yet.

        Raises:
            FileNotFoundError: No zoo, and no recipe to build one.
            ValueError: If zoo or recipe are damaged, or do not belong together.
        """
        try:
            _ = self.zoo
        except FileNotFoundError:
            if self.recipe is None:
                raise
            path = find_recipe(self.recipe, "zoo", roots=self.recipe_roots, argument="zoo_recipe")
            try:
                options = recipe_parser().parse_args(["--config", str(path)])
            except ArgumentError as error:
                raise ValueError(f"zoo_recipe: {path}: {' '.join(str(error).split())}") from error
            config = ZooConfig(**{each.name: options[each.name] for each in fields(ZooConfig)})
            if self.trainer is not None:
                module: Any = self.trainer.lightning_module
                made = (config.make_problem(), config.make_family())
                _check_same((module.problem, module.family), made, f"the recipe {self.recipe} makes")
                # The data are read from where the module reads them.
                places = {key: value for key, value in module.problem.to_config().items() if key in _PLACES}
                config = replace(config, problem={**config.problem, **places})
            print(f"building the zoo {self.folder} of {config.count} networks by {self.recipe}")
            build_zoo(config, self.folder, progress=True)

    def check_fits(self, problem: Problem, family: Family) -> None:
        """Raise a ``ValueError`` unless the zoo's networks are of this problem and family."""
        stored = (self.zoo.problem, self.zoo.family)
        _check_same((problem, family), stored, f"the networks in {self.folder} have")

    def load(self, device: torch.device | str = "cpu", problem: Problem | None = None) -> None:
        """Put networks on a device, and the examples of ``problem``, by default the zoo's."""
        device = torch.device(device)
        problem = problem or self.zoo.problem
        self.held = {which: self.zoo.select(which).to(device).params for which in ("train", "val", "test")}
        self._data = {which: problem.split(which).to(device) for which in ("train", "val", "test")}
        self._generator = torch.Generator(device)

    def draw(self, step: int, rank: int = 0, *, trained: bool = False) -> Batch:
        """What meta step ``step`` of process ``rank`` reads; a function of these and the seed alone."""
        params, data, generator = self.held["train"], self._data["train"], self._generator
        assert generator is not None, "load() comes first"
        key = np.random.SeedSequence((self.seed, step, rank)).generate_state(1, np.uint64)[0]
        generator.manual_seed(int(key >> 1))
        device = generator.device
        count = len(next(iter(params.values())))
        rows = torch.randint(count, (self.networks,), generator=generator, device=device)
        examples = torch.randint(len(data), (2, self.examples), generator=generator, device=device)
        drawn = data.take(examples[0])
        if self.input_noise:
            shape = (self.networks, *drawn.x.shape)
            noise = torch.randn(shape, generator=generator, device=device, dtype=drawn.x.dtype)
            y = drawn.y.expand(self.networks, *drawn.y.shape)
            drawn = Examples(noise.mul_(self.input_noise).add_(drawn.x), y, shared=False)
        l1 = None
        if self.l1_range is not None:
            l1 = draw_strengths(self.l1_range, self.l1_zero, self.networks, generator)
        read = data.take(examples[1])
        return Batch({name: p[rows] for name, p in params.items()}, drawn, read, l1)

    def testing(self) -> Held:
        """What the end of a run is measured on: test networks and test data, reading as in validation."""
        validation = self.validation()
        return replace(validation, params=self.held["test"], data={"test": self._data["test"]})

    def seeds(self) -> dict[str, int]:
        """What was seeded with what, beside the metanet and the draws."""
        return {"zoo": self.zoo.config["seed"]}

    def probes(self, count: int) -> Tensor:
        """The first train inputs; the networks of a zoo are trained."""
        x = self._data["train"].x
        if count > len(x):
            raise ValueError(
                f"model.metanet.probes: got {count}, expected at most the {len(x)} train examples"
            )
        return x[:count]

    def validation(self, examples: int = 1000) -> Held:
        """What a validation reads: val networks, the val data, and the first of the train data."""
        params = {name: p[: self.val_networks] for name, p in self.held["val"].items()}
        train, val = self._data["train"], self._data["val"]
        train = train.take(slice(examples))
        return Held(params, {"val": val, "train": train}, train, self.strengths())

    def setup(self, stage: str) -> None:
        """Called by the Trainer in every process."""
        trainer: Any = self.trainer
        module = trainer.lightning_module
        self.check_fits(module.problem, module.family)
        self.check_strengths(module.metanet)
        self.load(trainer.strategy.root_device, module.problem)


def draw_strengths(l1_range: L1Range, zero: float, count: int, generator: torch.Generator) -> Tensor:
    r"""Draw one L1 strength per network, each 0 or log-uniform, all together spread evenly.

    Positions in [0, 1), one in each of ``count`` strata of equal length, are dealt to the networks at random;
    those below ``zero`` become 0, the others :math:`\mathrm{low}\,(\mathrm{high}/\mathrm{low})^t`, where t
    in [0, 1) is how far they lie between ``zero`` and 1.

    Args:
        l1_range: Lowest and highest strength.
        zero: Probability of 0, in [0, 1).
        count: Number of networks B.
        generator: Source of randomness; the result [B] is on its device.
    """
    device = generator.device
    stratum = torch.randperm(count, generator=generator, device=device)
    position = (stratum + torch.rand(count, generator=generator, device=device)) / count
    share = ((position - zero) / (1 - zero)).clamp(0, 1)
    low, high = np.log(l1_range.low), np.log(l1_range.high)
    return torch.where(position < zero, 0, torch.exp(low + (high - low) * share))


def _check_same(wanted: tuple[Problem, Family], got: tuple[Problem, Family], source: str) -> None:
    for key, one, other in zip(("problem", "family"), wanted, got, strict=True):
        expected, actual = one.to_config(), other.to_config()
        keys = expected.keys() if one.name == other.name else {"name"}
        if differing := [k for k in keys if k not in _PLACES and expected[k] != actual.get(k)]:
            texts = (", ".join(f"{k} {config[k]!r}" for k in differing) for config in (expected, actual))
            raise ValueError(
                f"{key}: the recipe says {next(texts)}, but {source} {next(texts)}; correct model.{key}, or "
                "choose another zoo"
            )
