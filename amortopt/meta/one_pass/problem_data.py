"""What meta-training over a family of problems reads: data that differ from network to network.

Legend: B networks, P problems of the pool, N examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from amortopt._types import Params
from amortopt.meta.one_pass.data import Batch, DrawnDataModule, Held, draw_strengths
from amortopt.meta.one_pass.starts import Starts
from amortopt.metanets import L1Range
from amortopt.system.extras import needed_for
from amortopt.tasks import CrossEntropy, Examples, Family, ProblemFamily, init_many
from amortopt.tasks.problem import Which


class ProblemDataModule(DrawnDataModule):
    """Draws problems of a family, a batch of each to read, other examples to be judged by, and networks.

    A pool of problems is drawn once and stays on the device. The networks are fresh ones, where a pass takes
    only their gauge; where it reads their functions, they are trained on their problems first. What a step
    draws is a function of seed, step and process.

    Args:
        pool: Problems P that are drawn for training; at most all of a family that has an end.
        networks: Problems per step and device, B, each with a network.
        read: Smallest and largest number N of examples that a pass reads; log-uniform, the same for all
            networks of a step.
        examples: Examples of each problem that the loss is taken on.
        input_noise: Standard deviation of Gaussian noise on the inputs that the loss is taken on.
        l1: Lowest and highest L1 strength, drawn log-uniformly per network; for metanets that read ``l1``.
        l1_zero: Share of networks with strength 0 instead, in [0, 1).
        val_networks: Problems for validation, and for the test at the end.
        val_read: Examples that a pass reads in validation and test.
        starts: How networks are trained whose functions are read, for metanets that read functions.
        seed: Seed of the draws.

    Raises:
        ValueError: If a value is out of its range; the message names it.
    """

    def __init__(
        self,
        pool: int = 4096,
        *,
        networks: int = 32,
        read: tuple[int, int] = (50, 1000),
        examples: int = 256,
        input_noise: float = 0.0,
        l1: tuple[float, float] | None = None,
        l1_zero: float = 0.1,
        val_networks: int = 64,
        val_read: int = 1000,
        starts: Starts | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._classes: int | None = None
        counts = {
            "pool": pool,
            "networks": networks,
            "examples": examples,
            "val_networks": val_networks,
            "val_read": val_read,
        }
        for key, value in counts.items():
            if value < 1:
                raise ValueError(f"{key}: got {value}, expected a whole number of at least 1")
        if not 1 <= read[0] <= read[1]:
            raise ValueError(
                f"read: got {list(read)}, expected [smallest, largest] with 1 <= smallest <= largest"
            )
        if not 0 <= input_noise < float("inf"):
            raise ValueError(f"input_noise: got {input_noise}, expected a finite standard deviation >= 0")
        if not 0 <= l1_zero < 1:
            raise ValueError(f"l1_zero: got {l1_zero}, expected a share in [0, 1)")
        self.l1_range = None if l1 is None else L1Range(*l1, zero=l1_zero > 0)
        self.pool, self.networks, self.read, self.examples = pool, networks, read, examples
        self.input_noise, self.l1_zero, self.seed = input_noise, l1_zero, seed
        self.val_networks, self.val_read = val_networks, val_read
        self.recipe_roots: Sequence[Any] = ()
        self.starts = starts or Starts()
        self.starts.check()
        if self.starts.problems > pool:
            raise ValueError(
                f"starts.problems: got {self.starts.problems}, expected at most the pool of {pool}"
            )
        self._trained: Params = {}
        self._problems: tuple[Examples, Examples] | None = None
        self._held: dict[Which, Held] = {}
        self._params: Params = {}
        self._generator: torch.Generator | None = None

    def load(self, problems: ProblemFamily, family: Family, device: torch.device | str = "cpu") -> None:
        """Draw the pool, and the problems that are held out.

        Args:
            problems: Where problems come from.
            family: What the networks are.
            device: Where everything is put.

        Raises:
            ValueError: If family and problems have other input shapes.
        """
        if family.input_shape != problems.input_shape:
            raise ValueError(
                f"family: {family} takes inputs of shape {family.input_shape}, but {problems} has "
                f"{problems.input_shape}; change one of the two"
            )
        if self.starts.permute_classes:
            objective = problems.objective
            if not isinstance(objective, CrossEntropy) or objective.target_shape:
                raise ValueError(
                    f"data.starts.permute_classes: got True, expected false: {problems} has no "
                    f"classes ({objective})"
                )
            self._classes = objective.num_classes
        device = torch.device(device)
        count = _at_most(self.pool, problems.count("train"))
        pair = problems.draw("train", 0, count, self.read[1], self.examples)
        self._problems = (pair[0].to(device), pair[1].to(device))
        seeds = range(self.seed, self.seed + 256)
        self._params = {name: p.to(device) for name, p in init_many(family.build, seeds).items()}
        if self.starts.problems:
            self._trained = self._train_starts(
                problems, family, "train", _at_most(self.starts.problems, count)
            )
        for which in ("val", "test"):
            held = _at_most(self.val_networks, problems.count(which))
            read, judged = problems.draw(which, 0, held, self.val_read, self.val_read)
            rows = torch.arange(held, device=device) % 256
            params = {name: p[rows] for name, p in self._params.items()}
            starts = None
            if self.starts.problems:
                # Those that were trained for longest.
                starts = self._train_starts(problems, family, which, held)
                starts = {name: p[:, -1] for name, p in starts.items()}
            data = {which: judged.to(device)}
            self._held[which] = Held(params, data, read.to(device), self.strengths(), starts)
        self._generator = torch.Generator(device)

    def _train_starts(self, problems: ProblemFamily, family: Family, which: Which, count: int) -> Params:
        """Trained networks [count, epochs, ...], with a progress bar."""
        assert self._problems is not None
        with needed_for("meta-training", extra="train"):
            from rich.progress import Progress
        with Progress(transient=True) as progress:
            bar = progress.add_task(f"Networks on {which} problems", total=count)
            return self.starts.train(
                problems,
                family,
                which,
                seed=self.seed,
                count=count,
                device=self._problems[0].x.device,
                on_part=lambda done: progress.update(bar, completed=done),
            )

    def probes(self, count: int) -> torch.Tensor:
        """Inputs of training problems, as many of each as it takes."""
        assert self._problems is not None, "load() comes first"
        if not self._trained:
            raise ValueError(
                "data.starts.problems: got 0, but the metanet reads functions; set how many problems get a "
                "trained network, or leave 'function' out of model.metanet.conditions"
            )
        x = self._problems[0].x  # [P, N, ...]
        each = min(x.shape[1], -(-count // len(x)))
        chosen = x[: -(-count // each), :each].flatten(0, 1)[:count]
        if len(chosen) < count:
            raise ValueError(
                f"model.metanet.probes: got {count}, expected at most the {len(chosen)} in the pool"
            )
        return chosen

    def draw(self, step: int, rank: int = 0, *, trained: bool = False) -> Batch:
        """What a meta step reads; the same for the same seed, step, rank and kind of networks."""
        assert self._problems is not None and self._generator is not None, "load() comes first"
        generator, (read, judged) = self._generator, self._problems
        key = np.random.SeedSequence((self.seed, step, rank)).generate_state(1, np.uint64)[0]
        generator.manual_seed(int(key >> 1))
        device = generator.device

        def below(limit: int, size: int) -> torch.Tensor:
            return torch.randint(limit, (size,), generator=generator, device=device)

        low, high = (float(np.log(limit)) for limit in self.read)
        share = float(torch.rand((), generator=generator, device=device))
        count = min(len(read), round(float(np.exp(low + (high - low) * share))))
        which = below(len(next(iter(self._trained.values()))) if trained else len(read.x), self.networks)
        order = torch.randperm(len(read), generator=generator, device=device)[:count]
        if trained:
            at = below(len(self.starts.epochs), self.networks)
            params = {name: p[which, at] for name, p in self._trained.items()}
        else:
            params = {name: p[below(len(p), self.networks)] for name, p in self._params.items()}
        l1 = None
        if self.l1_range is not None:
            l1 = draw_strengths(self.l1_range, self.l1_zero, self.networks, generator)
        target = judged.of(which).noisy(self.input_noise, generator)
        some, classes = read.of(which).take(order), None
        if trained and self._classes is not None:
            shape = (self.networks, self._classes)
            classes = torch.rand(shape, generator=generator, device=device).argsort(1)
            some, target = (replace(each, y=classes.gather(1, each.y)) for each in (some, target))
        return Batch(params, target, some, l1, classes)

    def validation(self) -> Held:
        """What a validation reads: problems that no step has."""
        return self._held["val"]

    def testing(self) -> Held:
        """What the end of a run is measured on: problems that neither training nor validation has."""
        return self._held["test"]

    def seeds(self) -> dict[str, int]:
        """What was seeded with what, beside the metanet and the draws."""
        return {"networks": self.seed}

    def setup(self, stage: str) -> None:
        """Called by the Trainer in every process."""
        trainer: Any = self.trainer
        module = trainer.lightning_module
        self.check_strengths(module.metanet)
        self.load(module.problem, module.family, trainer.strategy.root_device)


def _at_most(wanted: int, available: int | None) -> int:
    return wanted if available is None else min(wanted, available)
