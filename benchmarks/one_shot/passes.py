"""One pass of checkpoints over networks whose problems no meta-training saw, with its controls.

Legend: B networks, N examples, R rounds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amortopt import ScaleGMNOptimizer, load_release
from amortopt._types import Params
from amortopt.cli.one_shot import problem_batch
from amortopt.functional.networks import num_networks
from amortopt.metanets import Conditions, Rounds
from amortopt.release import Release, parameter_count
from amortopt.release.folder import CONFIG
from amortopt.tasks import (
    Examples,
    Objective,
    answers_many,
    evaluate_many,
    init_many,
    loss_and_grad_many,
)
from benchmarks.harness.numbers import values
from benchmarks.harness.store import Record
from benchmarks.harness.timing import in_turns
from benchmarks.one_shot.baselines import Setting, l1_point, trained
from benchmarks.one_shot.cells import UNSEEN, VARIANTS, Cell, Fleet, cell_of_release

ROUNDS = (1, 2, 4)
"""Rounds that have a row, beside all that a checkpoint has."""
READINGS = {"batch": ("batch",), "function": ("function",), "both": ("batch", "function")}
"""What a pass reads, by what it is called in tables."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that reads its problem, and the cell that it belongs to.

    Attributes:
        source: Name or folder.
        release: What was read.
        cell: Its cell.
    """

    source: str
    release: Release
    cell: Cell

    @property
    def name(self) -> str:
        return self.release.name

    @cached_property
    def opt(self) -> ScaleGMNOptimizer:
        """The optimizer."""
        return ScaleGMNOptimizer.from_pretrained(self.source)

    @property
    def metanet(self) -> Rounds:
        assert isinstance(self.opt.metanet, Rounds)
        return self.opt.metanet

    @property
    def readings(self) -> list[str]:
        """Keys of ``READINGS`` that the checkpoint can serve."""
        declared = self.release.module.conditions
        return [key for key, conditions in READINGS.items() if set(conditions) <= set(declared)]

    @property
    def reads_l1(self) -> bool:
        return "l1" in self.release.module.conditions

    def about(self) -> Record:
        """What the tables say of it."""
        config = self.release.module.config
        return {
            "name": self.name, "respects": config.get("respects", "scale"), "rounds": config.get("rounds", 1),
            "conditions": sorted(self.release.module.conditions), "seeds": self.release.seeds,
            "parameters": parameter_count(self.release.module),
        }  # fmt: skip

    def identity(self, size: int, **more: Any) -> dict[str, Any]:
        """What a measurement on N examples depends on."""
        return self.cell.identity(size) | {"sha256": self.release.sha256} | more

    def rounds(
        self,
        params: Params,
        read: Examples,
        *,
        reading: str = "batch",
        rounds: int | None = None,
        l1: float = 0.0,
    ) -> list[Params]:
        """What a pass has come to after 0, 1, ... rounds: 0 is the learned prototype.

        Args:
            params: Networks [B, ...].
            read: Their examples [B, N, ...].
            reading: Key of ``READINGS``.
            rounds: At most so many; by default all.
            l1: Strength λ, for checkpoints that read it.
        """
        count, module, objective = num_networks(params), self.cell.module, self.cell.problems.objective
        strengths = torch.full((count,), l1) if self.reads_l1 else None
        function = None
        if "function" in READINGS[reading]:
            assert self.metanet.probes is not None
            answers = answers_many(module, params, self.metanet.probes)
            function = mean_gradient(module, answers, objective.matching())
        conditions = Conditions(l1=strengths, function=function)
        if "batch" in READINGS[reading]:
            conditions = Conditions.of_batch(
                read, lambda part: mean_gradient(module, part, objective), count,
                l1=strengths, function=function,
            )  # fmt: skip
        with torch.no_grad():
            return self.metanet.after_rounds(params, conditions, rounds)

    def prototype(self, fleet: Fleet) -> Params:
        """The learned prototype, written into the networks' gauge."""
        return self.rounds(fleet.start, fleet.read, reading=self.readings[0], rounds=0)[0]

    def passed(self, fleet: Fleet) -> Params:
        """What a whole pass returns."""
        return self.rounds(fleet.start, fleet.read, reading=self.readings[0])[-1]

    def improved(self, params: Params, read: Examples) -> Params:
        """A whole pass that reads a batch, or the function where it reads no batch, by the public call."""
        with warnings.catch_warnings():
            # Problems outside of the family are measured too.
            warnings.simplefilter("ignore", UserWarning)
            pairs = list(zip(read.x, read.y, strict=True))
            return self.opt.one_shot_params(params, batch=pairs if "batch" in self.readings else None)


