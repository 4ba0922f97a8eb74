"""Release checkpoints: a folder with weights, everything that made them, and a model card. Never a pickle.

- ``model.safetensors``: the metanet's state
- ``config.json``: metanet and its arguments, family, problem, trained L1 strengths and passes, recipe,
  commit, seeds, results, checksums
- ``README.md``: the same for people; written from the fields, never read for them
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amortopt.functional.l1 import L1Range
from amortopt.metanets import Metanet, make_metanet
from amortopt.release.card import model_card
from amortopt.release.folder import CARD as CARD
from amortopt.release.folder import CONFIG as CONFIG
from amortopt.release.folder import WEIGHTS as WEIGHTS
from amortopt.release.folder import (
    Kind,
    card_of,
    locate,
    read_config,
    read_weights,
    shipped,
    shipped_root,
    unfit,
    versions,
    write_release,
)
from amortopt.release.folder import canonical as _canonical  # noqa: F401
from amortopt.release.folder import check_target as check_target
from amortopt.release.folder import checked_name as checked_name
from amortopt.release.folder import sha256 as _sha256  # noqa: F401
from amortopt.symmetry import SymmetrySpec

FORMAT = 1
_DESCRIPTIONS = ("problem", "family", "recipe", "seeds", "results", "commit")


@dataclass(frozen=True, eq=False)
class Release:
    """A trained metanet and all that is known about it.

    Attributes:
        metanet: In eval mode; its ``spec`` is the family's.
        name: Name of the checkpoint.
        problem: ``{"name": ..., **arguments}`` of the problem that it was trained on.
        family: ``{"name": ..., **arguments}`` of the base networks that it was trained on.
        recipe: What was run to make it: settings, or the recipe's text.
        seeds: What was seeded with what.
        results: What was measured.
        commit: Commit of the code that made it; None if unknown.
        card: Text of the model card; None if there is none.
        sha256: Checksum of the weights file.
        versions: Versions of amortopt and torch that wrote it.
        l1_range: L1 strengths that it was trained for; None if it reads none, or they were not recorded.
        passes: How often it was applied in a row in training.
    """

    metanet: Metanet
    name: str
    problem: dict[str, Any]
    family: dict[str, Any]
    recipe: dict[str, Any] | str
    seeds: dict[str, Any]
    results: dict[str, Any]
    commit: str | None
    card: str | None
    sha256: str
    versions: dict[str, str]
    l1_range: L1Range | None = None
    passes: int = 1

    @property
    def spec(self) -> SymmetrySpec:
        """Symmetry of the family."""
        return self.metanet.spec

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write it with [save_release][amortopt.save_release], with the weights as they are now."""
        described = {key: getattr(self, key) for key in (*_DESCRIPTIONS, "l1_range", "passes")}
        return save_release(folder, self.metanet, name=self.name, card=self.card, **described)


