"""The networks that functionals and editors are trained on, with their targets; what a step draws.

Legend: B networks in a step, n networks of a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.meta.functional.augment import Augmentation
from amortopt.meta.functional.targets import Values, edited, labels
from amortopt.metanets import Head
from amortopt.symmetry import SymmetrySpec, extract
from amortopt.system.registry import construct
from amortopt.tasks import Family
from amortopt.tasks.problem import SPLITS, Which
from amortopt.zoo import Zoo, load_zoo

_VIEWS = "view"
_DRAW, _ORDER = range(2)  # independent random streams of one seed


@dataclass(frozen=True)
class Part:
    """Networks of one part of the zoo, and what they are judged by.

    Attributes:
        params: [n, ...].
        labels: Targets of the head, [n]; for editors the positions of their values.
        values: What edited networks should answer; None for functionals.
    """

    params: Params
    labels: Tensor
    values: Values | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Part:
        """Some of the networks."""
        values = None if self.values is None else Values(self.values.x, self.values.y[rows])
        return Part({name: p[rows] for name, p in self.params.items()}, self.labels[rows], values)

    def to(self, device: torch.device) -> Part:
        """The same on a device."""
        values = self.values and Values(self.values.x.to(device), self.values.y.to(device))
        params = {name: p.to(device) for name, p in self.params.items()}
        return Part(params, self.labels.to(device), values)


class NetworksDataModule(L.LightningDataModule):
    """Draws networks of a zoo. A step's draw is a function of seed and step alone.

    Of a zoo with several views of an image, training uses all and validation the first.

    Args:
        zoo: Folder of the zoo; searched for from the current folder, then beside and above the recipe.
        label: Column of the zoo's table that a functional learns, such as ``label`` or ``test_accuracy``.
        edit: Name of an edit that an editor learns, such as ``dilation``.
        networks: Networks in a step B.
        train_networks: Train networks to use, the first of the zoo; None for all.
        augment: Arguments of [Augmentation][amortopt.meta.functional.augment.Augmentation].
        seed: Seed of the draws; the run's.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        zoo: str,
        *,
        label: str | None = None,
        edit: str | None = None,
        networks: int = 64,
        train_networks: int | None = None,
        augment: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if (label is None) == (edit is None):
            raise ValueError(
                f"data.label, data.edit: got {label!r} and {edit!r}, expected one of them: a column of the "
                "zoo's table for a functional, the name of an edit for an editor"
            )
        if networks < 1 or (train_networks is not None and train_networks < 1):
            raise ValueError(
                f"data.networks, data.train_networks: got {networks} and {train_networks}, expected at "
                "least 1"
            )
        self.folder, self.label, self.edit = zoo, label, edit
        self.networks, self.train_networks, self.seed = networks, train_networks, seed
        self.augment: Augmentation = construct(Augmentation, "augment", dict(augment or {}))
        self.recipe_roots: Sequence[Path] = ()
        self._zoo: Zoo | None = None
        self._parts: dict[Which, Part] = {}
        self._order: dict[int, Tensor] = {}

    @property
    def zoo(self) -> Zoo:
        """The zoo; read on first use.

        Raises:
            FileNotFoundError: There is none in the folder.
        """
        if self._zoo is None:
            places = [Path(), *self.recipe_roots]
            root = next((root for root in places if (root / self.folder).is_dir()), Path())
            self._zoo = load_zoo(root / self.folder)
        return self._zoo

    @property
    def family(self) -> Family:
        """Family of the networks."""
        return self.zoo.family

    def spec(self) -> SymmetrySpec:
        """Symmetry of the networks."""
        with torch.random.fork_rng(devices=[]):
            return extract(self.family.build(), self.family.example_input())

    def prepare(self, head: Head | None) -> None:
        """Read all parts, with the targets of a head; None for an edit.

        Raises:
            ValueError: Targets are missing, or what ``check_classes`` refuses.
        """
        for which in SPLITS:
            chosen = self.zoo.select(which)
            if which != "train" and _VIEWS in chosen.table:
                chosen = chosen.select(chosen.table[_VIEWS] == 0)
            if which == "train" and self.train_networks is not None:
                chosen = chosen.select(torch.arange(min(self.train_networks, len(chosen))).numpy())
            if head is None:
                assert self.edit is not None
                self._parts[which] = Part(chosen.params, torch.arange(len(chosen)), edited(chosen, self.edit))
            else:
                assert self.label is not None
                self._parts[which] = Part(chosen.params, labels(chosen, self.label, head))
        if head is not None:
            self.check_classes(head)

    def part(self, which: Which, device: torch.device | None = None) -> Part:
        """The networks of a part."""
        part = self._parts[which]
        return part if device is None else part.to(device)

    def draw(self, step: int, spec: SymmetrySpec) -> Part:
        """Networks of meta step ``step``, augmented: every network once before any comes again."""
        train = self._parts["train"]
        # Positions of the step's networks in the endless sequence of orders.
        places = torch.arange(step * self.networks, (step + 1) * self.networks)
        rows = torch.stack([self._row(int(place), len(train)) for place in places])
        drawn = train.take(rows)
        generator = _generator(self.seed, _DRAW, step)
        return Part(self.augment(drawn.params, spec, generator), drawn.labels, drawn.values)

    def _row(self, place: int, count: int) -> Tensor:
        epoch, position = divmod(place, count)
        if epoch not in self._order:
            generator = _generator(self.seed, _ORDER, epoch)
            self._order = {k: v for k, v in self._order.items() if k >= epoch - 1}
            self._order[epoch] = torch.randperm(count, generator=generator)
        return self._order[epoch][position]

    def check_classes(self, head: Head) -> None:
        """Refuse targets that a head cannot learn, or that it would be judged by without having seen them.

        Args:
            head: The head that ``prepare`` was called with.

        Raises:
            ValueError: A part has no networks, the targets of all train networks are equal, some are out of
                the head's range, or val or test networks have classes that no train network has.
        """
        for which, part in self._parts.items():
            if not len(part):
                raise ValueError(
                    f"data.zoo: got no {which} networks, expected some of every part; split the zoo otherwise"
                )
        train = self._parts["train"].labels
        seen = train.unique()
        if len(seen) < 2:
            raise ValueError(
                f"data.label: column {self.label!r} is {seen.item():g} for all {len(train)} train networks, "
                "expected values that differ; from constants nothing can be learned: name another column"
            )
        for which, part in self._parts.items():
            unseen = sorted(set(part.labels.unique().tolist()) - set(seen.tolist()))
            if unseen and not part.labels.is_floating_point():
                raise ValueError(
                    f"data.label: {which} networks have the classes {unseen}, which no train network "
                    "has; nothing is learned about these: leave them out, or split the zoo otherwise"
                )
            # The head's own errors, before training and not at its first validation.
            head.loss(torch.zeros(len(part), head.raw), part.labels)

    def train_dataloader(self) -> Iterator[int]:
        """Endless zeros: a step draws its networks itself."""
        return repeat(0)

    def val_dataloader(self) -> range:
        """One batch."""
        return range(1)


def _generator(*key: int) -> torch.Generator:
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))