def mean_gradient(module: nn.Module, read: Examples, objective: Objective) -> Callable[[Params], Params]:
    """The gradient of each network's objective on all that it reads, some examples at a time."""

    def gradient(params: Params) -> Params:
        mean = {name: torch.zeros_like(p) for name, p in params.items()}
        for part in read.chunks(1000):
            for name, g in loss_and_grad_many(module, params, part, objective)[1].items():
                mean[name] += g * (len(part) / len(read))
        return mean

    return gradient


def find_checkpoints(sources: Sequence[str], *, quick: bool) -> tuple[list[Checkpoint], list[str]]:
    """Checkpoints that read problems of a family, and sources of those that know one data set.

    Args:
        sources: Names or folders of checkpoints, or folders that hold such folders.
        quick: Whether the cells are a quick run's.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: One has no problem or family, or two have one name.
    """
    readers: dict[str, Checkpoint] = {}
    memorised = []
    for source in _expanded(sources):
        release = load_release(source)
        if release.kind != "metanet":
            continue
        cell = cell_of_release(release, quick=quick)
        if cell is None:
            memorised.append(source)
        elif release.name in readers:
            raise ValueError(
                f"checkpoints: {source} and {readers[release.name].source} are both called {release.name}; "
                "leave one out"
            )
        else:
            readers[release.name] = Checkpoint(source, release, cell)
    return list(readers.values()), memorised


