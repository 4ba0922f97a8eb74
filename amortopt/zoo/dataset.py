"""Read a zoo: stacked params and the table of what each network is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amortopt._types import Params
from amortopt.tasks import Family, Problem, make_family, make_problem
from amortopt.tasks.problem import SPLITS, Which
from amortopt.zoo.config import Table
from amortopt.zoo.formats.small_cnn_zoo import locate, read_small_cnn_zoo
from amortopt.zoo.store import read_manifest, read_shard


@dataclass(frozen=True)
class Zoo:
    """Base networks of one architecture, all in memory.

    Args:
        params: Qualified name -> [n, ...].
        table: Column -> [n]: index, seed, learning_rate, init_scale, epochs, split ("train", "val" or
            "test"), finite, and train_, val_, test_ loss and score, such as ``test_accuracy`` in [0, 1].
        config: Recipe that the zoo was built by, as plain json values; of a Small CNN Zoo, its problem,
            family and seed.
    """

    params: Params
    table: Table
    config: dict[str, Any]

    def __len__(self) -> int:
        return len(self.table["index"])

    def __repr__(self) -> str:
        scores = [name for name in self.table if name.startswith("test_") and name != "test_loss"]
        mean = "".join(f", mean {n.replace('_', ' ')} {np.nanmean(self.table[n]):.3f}" for n in scores[:1])
        problem, family = self.config["problem"], self.config["family"]
        return f"Zoo({len(self)} networks, problem {problem}, family {family}{mean})"

    @property
    def problem(self) -> Problem:
        """The problem that the networks were trained on."""
        return make_problem(**self.config["problem"])

    @property
    def family(self) -> Family:
        """The family that the networks belong to."""
        return make_family(**self.config["family"])

    def select(self, which: Which | np.ndarray) -> Zoo:
        """Part of the networks: those of a split, a boolean mask [n] or positions [m]; params are copies.

        Raises:
            ValueError: If the split is unknown, no network is selected, or a mask has the wrong length.
        """
        if isinstance(which, str):
            if which not in SPLITS:
                raise ValueError(f"which: got {which!r}, expected 'train', 'val' or 'test'")
            chosen = self.table["split"] == which
        else:
            chosen = np.asarray(which)
        if chosen.dtype == bool and chosen.shape != (len(self),):
            raise ValueError(f"which: got a mask of shape {chosen.shape}, expected ({len(self)},)")
        positions = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        if len(positions) == 0:
            raise ValueError(
                f"which: got {which!r}, which selects none of the {len(self)} networks; build more"
            )
        device = next(iter(self.params.values())).device
        rows = torch.as_tensor(positions, device=device)
        return Zoo(
            {name: p[rows] for name, p in self.params.items()},
            {name: column[positions] for name, column in self.table.items()},
            self.config,
        )

    def to(self, device: torch.device | str) -> Zoo:
        """The same zoo with its params on a device."""
        return Zoo({name: p.to(device) for name, p in self.params.items()}, self.table, self.config)


def load_zoo(
    folder: str | Path,
    split: Which | None = None,
    *,
    device: torch.device | str = "cpu",
    max_epochs: int | None = None,
    keep_diverged: bool = False,
    activation: str | None = None,
) -> Zoo:
    """Read a zoo that ``build_zoo`` wrote, with all its checksums verified, or a Small CNN Zoo; by index.

    Args:
        folder: Zoo folder. Of a Small CNN Zoo the folder of one data set; the
            activation may stand behind it as if it were a subfolder: ``small_cnn_zoo/cifar10/tanh``.
        split: Only the networks of this split; by default all.
        device: Where the params go.
        max_epochs: Only networks that were trained for at most so many epochs (in a Small CNN Zoo, the last
            checkpoint of a network up to there).
        keep_diverged: Also networks with params that are not finite, which are left out otherwise.
        activation: Of a Small CNN Zoo, only networks with this activation; a built zoo has but one.

    Raises:
        FileNotFoundError: If the folder holds no zoo, or an incomplete one; the message says what is missing.
        ValueError: If a file was truncated or altered, the activation is not the zoo's, or no network is
            selected.
    """
    folder = Path(folder)
    small_cnn_zoo = locate(folder)
    if small_cnn_zoo is None:
        manifest = read_manifest(folder)
        if missing := manifest.missing(folder):
            listed = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            raise FileNotFoundError(
                f"zoo folder {folder} is incomplete: shard{'s' if len(missing) > 1 else ''} {listed} of "
                f"{manifest.shards} missing; run the same `amortopt zoo build` command again"
            )
        stored = manifest.config["family"].get("activation")
        if activation not in (None, stored):
            raise ValueError(
                f"activation: got {activation!r}, but the networks in {folder} have {stored!r}; name another "
                "zoo"
            )
        shards = [read_shard(folder, manifest, shard) for shard in range(1, manifest.shards + 1)]
        zoo = Zoo(
            {name: torch.cat([params[name] for params, _ in shards]) for name in manifest.shapes},
            {name: np.concatenate([table[name] for _, table in shards]) for name in shards[0][1]},
            manifest.config,
        )
    else:
        root, named = small_cnn_zoo
        zoo = Zoo(
            *read_small_cnn_zoo(root, activation=activation or named, split=split, max_epochs=max_epochs)
        )
    chosen = np.ones(len(zoo), dtype=bool) if keep_diverged else zoo.table["finite"]
    if split is not None:
        chosen = chosen & (zoo.table["split"] == split)
    if max_epochs is not None:
        chosen = chosen & (zoo.table["epochs"] <= max_epochs)
    if not chosen.any():
        raise ValueError(
            f"split, max_epochs: got {split!r}, {max_epochs}, which select none of the {len(zoo)} networks "
            f"in {folder}; build more networks or ask for others"
        )
    return (zoo if chosen.all() else zoo.select(chosen)).to(device)
