"""What meta-training on a small fleet of problems reads: all that can be drawn from what is at hand.

Legend: B networks, P problems of the pool, N examples of a problem, C classes, K examples of a class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.meta.one_pass.data import Batch, DrawnDataModule, Held
from amortopt.system.numbers import check_counts
from amortopt.tasks import CrossEntropy, Examples, Family, ProblemFamily, init_many
from amortopt.tasks.problem import Which

_POOL_BYTES = 2**30
"""Memory for the inputs of all training problems together."""
_NETWORKS = 256
"""Fresh networks that steps draw from: a pass takes only their gauge."""


class FleetDataModule(DrawnDataModule):
    """Draws from a fixed number of problems, and widens them where that is sound.

    Each problem's examples to read and to judge by are one pool, from which every step draws both anew,
    without overlap. For cross-entropy with classes that mean something else in every problem, classes can be
    permuted, and new problems can be put together from classes of several. What a step draws is a function of
    seed, step and process.

    Args:
        problems: Where problems come from; a family without end gives ``pool`` of them.
        pool: At most so many training problems.
        networks: Problems per step and device, B, each with a network.
        read: Smallest and largest number of examples that a pass reads; log-uniform, the same for all
            networks of a step that have as many. By default 1,000 or as many as problems have, and a
            twentieth of it; never more than problems have.
        examples: At most so many examples of each problem that the loss is taken on.
        input_noise: Standard deviation of Gaussian noise on all inputs, in units of theirs.
        permute_classes: Whether every drawn problem gets its classes in a random order.
        mix_classes: Share of a step's problems whose classes come from several problems.
        val_problems: Problems for validation, and for the test at the end.
        seed: Seed of the draws.

    Attributes:
        pooled: All examples of the training problems [P, N, ...], with a mask; once loaded.
        input_moments: Mean and standard deviation of their inputs.

    Raises:
        ValueError: If a value is out of its range; the message names it.
    """

    def __init__(
        self,
        problems: ProblemFamily,
        *,
        pool: int = 4096,
        networks: int = 32,
        read: tuple[int, int] | None = None,
        examples: int = 256,
        input_noise: float = 0.0,
        permute_classes: bool = False,
        mix_classes: float = 0.0,
        val_problems: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_counts(pool=pool, networks=networks, examples=examples, val_problems=val_problems)
        if read is not None and not _are_counts(read):
            raise ValueError(
                f"read: got {list(read) if isinstance(read, Sequence) else read!r}, expected [smallest, "
                "largest], whole numbers with 1 <= smallest <= largest"
            )
        if not 0 <= input_noise < math.inf:
            raise ValueError(f"input_noise: got {input_noise}, expected a finite standard deviation >= 0")
        if not 0 <= mix_classes <= 1:
            raise ValueError(f"mix_classes: got {mix_classes}, expected a share from 0 to 1")
        exchangeable = isinstance(problems.objective, CrossEntropy) and not problems.objective.target_shape
        if (permute_classes or mix_classes) and not exchangeable:
            raise ValueError(
                f"permute_classes, mix_classes: got {permute_classes}, {mix_classes}, expected neither: "
                f"{problems.objective} has not one class for each input"
            )
        self.problems, self.pool, self.networks, self.examples = problems, pool, networks, examples
        self.read, self.input_noise, self.seed, self.val_problems = read, input_noise, seed, val_problems
        self.permute_classes, self.mix_classes = permute_classes, mix_classes
        self.l1_range = None
        self._held: dict[Which, Held] = {}
        self._params: Params = {}
        self._generator: torch.Generator | None = None

    def load(self, family: Family, device: torch.device | str = "cpu") -> None:
        """Read the pool, and the problems that are held out; every example is checked.

        Args:
            family: What the networks are.
            device: Where everything is put.

        Raises:
            ValueError: If an example cannot be used, or a part has no problems.
        """
        device, problems = torch.device(device), self.problems
        counts = {which: problems.count(which) for which in ("train", "val", "test")}
        if empty := [which for which, count in counts.items() if count == 0]:
            raise ValueError(
                f"problems: got none for {' and '.join(empty)} of {sum(filter(None, counts.values()))}, "
                "expected some for each of train, val and test; add problems, or change the shares val "
                "and test"
            )
        count = self.pool if counts["train"] is None else min(self.pool, counts["train"])
        size = 4 * math.prod(problems.input_shape) * count
        most = 1250 if counts["train"] is None else max(2, _POOL_BYTES // size)
        read, judged = problems.draw("train", 0, count, max(1, most * 4 // 5), max(1, most // 5))
        self.pooled = _joined(read, judged).to(device)
        most = int(read.counts(count).max())
        top = min(1000, most)
        smallest, largest = self.read or (max(1, top // 20), top)
        if smallest > most:
            raise ValueError(f"read: got {[smallest, largest]}, but problems have at most {most} examples")
        self.read = smallest, min(largest, most)
        assert self.pooled.mask is not None
        self._valid = self.pooled.mask  # [P, N]
        inputs = self.pooled.x[self._valid]
        self.input_moments = float(inputs.mean()), float(inputs.std(correction=0))
        if isinstance(problems.objective, CrossEntropy) and not problems.objective.target_shape:
            self._by_class = _by_class(self.pooled.y, self._valid, problems.objective.num_classes)
        seeds = range(self.seed, self.seed + _NETWORKS)
        self._params = {name: p.to(device) for name, p in init_many(family.build, seeds).items()}
        parts: Sequence[Which] = ("val", "test")
        for which in parts:
            held = self.val_problems if counts[which] is None else min(self.val_problems, counts[which] or 0)
            read, judged = problems.draw(which, 0, held, self.read[1], 1000)
            rows = torch.arange(held, device=device) % _NETWORKS
            params = {name: p[rows] for name, p in self._params.items()}
            self._held[which] = Held(params, {which: judged.to(device)}, read.to(device), self.strengths())
        self._generator = torch.Generator(device)

    def draw(self, step: int, rank: int = 0, *, trained: bool = False) -> Batch:
        """What a meta step reads; the same for the same seed, step and rank. Networks are never trained."""
        assert self._generator is not None and self.read is not None, "load() comes first"
        generator = self._generator
        key = np.random.SeedSequence((self.seed, step, rank)).generate_state(1, np.uint64)[0]
        generator.manual_seed(int(key >> 1))

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=generator.device)

        low, high = (math.log(limit) for limit in self.read)
        wanted = max(1, round(math.exp(low + (high - low) * float(uniform()))))
        count = self.networks
        mixed = round(self.mix_classes * count)
        total = self._valid.sum(1)  # [P]
        # The first of a step's problems are mixed ones: a problem and an example for every place [B, N].
        which = (uniform(count) * len(total)).long()
        keys = torch.where(self._valid[which], uniform(count, self._valid.shape[1]), 2.0)
        order = keys.argsort(1)
        limit = total[which]
        place, example, y = which[:, None].expand_as(order), order, self.pooled.y[which[:, None], order]
        if mixed:
            some = self._mixed(which[:mixed], uniform)
            width = order.shape[1]
            place, example, y = (
                torch.cat([torch.nn.functional.pad(a, (0, width - a.shape[1]))[:, :width], b[mixed:]])
                for a, b in zip(some[:3], (place, example, y), strict=True)
            )
            limit = torch.cat([some[3].clamp(max=width), limit[mixed:]])
        if self.permute_classes:
            objective: Any = self.problems.objective
            y = uniform(count, objective.num_classes).argsort(1).gather(1, y)
        # Of every problem: so many are read, then others are judged, at least a fifth of what it has.
        judged = torch.minimum(torch.full_like(limit, self.examples), (limit // 5).clamp(min=1))
        reads = torch.minimum(torch.full_like(limit, wanted), limit - judged).clamp(min=1)
        judged = torch.minimum(torch.full_like(limit, self.examples), limit - reads)
        parts = []
        for first, number in ((torch.zeros_like(reads), reads), (reads, judged)):
            at = first[:, None] + torch.arange(int(number.max()), device=first.device)  # [B, n]
            mask = at < (first + number)[:, None]
            at = at.clamp(max=order.shape[1] - 1)
            x = self.pooled.x[place.gather(1, at), example.gather(1, at)]
            index = at.view(*at.shape, *[1] * (y.ndim - 2)).expand(*at.shape, *y.shape[2:])
            part = Examples(x, y.gather(1, index), shared=False, mask=None if bool(mask.all()) else mask)
            parts.append(part.noisy(self.input_noise * self.input_moments[1], generator))
        rows = (uniform(count) * _NETWORKS).long()
        return Batch({name: p[rows] for name, p in self._params.items()}, parts[1], parts[0], None)

    def _mixed(self, like: Tensor, uniform: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Problems whose classes come from several others.

        Each has as many examples of each class as the problem that it is like, at most.

        Args:
            like: Problems [k].
            uniform: Draws from [0, 1).

        Returns:
            Problem, example and class of every place [k, N'], valid ones first in random order; how many are
            valid [k].
        """
        table, sizes = self._by_class  # [P, C, K] and [P, C]
        slots, longest = sizes.shape[1], table.shape[2]
        # Sources: each class of a problem at most once in a mixed one, classes without examples never.
        source = torch.where(sizes.flatten() > 0, uniform(len(like), sizes.numel()), 2.0)
        source = source.topk(slots, largest=False).indices  # [k, C]
        available = torch.minimum(sizes.flatten()[source], sizes[like])  # [k, C]
        shuffled = torch.where(
            torch.arange(longest, device=like.device) < sizes.flatten()[source][..., None],
            uniform(len(like), slots, longest),
            2.0,
        ).argsort(2)
        example = table.flatten(0, 1)[source].gather(2, shuffled)  # [k, C, K]
        valid = torch.arange(longest, device=like.device) < available[..., None]
        order = torch.where(valid, uniform(*valid.shape), 2.0).flatten(1).argsort(1)  # [k, C K]
        classes = torch.arange(slots, device=like.device)[:, None].expand(slots, longest).flatten()
        place = (source // slots)[..., None].expand_as(example).flatten(1)
        return (
            place.gather(1, order),
            example.flatten(1).gather(1, order),
            classes[order],
            available.sum(1),
        )

    def probes(self, count: int) -> Tensor:
        """None: networks of a fleet are not trained, so there are no functions to read."""
        raise ValueError(
            "conditions: got 'function', expected 'batch' alone: a fleet's networks are not trained"
        )

    def validation(self) -> Held:
        """What a validation reads: problems that no step has."""
        return self._held["val"]

    def testing(self) -> Held:
        """What the end of a run is measured on: problems that neither training nor validation has."""
        return self._held["test"]

    def seeds(self) -> dict[str, int]:
        """What was seeded with what, beside the metanet and the draws."""
        return {"networks": self.seed}


def _are_counts(read: Any) -> bool:
    """Whether these are a smallest and a largest number of examples."""
    if not isinstance(read, Sequence) or len(read) != 2:
        return False
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in read)
    return whole and 1 <= read[0] <= read[1]


def _joined(read: Examples, judged: Examples) -> Examples:
    """All examples of every problem, [P, N + M, ...]."""
    masks = [
        part.mask if part.mask is not None else torch.ones(part.x.shape[:2], dtype=torch.bool)
        for part in (read, judged)
    ]
    return Examples(
        torch.cat([read.x, judged.x], 1), torch.cat([read.y, judged.y], 1), False, torch.cat(masks, 1)
    )


def _by_class(y: Tensor, valid: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Positions of the examples of each class [P, C, K], and how many there are [P, C]; the rest is 0."""
    # Class by class, examples in their order; those that are not valid come last.
    order = torch.where(valid, y, classes).argsort(dim=1, stable=True)
    one_hot = (y[..., None] == torch.arange(classes, device=y.device)) & valid[..., None]
    sizes = one_hot.sum(1)
    starts = sizes.cumsum(1) - sizes
    offsets = torch.arange(int(sizes.max()), device=y.device)
    at = (starts[..., None] + offsets).clamp(max=y.shape[1] - 1)  # [P, C, K]
    positions = order.gather(1, at.flatten(1)).unflatten(1, at.shape[1:])
    return torch.where(offsets < sizes[..., None], positions, 0), sizes