def save_release(
    folder: str | os.PathLike[str],
    metanet: Metanet,
    *,
    name: str,
    spec: SymmetrySpec | None = None,
    problem: Mapping[str, Any],
    family: Mapping[str, Any],
    recipe: Mapping[str, Any] | str,
    seeds: Mapping[str, Any],
    results: Mapping[str, Any],
    commit: str | None = None,
    card: str | None = None,
    l1_range: L1Range | None = None,
    passes: int = 1,
) -> Path:
    """Write a release checkpoint, whole or not at all.

    Args:
        folder: Where it goes: a new or empty folder, or one that holds only a checkpoint, which is replaced.
        metanet: Registered with ``register_metanet``; not modified.
        name: Lower-case letters, digits, dots, hyphens and underscores.
        spec: Symmetry of the family; by default ``metanet.spec``.
        problem: ``problem.to_config()``.
        family: ``family.to_config()``.
        recipe: What was run.
        seeds: What was seeded with what.
        results: What was measured: names to numbers, or names to such tables.
        commit: Commit of the code.
        card: Text of the model card; written from the other arguments if not given.
        l1_range: L1 strengths that the metanet was trained for, if it reads them.
        passes: How often it was applied in a row in training.

    Returns:
        The folder.

    Raises:
        ValueError: No path, an unsafe name, an argument that json cannot hold, weights that are not finite,
            a metanet without a registered name, or a folder with other files.
        OSError: The disk is full or the folder cannot be written; what was there before is still there.
    """
    check_target(folder)
    check_passes(passes)
    description: dict[str, Any] = {
        "format": FORMAT,
        "name": checked_name(name),
        "metanet": {"name": metanet.name, "config": metanet.config},
        "spec": json.loads((spec or metanet.spec).to_json()),
        "problem": dict(problem),
        "family": dict(family),
        "recipe": recipe if isinstance(recipe, str) else dict(recipe),
        "seeds": dict(seeds),
        "results": dict(results),
        "l1_range": None if l1_range is None else l1_range.to_config(),
        "passes": passes,
        "commit": commit,
        "versions": versions(),
    }
    if not metanet.name:
        raise ValueError(
            f"metanet: {type(metanet).__name__} has no registered name; decorate it with register_metanet"
        )

    def text(described: dict[str, Any]) -> str:
        return card if card is not None else model_card(described, parameter_count(metanet))

    return write_release(folder, metanet, description, text, "metanet")


def load_release(source: str | os.PathLike[str]) -> Release:
    """Read a release checkpoint and check that it is whole and unaltered.

    Args:
        source: A folder; else the name of a shipped checkpoint, see [list_shipped][amortopt.list_shipped];
            else a Hugging Face hub id ``"owner/name"``, downloaded and cached by ``huggingface_hub``.

    Returns:
        The release, its metanet on the CPU and in eval mode.

    Raises:
        FileNotFoundError: No such checkpoint, or one of its files is missing.
        ValueError: A file was truncated or altered, has another format version, or does not fit the others.
    """
    folder = locate(source, _shipped_root(), "metanet")
    config = read_config(folder / CONFIG, "metanet", FORMAT, ("spec", *_DESCRIPTIONS))
    metanet = _metanet_of(config, folder / WEIGHTS)
    return Release(
        metanet=metanet,
        name=config["name"],
        **{key: config[key] for key in _DESCRIPTIONS},
        card=card_of(folder),
        sha256=config["sha256"][WEIGHTS],
        versions=config["versions"],
        # Checkpoints of earlier versions do not record these two.
        l1_range=L1Range.from_config(config["l1_range"]) if config.get("l1_range") else None,
        passes=config.get("passes", 1),
    )


def list_shipped(kind: Kind = "metanet") -> list[str]:
    """Names of the checkpoints that come with the package.

    Args:
        kind: ``"metanet"``, those for [ScaleGMNOptimizer][amortopt.ScaleGMNOptimizer]; or ``"rule"``, those
            for [UNFOptimizer][amortopt.UNFOptimizer].

    Returns:
        The names, sorted.
    """
    return shipped(_shipped_root(), kind)


def _shipped_root() -> Path:
    return shipped_root(Path(__file__).resolve().parents[1])


def _metanet_of(config: dict[str, Any], path: Path) -> Metanet:
    state = read_weights(path, config)
    try:
        spec = SymmetrySpec.from_json(config["spec"])
        # Its initial weights are replaced at once: the caller's random state is not to notice.
        with torch.random.fork_rng(devices=[]):
            metanet = make_metanet(config["metanet"]["name"], spec, **config["metanet"]["config"])
        dtypes = {value.dtype for value in state.values() if value.is_floating_point()}
        if len(dtypes) == 1:
            metanet.to(dtypes.pop())
        metanet.load_state_dict(state)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        unfit(path, config, error)
    return metanet.eval()


def parameter_count(metanet: Metanet) -> int:
    return sum(p.numel() for p in metanet.parameters())


def check_passes(passes: object) -> None:
    """Raise a ``ValueError`` unless ``passes`` is a positive whole number."""
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 1:
        raise ValueError(f"passes: got {passes!r}, expected a whole number >= 1")