def _expanded(sources: Sequence[str]) -> list[str]:
    expanded: list[str] = []
    for source in sources:
        folder = Path(source)
        inside = sorted(str(path.parent) for path in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
        expanded += inside if inside and not (folder / CONFIG).is_file() else [source]
    return expanded


def pass_rows(checkpoint: Checkpoint, size: int) -> Record:
    """Every way to read N examples, and the controls: the prototype, and the problem of another network."""
    cell = checkpoint.cell
    fleet = cell.fleet("test", size)
    every = checkpoint.about()["rounds"]
    rows: dict[str, Record] = {"prototype": cell.judge(checkpoint.prototype(fleet), fleet)}
    # The next of the family's problems: none has its own.
    other = (torch.arange(len(fleet.read.x)) + 1) % fleet.sets[UNSEEN].stop
    for reading in checkpoint.readings:
        for rounds in sorted({r for r in ROUNDS if r <= every} | {every}):
            # A pass of its own: where rounds read portions, fewer rounds read larger ones.
            last = checkpoint.rounds(fleet.start, fleet.read, reading=reading, rounds=rounds)[-1]
            rows[f"{reading}/{rounds}"] = cell.judge(last, fleet)
        if reading != "both":
            swapped = (
                {name: p[other] for name, p in fleet.start.items()} if reading == "function" else fleet.start
            )
            last = checkpoint.rounds(swapped, fleet.read.of(other), reading=reading)[-1]
            rows[f"swapped {reading}"] = cell.judge(last, fleet)
    return {"checkpoint": checkpoint.about(), "rows": rows}


def timing(checkpoint: Checkpoint, size: int, epochs: int) -> Record:
    """Seconds per network of a pass and of an epoch of SGD and Adam, in turns: all at once, and one alone."""
    cell = checkpoint.cell
    fleet = cell.fleet("test", size)
    count, measured = num_networks(fleet.start), {}
    for key, rows in (("batched", torch.arange(count)), ("alone", torch.arange(1))):
        some = Fleet(
            {name: p[rows] for name, p in fleet.start.items()}, fleet.read.of(rows), fleet.judged, {}
        )
        works = {
            "pass": lambda some=some: checkpoint.improved(some.start, some.read),
            "sgd": lambda some=some: trained(cell, some, some.start, [Setting("sgd", 0.01, 0.2)], 1),
            "adam": lambda some=some: trained(cell, some, some.start, [Setting("adam", 0.001, 0.2)], 1),
        }
        times = in_turns(works, 1 + cell.plan.repeats)
        # The first round warms up.
        measured[key] = {name: min(seconds[1:]) / len(rows) for name, seconds in times.items()}
    return {"networks": count, "size": size, "epochs": epochs} | measured


def l1_curve(checkpoint: Checkpoint) -> list[Record]:
    """A point per strength λ, of one checkpoint."""
    cell = checkpoint.cell
    fleet = cell.fleet("test", cell.plan.l1_size)
    trained_for = checkpoint.release.l1_range
    low, high = cell.plan.strengths[0], cell.plan.strengths[-1]
    strengths = sorted({*cell.plan.strengths, *(trained_for.points(12) if trained_for else ())})
    return [
        l1_point(cell, fleet, checkpoint.rounds(fleet.start, fleet.read, l1=l1)[-1], l1)
        for l1 in strengths
        if low / 2 <= l1 <= 3 * high
    ]


def quality_rows(checkpoint: Checkpoint, sizes: Sequence[int]) -> list[Record]:
    """Starting networks of every quality, trained on the most examples: before, and after a pass."""
    cell, rows = checkpoint.cell, []
    for epochs in cell.plan.qualities:
        fleet = cell.fleet(
            "test", max(sizes), epochs=None if epochs == 8 else epochs, problems=cell.plan.trained
        )
        before = cell.judge(fleet.start, fleet)[UNSEEN]
        row: Record = {"epochs": epochs, "start": before["score"], "passes": {}}
        for reading in checkpoint.readings:
            for size in sizes if reading != "function" else sizes[:1]:
                last = checkpoint.rounds(fleet.start, fleet.read.take(slice(size)), reading=reading)[-1]
                name = "function" if reading == "function" else f"{reading}, {size:,} examples"
                row["passes"][name] = cell.judge(last, fleet)[UNSEEN]["score"]
        rows.append(row)
    return rows


def outside_pass(checkpoint: Checkpoint, size: int, variant: str) -> Record:
    """Problems outside of the family, after a pass."""
    fleet = checkpoint.cell.fleet("test", size, variant=variant)
    after = {
        reading: checkpoint.cell.judge(
            checkpoint.rounds(fleet.start, fleet.read, reading=reading)[-1], fleet
        )[UNSEEN]["score"]
        for reading in checkpoint.readings
    }  # fmt: skip
    return {"checkpoint": checkpoint.name, "passes": after}


def variants(cell: Cell) -> list[str]:
    """Names of problems outside of a cell's family."""
    return list(VARIANTS.get(cell.problems.name, {}))


def memorised_row(source: str, networks: int) -> Record:
    """A checkpoint that was meta-trained on one data set, on that data set: fresh networks and a pass."""
    opt = ScaleGMNOptimizer.from_pretrained(source)
    assert opt.family is not None and opt.problem is not None
    test, module = opt.problem.split("test"), opt.family.build()  # type: ignore[union-attr]
    start = init_many(opt.family.build, range(30_000, 30_000 + networks))
    after = opt.one_shot_params(start, batch=problem_batch(opt))
    scores = [evaluate_many(module, p, test, opt.problem.objective)[1] for p in (start, after)]
    before, better = (values(100 * score, 2) for score in scores)
    return {
        "name": opt.name, "problem": opt.problem.to_config(), "family": opt.family.to_config(),
        "start": before, "score": better,
    }  # fmt: skip
