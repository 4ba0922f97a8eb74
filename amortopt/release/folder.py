"""A folder with weights, everything that made them, and a model card: what releases share. Never a pickle.

- ``model.safetensors``: the state of a module
- ``config.json``: how to build the module, what was run, what was measured, checksums
- ``README.md``: the same for people; written from the fields, never read for them
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from amortopt._types import Params
from amortopt._version import __version__
from amortopt.system.extras import needed_for
from amortopt.system.files import write_folder

Kind: TypeAlias = Literal["metanet", "rule"]
"""What a release holds, a metanet for one pass or an update rule; also its key in ``config.json``."""
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
AGAIN = "get the checkpoint again, whole"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_USED_WITH: dict[Kind, str] = {
    "metanet": "a metanet's checkpoint: use amortopt.load_release or ScaleGMNOptimizer.from_pretrained",
    "rule": "an update rule's: use amortopt.load_rule or UNFOptimizer.from_pretrained",
}


def versions() -> dict[str, str]:
    """Versions that write a release."""
    return {"amortopt": __version__, "torch": str(torch.__version__)}


def write_release(
    folder: str | os.PathLike[str],
    module: nn.Module,
    description: Mapping[str, Any],
    card: Callable[[dict[str, Any]], str],
    kind: Kind,
) -> Path:
    """Write a release, whole or not at all.

    Args:
        folder: A new or empty folder, or one that holds only a release, which is replaced.
        module: Gives the weights.
        description: Content of ``config.json``, without the checksums.
        card: Content of ``config.json`` -> text of the model card.
        kind: What is released.

    Returns:
        The folder.

    Raises:
        ValueError: Fields that json cannot hold, weights that are not finite, or a folder with other files.
        OSError: The folder cannot be written; what was there before is still there.
    """
    check_target(folder)
    target = Path(os.path.abspath(folder))
    weights = safetensors.torch.save(state_of(module, kind))
    described = {key: _as_json(key, value) for key, value in description.items()}
    described["sha256"] = {WEIGHTS: sha256(weights), CONFIG: sha256(canonical(described))}
    files = {
        WEIGHTS: weights,
        CONFIG: (json.dumps(described, indent=2, allow_nan=False) + "\n").encode(),
        CARD: card(described).encode(),
    }
    write_folder(target, files, "the checkpoint")
    return target


def read_config(path: Path, kind: Kind, version: int, keys: Sequence[str]) -> dict[str, Any]:
    """Read ``config.json`` and check it.

    Args:
        path: The file.
        kind: What is wanted.
        version: Format version that is read.
        keys: What has to be in it beside ``kind``.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It was altered, or is of another kind or version.
    """
    try:
        config = json.loads(_read(path))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): it was truncated or altered; {AGAIN}") from error
    if (found := _kind(config)) not in (None, kind):
        raise ValueError(f"source: {path.parent} is {_USED_WITH[found]}")
    got = config.get("format") if isinstance(config, dict) else None
    if got != version:
        raise ValueError(
            f"{path}: got format version {got!r}, expected {version}; use the amortopt version that wrote "
            "it, or a checkpoint of this one"
        )
    if missing := [key for key in ("name", kind, *keys, "versions", "sha256") if key not in config]:
        raise ValueError(f"{path} lacks {', '.join(missing)}; {AGAIN}")
    sums = config["sha256"]
    rest = {key: value for key, value in config.items() if key != "sha256"}
    intact = isinstance(sums, dict) and sums.get(CONFIG) == sha256(canonical(rest))
    if not intact or not isinstance(sums.get(WEIGHTS), str):
        raise ValueError(
            f"{path} was altered: its content does not have the sha256 that it records; {AGAIN}, or write a "
            f"changed one with {'save_release' if kind == 'metanet' else 'save_rule'}"
        )
    checked_name(config["name"])
    return config


def read_weights(path: Path, config: Mapping[str, Any]) -> Params:
    """Read the weights and check them against their checksum.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It was truncated or altered, or is no safetensors file.
    """
    weights = _read(path)
    expected = config["sha256"][WEIGHTS]
    if (found := sha256(weights)) != expected:
        raise ValueError(
            f"{path} was truncated or altered: got sha256 {found[:12]}… ({len(weights)} bytes), expected "
            f"{expected[:12]}… as in {CONFIG}; {AGAIN}"
        )
    try:
        return safetensors.torch.load(weights)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}); {AGAIN}") from error


def unfit(path: Path, config: Mapping[str, Any], error: Exception) -> NoReturn:
    """Raise a ``ValueError``: configuration and weights could not be brought together."""
    reason = " ".join(str(error).split())
    raise ValueError(
        f"{path.with_name(CONFIG)} does not fit {WEIGHTS} or this version of amortopt "
        f"(written by {config['versions'].get('amortopt')}, this is {__version__}): {reason}"
    ) from error


def card_of(folder: Path) -> str | None:
    """Text of the model card; None if there is none."""
    card = folder / CARD
    return card.read_text(encoding="utf-8") if card.is_file() else None


def shipped_root(package: Path) -> Path:
    """The checkout's ``checkpoints`` folder if the package runs from one, else the wheel's."""
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "checkpoints").is_dir():
        return checkout / "checkpoints"
    return package / "_checkpoints"


def shipped(root: Path, kind: Kind) -> list[str]:
    """Names of the releases of a kind in a folder, sorted."""
    if not root.is_dir():
        return []
    return sorted(
        entry.name
        for entry in root.iterdir()
        if entry.is_dir()
        and _NAME.fullmatch(entry.name)
        and (entry / CONFIG).is_file()
        and _kind_at(entry / CONFIG) == kind
    )


def locate(source: str | os.PathLike[str], root: Path, kind: Kind) -> Path:
    """The folder of a release.

    Args:
        source: A folder; else the name of a shipped release; else a hub id, which is downloaded.
        root: Where shipped releases are.
        kind: What is wanted, for the message; what is found may be another.

    Raises:
        FileNotFoundError: No such release.
        ValueError: No path, or a file.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"source: got {type(source).__name__}, expected a folder, a shipped name or a hub id, as a string"
        )
    path, text = Path(source), os.fspath(source)
    if text and path.is_dir():
        return path
    if text and path.exists():
        raise ValueError(f"source: {text} is a file, expected a checkpoint's folder; pass the folder")
    if text and any(text in shipped(root, each) for each in _USED_WITH):
        return root / text
    names = shipped(root, kind)
    what = "checkpoints" if kind == "metanet" else "rules"
    known = f"shipped {what} are {', '.join(names) or '(none)'}"
    if isinstance(source, str) and _HUB_ID.fullmatch(source):
        return _download(source, known)
    close = difflib.get_close_matches(text.lower(), names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise FileNotFoundError(
        f"source: got {text!r}, which is no folder and no shipped checkpoint{hint}; {known}; "
        "a hub id looks like 'owner/name'"
    )


def _download(hub_id: str, known: str) -> Path:
    with needed_for(f"source: {hub_id!r} is no folder here, and reading it from the hub", extra="hub"):
        from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(hub_id, allow_patterns=[WEIGHTS, CONFIG, CARD]))
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise FileNotFoundError(
            f"source: got {hub_id!r}, which is no folder here, and the hub did not give it "
            f"({type(error).__name__}: {reason}); check the id and the connection, or pass a folder; {known}"
        ) from error


