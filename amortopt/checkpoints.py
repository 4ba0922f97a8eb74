"""Release checkpoints: a folder with weights, everything that made them, and a model card. Never a pickle.

- ``model.safetensors``: the metanet's state
- ``config.json``: metanet and its arguments, family, task, trained L1 strengths and passes, recipe, commit,
  seeds, results, checksums
- ``README.md``: the same for people; written from the fields, never read for them
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from amortopt._types import Params
from amortopt._version import __version__
from amortopt.files import write_folder
from amortopt.l1 import L1Range
from amortopt.metanets import Metanet, make_metanet
from amortopt.model_card import model_card
from amortopt.symmetry import SymmetrySpec

FORMAT = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_DESCRIPTIONS = ("task", "family", "recipe", "seeds", "results", "commit")
_AGAIN = "get the checkpoint again, whole"


@dataclass(frozen=True, eq=False)
class Release:
    """A trained metanet and all that is known about it.

    Attributes:
        metanet: In eval mode; its ``spec`` is the family's.
        name: Name of the checkpoint.
        task: ``{"name": ..., **arguments}`` of the task that it was trained on.
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
    task: dict[str, Any]
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
    task: Mapping[str, Any],
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
        task: ``task.to_config()``.
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
    target = Path(os.path.abspath(folder))
    description: dict[str, Any] = {
        "format": FORMAT,
        "name": checked_name(name),
        "metanet": {"name": metanet.name, "config": metanet.config},
        "spec": json.loads((spec or metanet.spec).to_json()),
        "task": dict(task),
        "family": dict(family),
        "recipe": recipe if isinstance(recipe, str) else dict(recipe),
        "seeds": dict(seeds),
        "results": dict(results),
        "l1_range": None if l1_range is None else l1_range.to_config(),
        "passes": passes,
        "commit": commit,
        "versions": {"amortopt": __version__, "torch": str(torch.__version__)},
    }
    if not metanet.name:
        raise ValueError(
            f"metanet: {type(metanet).__name__} has no registered name; decorate it with register_metanet"
        )
    weights = safetensors.torch.save(_state_of(metanet))
    description = {key: _as_json(key, value) for key, value in description.items()}
    description["sha256"] = {WEIGHTS: _sha256(weights), CONFIG: _sha256(_canonical(description))}
    files = {
        WEIGHTS: weights,
        CONFIG: (json.dumps(description, indent=2, allow_nan=False) + "\n").encode(),
        CARD: (card if card is not None else model_card(description, parameter_count(metanet))).encode(),
    }
    write_folder(target, files, "the checkpoint")
    return target


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
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"source: got {type(source).__name__}, expected a folder, a shipped name or a hub id, as a string"
        )
    folder = _locate(source)
    config = _read_config(folder / CONFIG)
    path = folder / WEIGHTS
    weights = _read(path)
    expected = config["sha256"][WEIGHTS]
    if (sha256 := _sha256(weights)) != expected:
        raise ValueError(
            f"{path} was truncated or altered: got sha256 {sha256[:12]}… ({len(weights)} bytes), expected "
            f"{expected[:12]}… as in {CONFIG}; {_AGAIN}"
        )
    metanet = _metanet_of(config, path, weights)
    card = folder / CARD
    return Release(
        metanet=metanet,
        name=config["name"],
        **{key: config[key] for key in _DESCRIPTIONS},
        card=card.read_text(encoding="utf-8") if card.is_file() else None,
        sha256=sha256,
        versions=config["versions"],
        # Checkpoints of earlier versions do not record these two.
        l1_range=L1Range.from_config(config["l1_range"]) if config.get("l1_range") else None,
        passes=config.get("passes", 1),
    )


def list_shipped() -> list[str]:
    """Names of the checkpoints that come with the package, sorted."""
    root = _shipped_root()
    if not root.is_dir():
        return []
    return sorted(
        entry.name
        for entry in root.iterdir()
        if entry.is_dir() and _NAME.fullmatch(entry.name) and (entry / CONFIG).is_file()
    )


def _shipped_root() -> Path:
    """The checkout's ``checkpoints`` folder if the package runs from one, else the wheel's."""
    package = Path(__file__).resolve().parent
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "checkpoints").is_dir():
        return checkout / "checkpoints"
    return package / "_checkpoints"


