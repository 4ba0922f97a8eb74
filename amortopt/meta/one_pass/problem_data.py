"""What meta-training over a family of problems reads: data that differ from network to network.

Legend: B networks, P problems of the pool, N examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from amortopt._types import Params
from amortopt.meta.one_pass.data import Batch, DrawnDataModule, Held, View, draw_strengths
from amortopt.meta.one_pass.starts import Starts
from amortopt.metanets import L1Range
from amortopt.system.extras import needed_for
from amortopt.system.numbers import check_counts
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
        redraw: Whether every step draws anew which of a problem's ``read[1] + examples`` examples are read,
            and which of the others the loss is taken on. Otherwise the loss is always taken on the same ones,
            which a long run learns by heart.
        flip_inputs: Whether half of the drawn problems have their inputs with the other sign, which makes two
            problems, and two trained networks, of each; where -x is as good a problem of the family as x.
        input_noise: Standard deviation of Gaussian noise on the inputs that the loss is taken on.
        l1: Lowest and highest L1 strength, drawn log-uniformly per network; for metanets that read ``l1``.
        l1_zero: Share of networks with strength 0 instead, in [0, 1).
        val_networks: Problems for validation, and for the test at the end.
        val_read: Examples that a pass reads in validation and test.
        starts: How networks are trained whose functions are read, for metanets that read functions. Of
            several, the first takes the first problems of the pool, the next one the problems after them;
            every kept number of epochs of each is drawn equally often.
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
        redraw: bool = False,
        flip_inputs: bool = False,
        input_noise: float = 0.0,
        l1: tuple[float, float] | None = None,
        l1_zero: float = 0.1,
        val_networks: int = 64,
        val_read: int = 1000,
        starts: Starts | list[Starts] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._classes: int | None = None
        check_counts(
            pool=pool, networks=networks, examples=examples, val_networks=val_networks, val_read=val_read
        )
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
        self.redraw, self.flip_inputs = redraw, flip_inputs
        self.starts = [starts] if isinstance(starts, Starts) else starts or []
        for each in self.starts:
            each.check()
        if (total := sum(each.problems for each in self.starts)) > pool:
            raise ValueError(f"starts.problems: got {total}, expected at most the pool of {pool}")
        if len({each.permute_classes for each in self.starts}) > 1:
            raise ValueError("starts.permute_classes: got both true and false, expected one of them for all")
        self._trained: Trained | None = None
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
        if any(each.permute_classes for each in self.starts):
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
        if self.redraw:
            # One pool of examples; with a mask, which examples are padding would differ by problem.
            if any(each.mask is not None for each in pair):
                raise ValueError(
                    "data.redraw: got True, expected false: problems have other numbers of examples"
                )
            x, y = (torch.cat([getattr(each, key) for each in pair], 1) for key in ("x", "y"))
            pair = (Examples(x, y, shared=False), pair[1])
        self._problems = (pair[0].to(device), pair[1].to(device))
        seeds = range(self.seed, self.seed + 256)
        self._params = {name: p.to(device) for name, p in init_many(family.build, seeds).items()}
        if any(each.problems for each in self.starts):
            self._trained = self._train_starts(problems, family, count)
        for which in ("val", "test"):
            held = _at_most(self.val_networks, problems.count(which))
            read, judged = problems.draw(which, 0, held, self.val_read, self.val_read)
            rows = torch.arange(held, device=device) % 256
            params = {name: p[rows] for name, p in self._params.items()}
            starts: dict[int, Params] = {}
            for each in self.starts if which == "val" else ():
                # Those that were trained for longest.
                kept = self._trained_by(each, problems, family, which, 0, held)
                starts[each.epochs[-1]] = {name: p[:, -1] for name, p in kept.items()}
            starts = dict(sorted(starts.items()))
            data = {which: judged.to(device)}
            self._held[which] = Held(params, data, read.to(device), self.strengths(), starts)
        self._generator = torch.Generator(device)

    def _train_starts(self, problems: ProblemFamily, family: Family, pool: int) -> Trained:
        """Networks trained on problems of the pool, as many as there are."""
        parts: list[Params] = []
        numbers: list[torch.Tensor] = []
        first = 0
        for each in self.starts:
            count = min(each.problems, pool - first)
            if count > 0:
                kept = self._trained_by(each, problems, family, "train", first, count)
                parts += [{name: p[:, e] for name, p in kept.items()} for e in range(len(each.epochs))]
                numbers += [torch.arange(first, first + count)] * len(each.epochs)
                first += count
        assert self._problems is not None
        device = self._problems[0].x.device
        return Trained(
            {name: torch.cat([part[name] for part in parts]) for name in parts[0]},
            torch.cat(numbers).to(device),
            torch.tensor([len(each) for each in numbers], device=device),
        )

    def _trained_by(
        self, starts: Starts, problems: ProblemFamily, family: Family, which: Which, first: int, count: int
    ) -> Params:
        """Trained networks [count, epochs, ...], with a progress bar."""
        assert self._problems is not None
        with needed_for("meta-training", extra="train"):
            from rich.progress import Progress
        with Progress(transient=True) as progress:
            bar = progress.add_task(f"Networks on {which} problems, {starts.epochs[-1]} epochs", total=count)
            return starts.train(
                problems,
                family,
                which,
                seed=self.seed,
                first=first,
                count=count,
                device=self._problems[0].x.device,
                on_part=lambda done: progress.update(bar, completed=done),
            )

    def probes(self, count: int) -> torch.Tensor:
        """Inputs of training problems, as many of each as it takes."""
        assert self._problems is not None, "load() comes first"
        if self._trained is None:
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

        most = len(read) - len(judged) if self.redraw else len(read)
        low, high = (float(np.log(limit)) for limit in self.read)
        share = float(torch.rand((), generator=generator, device=device))
        count = min(most, round(float(np.exp(low + (high - low) * share))))
        if trained:
            assert self._trained is not None
            kind = below(len(self._trained.counts), self.networks)
            share_of_kind = torch.rand(self.networks, generator=generator, device=device)
            params, which = self._trained.at(kind, share_of_kind)
        else:
            which = below(len(read.x), self.networks)
            rows = below(len(next(iter(self._params.values()))), self.networks)
            params = {name: p[rows] for name, p in self._params.items()}
        order = torch.randperm(len(read), generator=generator, device=device)
        if self.redraw:
            some = read.of(which).take(order[: count + self.examples])
            some, target = some.take(slice(count)), some.take(slice(count, None))
        else:
            some, target = read.of(which).take(order[:count]), judged.of(which)
        l1 = None
        if self.l1_range is not None:
            l1 = draw_strengths(self.l1_range, self.l1_zero, self.networks, generator)
        target, classes, signs = target.noisy(self.input_noise, generator), None, None
        if trained and self._classes is not None:
            shape = (self.networks, self._classes)
            classes = torch.rand(shape, generator=generator, device=device).argsort(1)
        if self.flip_inputs:
            signs = 1.0 - 2.0 * below(2, self.networks)
        view = View(classes, signs)
        return Batch(params, view.of(target), view.of(some), l1, view)

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


@dataclass(frozen=True, eq=False)
class Trained:
    """Networks of several kinds, each trained on a problem of the pool.

    Attributes:
        params: One kind after the other, [T, ...].
        problems: Number of each network's problem in the pool [T].
        counts: Networks of each kind [K], T in all.
    """

    params: Params
    problems: torch.Tensor
    counts: torch.Tensor

    def at(self, kind: torch.Tensor, share: torch.Tensor) -> tuple[Params, torch.Tensor]:
        """Networks and their problems, by their kinds [B] and their places in these, from 0 to 1, [B]."""
        counts = self.counts[kind]
        rows = (self.counts.cumsum(0) - self.counts)[kind] + (share * counts).long().clamp(max=counts - 1)
        return {name: p[rows] for name, p in self.params.items()}, self.problems[rows]


def _at_most(wanted: int, available: int | None) -> int:
    return wanted if available is None else min(wanted, available)