def _kind(config: Any) -> Kind | None:
    if not isinstance(config, dict):
        return None
    return "metanet" if "metanet" in config else "rule" if "rule" in config else None


def _kind_at(path: Path) -> Kind:
    try:
        return _kind(json.loads(path.read_bytes())) or "metanet"
    except (OSError, ValueError):
        return "metanet"  # as ever: a broken one is listed, and loading it says what is wrong


def state_of(module: nn.Module, kind: Kind) -> Params:
    """State as tensors on the CPU that share no memory.

    Raises:
        ValueError: Something in it is no tensor, or not finite.
    """
    state: Params = {}
    for key, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{kind}: state {key!r} is {type(value).__name__}, expected tensors only")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(f"{kind}: state {key!r} has NaN or infinite values; do not release this one")
        # Clones, because safetensors refuses tensors that share memory.
        state[key] = value.detach().cpu().clone().contiguous()
    return state


def checked_name(name: object) -> str:
    """The name of a checkpoint; raises a ``ValueError`` if it is not safe as one."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"name: got {name!r}, expected lower-case letters, digits, '.', '_' and '-', starting with a "
            "letter or digit"
        )
    return name


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
        raise FileNotFoundError(f"{path} is missing: a checkpoint has {WEIGHTS} and {CONFIG}; {AGAIN}")
    return path.read_bytes()


def canonical(value: Any) -> bytes:
    """JSON text that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def sha256(data: bytes) -> str:
    """Checksum as hexadecimal text."""
    return hashlib.sha256(data).hexdigest()