def _locate(source: str | os.PathLike[str]) -> Path:
    path, text = Path(source), os.fspath(source)
    if text and path.is_dir():
        return path
    if text and path.exists():
        raise ValueError(f"source: {text} is a file, expected a checkpoint's folder; pass the folder")
    shipped = list_shipped()
    if text in shipped:
        return _shipped_root() / text
    known = f"shipped checkpoints are {', '.join(shipped) or '(none)'}"
    if isinstance(source, str) and _HUB_ID.fullmatch(source):
        return _download(source, known)
    close = difflib.get_close_matches(text.lower(), shipped, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise FileNotFoundError(
        f"source: got {text!r}, which is no folder and no shipped checkpoint{hint}; {known}; "
        "a hub id looks like 'owner/name'"
    )


def _download(hub_id: str, known: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(hub_id, allow_patterns=[WEIGHTS, CONFIG, CARD]))
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise FileNotFoundError(
            f"source: got {hub_id!r}, which is no folder here, and the hub did not give it "
            f"({type(error).__name__}: {reason}); check the id and the connection, or pass a folder; {known}"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(_read(path))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): it was truncated or altered; {_AGAIN}") from error
    version = config.get("format") if isinstance(config, dict) else None
    if version != FORMAT:
        raise ValueError(
            f"{path}: got format version {version!r}, expected {FORMAT}; use the amortopt version that wrote "
            "it, or a checkpoint of this one"
        )
    keys = ("name", "metanet", "spec", *_DESCRIPTIONS, "versions", "sha256")
    if missing := [key for key in keys if key not in config]:
        raise ValueError(f"{path} lacks {', '.join(missing)}; {_AGAIN}")
    sums = config["sha256"]
    rest = {key: value for key, value in config.items() if key != "sha256"}
    intact = isinstance(sums, dict) and sums.get(CONFIG) == _sha256(_canonical(rest))
    if not intact or not isinstance(sums.get(WEIGHTS), str):
        raise ValueError(
            f"{path} was altered: its content does not have the sha256 that it records; {_AGAIN}, or write a "
            "changed one with save_release"
        )
    checked_name(config["name"])
    return config


def _metanet_of(config: dict[str, Any], path: Path, weights: bytes) -> Metanet:
    try:
        state = safetensors.torch.load(weights)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}); {_AGAIN}") from error
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
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path.with_name(CONFIG)} does not fit {WEIGHTS} or this version of amortopt "
            f"(written by {config['versions'].get('amortopt')}, this is {__version__}): {reason}"
        ) from error
    return metanet.eval()


def _state_of(metanet: Metanet) -> Params:
    state: Params = {}
    for key, value in metanet.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"metanet: state {key!r} is {type(value).__name__}, expected tensors only")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(f"metanet: state {key!r} has NaN or infinite values; do not release this one")
        # Clones, because safetensors refuses tensors that share memory.
        state[key] = value.detach().cpu().clone().contiguous()
    return state


def parameter_count(metanet: Metanet) -> int:
    return sum(p.numel() for p in metanet.parameters())


def checked_name(name: object) -> str:
    """The name of a checkpoint; raises a ``ValueError`` if it is not safe as one."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"name: got {name!r}, expected lower-case letters, digits, '.', '_' and '-', starting with a "
            "letter or digit"
        )
    return name


def check_passes(passes: object) -> None:
    """Raise a ``ValueError`` unless ``passes`` is a positive whole number."""
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 1:
        raise ValueError(f"passes: got {passes!r}, expected a whole number >= 1")


def _as_json(key: str, value: Any) -> Any:
    """The value as json gives it back: tuples become lists, keys become text."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        advice = "use finite numbers, text, lists and dicts"
        raise ValueError(f"{key}: json cannot hold it ({error}); {advice}") from error


def check_target(folder: str | os.PathLike[str]) -> None:
    """Raise a ``ValueError`` unless a checkpoint can go to this folder without touching anything else."""
    if not isinstance(folder, (str, os.PathLike)):
        raise ValueError(f"folder: got {type(folder).__name__}, expected a path, as a string or a Path")
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ValueError(f"folder: {target} is a file, expected a folder; choose another one")
    if not target.exists():
        return
    foreign = sorted(e.name for e in target.iterdir() if e.name not in (WEIGHTS, CONFIG, CARD))
    if foreign:
        raise ValueError(
            f"folder: {target} holds other files than a checkpoint's ({', '.join(foreign[:3])}); "
            "choose a new or an empty folder"
        )


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a checkpoint has {WEIGHTS} and {CONFIG}; {_AGAIN}")
    return path.read_bytes()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
