"""One forward pass of checkpoints over a cell's networks, for its numbers and its curve over λ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch

from amortopt import ScaleGMNOptimizer, load_release
from amortopt._types import Params
from amortopt.cli.one_shot import problem_batch
from amortopt.functional.networks import num_networks
from amortopt.release import Release, parameter_count
from amortopt.release.folder import CONFIG
from benchmarks.harness.timing import timed
from benchmarks.one_shot.baselines import condensed, described, look
from benchmarks.one_shot.cells import Cell, cell_of_release

CHUNK = 64
"""Networks of one pass."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint and where it belongs.

    Attributes:
        source: Name or folder.
        release: What was read.
        cell: Its cell.
        symmetry: ``"scale"`` or ``"permutation"``: what its metanet respects.
        seed: Of its meta-training.
    """

    source: str
    release: Release
    cell: Cell
    symmetry: str
    seed: int

    @property
    def key(self) -> str:
        """``SYMMETRY/SEED``."""
        return f"{self.symmetry}/{self.seed}"

    @property
    def reads_l1(self) -> bool:
        return "l1" in self.release.module.conditions

    def identity(self, part: str) -> dict[str, Any]:
        """What the part ``one_pass`` or ``latency`` depends on: the weights, the networks, λ."""
        cell, plan = self.cell, self.cell.plan
        shared = cell.identity() | plan.part("networks") | {"sha256": self.release.sha256}
        if part == "latency":
            return shared | plan.part("repeats")
        return shared | {"l1": [cell.setting.l1, *self.strengths()] if self.reads_l1 else []}

    def strengths(self) -> list[float]:
        """λ of the curve: the baselines' range, and further up where the checkpoint was trained further."""
        plan, trained = self.cell.plan, self.release.l1_range
        return plan.grid(plan.dense, plan.high if trained is None else max(plan.high, trained.high))


def find_checkpoints(sources: Sequence[str], *, quick: bool) -> list[Checkpoint]:
    """Read checkpoints and find the cell of each.

    Args:
        sources: Names or folders of checkpoints, or folders that hold such folders.
        quick: Whether the cells are a quick run's.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: One has no problem or family, or two are of one cell, symmetry and seed.
    """
    checkpoints: dict[tuple[str, str], Checkpoint] = {}
    for source in _expanded(sources):
        release = load_release(source)
        checkpoint = Checkpoint(
            source,
            release,
            cell_of_release(release, quick=quick),
            str(release.module.config.get("respects", "scale")),
            int(release.seeds.get("metanet and draws", 0)),
        )
        place = (checkpoint.cell.label, checkpoint.key)
        if place in checkpoints:
            raise ValueError(
                f"checkpoints: {source} and {checkpoints[place].source} are both of {place[0]}, symmetry and "
                f"meta-training seed {place[1]}; leave one out"
            )
        checkpoints[place] = checkpoint
    return list(checkpoints.values())


def _expanded(sources: Sequence[str]) -> list[str]:
    expanded: list[str] = []
    for source in sources:
        folder = Path(source)
        inside = sorted(str(path.parent) for path in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
        expanded += inside if inside and not (folder / CONFIG).is_file() else [source]
    return expanded


class OnePass:
    """One pass over the networks of a checkpoint's cell."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.cell = checkpoint, checkpoint.cell

    @cached_property
    def start(self) -> Params:
        """The cell's networks [B, ...]."""
        return self.cell.networks(self.cell.plan.networks)

    @cached_property
    def opt(self) -> ScaleGMNOptimizer:
        """The optimizer."""
        return ScaleGMNOptimizer.from_pretrained(self.checkpoint.source)

    @cached_property
    def batch(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The examples that the metanet reads, if it reads any."""
        return problem_batch(self.opt)

    def measure(self) -> dict[str, Any]:
        """Cross-entropy, and for a checkpoint that reads λ the table's λ and the curve."""
        release, cell = self.checkpoint.release, self.cell
        before = look(cell, self.start, "test")

        def after(l1: float, described_at: float | None) -> dict[str, Any]:
            chunks = [
                self._improve({name: p[rows] for name, p in self.start.items()}, l1)
                for rows in torch.arange(num_networks(self.start)).split(CHUNK)
            ]
            better = {name: torch.cat([chunk[name] for chunk in chunks]) for name in self.start}
            return described(look(cell, better, "test"), before, described_at)

        about = {
            "name": release.name,
            "sha256": release.sha256,
            "commit": release.commit,
            "seeds": release.seeds,
            "parameters": parameter_count(release.module),
        }
        result: dict[str, Any] = {"checkpoint": about, "l1": None, "curve": [], "ce": after(0.0, None)}
        if self.checkpoint.reads_l1:
            strength = cell.setting.l1
            result["l1"] = {"l1": strength} | after(strength, strength)
            result["curve"] = [{"l1": l1} | condensed(after(l1, l1)) for l1 in self.checkpoint.strengths()]
        return result

    def latency(self) -> list[dict[str, Any]]:
        """Median seconds of a call for one network, and for all of them together."""
        rows = []
        for count in (1, num_networks(self.start)):
            some = {name: p[:count] for name, p in self.start.items()}
            self._improve(some, 0.0)
            calls = timed(lambda some=some: self._improve(some, 0.0), self.cell.plan.repeats)
            seconds = median(call.wall for call in calls)
            rows.append({"batch": count, "seconds": seconds, "per_network": seconds / count})
        return rows

    def _improve(self, params: Params, l1: float) -> Params:
        strength = l1 if self.checkpoint.reads_l1 else None
        return self.opt.one_shot_params(params, batch=self.batch, l1=strength)
