"""One forward pass of checkpoints over a cell's networks, for its own numbers and its curve over λ."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from comparison.baselines import Advance, condensed, described, look
from comparison.cells import Cell, cell_of_release

_CHUNK = 64


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
        return "l1" in self.release.module.inputs

    def identity(self, part: str) -> dict[str, Any]:
        """What the part ``one_pass`` or ``latency`` depends on: the weights, the networks, λ."""
        cell, plan = self.cell, self.cell.plan
        found = cell.identity() | plan.part("networks") | {"sha256": self.release.sha256}
        if part == "latency":
            return found | plan.part("repeats")
        return found | {"l1": [cell.setting.l1, *self.strengths()] if self.reads_l1 else []}

    def strengths(self) -> list[float]:
        """λ of the curve: the baselines' range, and further up where the checkpoint was trained further."""
        plan, trained = self.cell.plan, self.release.l1_range
        high = plan.high if trained is None else max(plan.high, trained.high)
        return replace(plan, high=high).grid(plan.dense)


def find_checkpoints(sources: Sequence[str], *, quick: bool) -> list[Checkpoint]:
    """Read checkpoints and group them by their metadata.

    Args:
        sources: Names or folders of checkpoints, or folders that hold such folders.
        quick: Whether the cells are a quick run's.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: One does not say what it is for, or two are of one cell, symmetry and seed.
    """
    found: dict[tuple[str, str], Checkpoint] = {}
    for source in _expanded(sources):
        release = load_release(source)
        config, seeds = release.module.config, release.seeds
        checkpoint = Checkpoint(
            source,
            release,
            cell_of_release(release, quick=quick),
            str(config.get("symmetry", "scale")),
            int(seeds.get("metanet and draws", 0)),
        )
        place = (checkpoint.cell.label, checkpoint.key)
        if place in found:
            raise ValueError(
                f"checkpoints: {source} and {found[place].source} are both of {place[0]}, symmetry and "
                f"meta-training seed {place[1]}; leave one out"
            )
        found[place] = checkpoint
    return list(found.values())


def _expanded(sources: Sequence[str]) -> list[str]:
    expanded: list[str] = []
    for source in sources:
        folder = Path(source)
        inside = sorted(str(path.parent) for path in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
        expanded += inside if inside and not (folder / CONFIG).is_file() else [source]
    return expanded


class OnePass:
    """One pass over networks.

    Args:
        checkpoint: The checkpoint.
        start: The cell's networks [B, ...].
        advance: For a progress bar.
    """

    def __init__(self, checkpoint: Checkpoint, start: Params, advance: Advance) -> None:
        self.checkpoint, self.cell, self.start, self.advance = checkpoint, checkpoint.cell, start, advance
        self.opt = ScaleGMNOptimizer.from_pretrained(checkpoint.source)
        self.batch = problem_batch(self.opt)

    def measure(self) -> dict[str, Any]:
        """Cross-entropy, and for a checkpoint that reads λ the table's λ and the curve."""
        release, cell = self.checkpoint.release, self.cell
        before = look(cell, self.start, "test")
        about = {
            "name": release.name,
            "sha256": release.sha256,
            "commit": release.commit,
            "seeds": release.seeds,
            "parameters": parameter_count(release.module),
        }
        result: dict[str, Any] = {"checkpoint": about, "l1": None, "curve": []}
        result["ce"] = described(self._after(0.0), before, None)
        if self.checkpoint.reads_l1:
            strength = cell.setting.l1
            result["l1"] = {"l1": strength} | described(self._after(strength), before, strength)
            for strength in self.checkpoint.strengths():
                point = condensed(described(self._after(strength), before, strength))
                result["curve"].append({"l1": strength} | point)
        return result

    def latency(self) -> list[dict[str, Any]]:
        """Median seconds of a call for one network, and for all of them together."""
        rows = []
        for count in (1, num_networks(self.start)):
            self.advance(f"{self.checkpoint.source}: timing", 0)
            some = {name: p[:count] for name, p in self.start.items()}
            self._improve(some, 0.0)
            times = []
            for _ in range(self.cell.plan.repeats):
                began = time.perf_counter()
                self._improve(some, 0.0)
                times.append(time.perf_counter() - began)
            rows.append({"batch": count, "seconds": median(times), "per_network": median(times) / count})
        return rows

    def _after(self, l1: float) -> Any:
        self.advance(f"{self.checkpoint.source}: one pass, λ = {l1:g}", 0)
        parts = []
        for rows in torch.arange(num_networks(self.start)).split(_CHUNK):
            parts.append(self._improve({name: p[rows] for name, p in self.start.items()}, l1))
        better = {name: torch.cat([part[name] for part in parts]) for name in self.start}
        return look(self.cell, better, "test")

    def _improve(self, params: Params, l1: float) -> Params:
        strength = l1 if self.checkpoint.reads_l1 else None
        return self.opt.one_shot_params(params, batch=self.batch, l1=strength)
