"""The files of a release: where they are, how they are written, what is checked before they are believed.

- ``model.safetensors``: the state of a module
- ``config.json``: how to build the module, what was run, what was measured, checksums
- ``README.md``: the model card; written from the fields of ``config.json``, never read for them
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from amortopt._types import Params
from amortopt.release.fields import NAME, Kind, check_fields
from amortopt.system.extras import needed_for
from amortopt.system.files import shipped_folder, write_folder

FORMAT = 2
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_AGAIN = "get the checkpoint again, whole"
_MAX_CONFIG = 16 * 2**20  # bytes; those of the shipped checkpoints have about 10,000
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{64}")


def write_release(
    folder: str | os.PathLike[str], weights: bytes, config: Mapping[str, Any], card: str
) -> Path:
    """Write a release, whole or not at all: the contents of its files, ``config.json`` without the checksums.

    Raises:
        ValueError: The folder holds other files.
        OSError: The folder cannot be written; what was there before is still there.
    """
    check_target(folder)
    check_fields(config, CONFIG)
    target = Path(os.path.abspath(folder))
    signed = {**config, "sha256": {WEIGHTS: sha256(weights), CONFIG: sha256(canonical(config))}}
    text = json.dumps(signed, indent=2, allow_nan=False) + "\n"
    write_folder(target, {WEIGHTS: weights, CONFIG: text.encode(), CARD: card.encode()}, "the checkpoint")
    return target


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json``; its checksum, format and the type of every field are checked.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It was truncated or altered, is of another format, or a field is not what it should be.
    """
    path = folder / CONFIG
    if path.is_file() and path.stat().st_size > _MAX_CONFIG:
        raise ValueError(f"{path}: got {path.stat().st_size} bytes, expected at most {_MAX_CONFIG}")
    try:
        config = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}): it was truncated or altered; {_AGAIN}") from error
    version = config.get("format") if isinstance(config, dict) else None
    if version != FORMAT:
        raise ValueError(
            f"{path}: got format version {version!r}, expected {FORMAT}; read it with the amortopt version "
            "that wrote it, or get a checkpoint of this one"
        )
    sums = config.pop("sha256", None)
    signed = isinstance(sums, dict) and all(
        isinstance(sums.get(name), str) and _HEX.fullmatch(sums[name]) for name in (WEIGHTS, CONFIG)
    )
    if not signed or sums[CONFIG] != sha256(canonical(config)):
        raise ValueError(
            f"{path} was altered: its content does not have the sha256 that it records; {_AGAIN}, or write a "
            "changed one with save_release"
        )
    check_fields(config, str(path))
    return {**config, "sha256": sums}


def read_state(folder: Path, config: Mapping[str, Any]) -> Params:
    """Read the weights; their checksum is checked first.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It was truncated or altered, or is no safetensors file.
    """
    path, expected = folder / WEIGHTS, config["sha256"][WEIGHTS]
    weights = _read(path)
    if (actual := sha256(weights)) != expected:
        raise ValueError(
            f"{path} was truncated or altered: got sha256 {actual[:12]}… ({len(weights)} bytes), expected "
            f"{expected[:12]}… as in {CONFIG}; {_AGAIN}"
        )
    try:
        return safetensors.torch.load(weights)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}); {_AGAIN}") from error


def read_card(folder: Path) -> str | None:
    """Text of the model card, with a replacement character for what is no UTF-8; None if there is none."""
    card = folder / CARD
    return card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None


def list_shipped(kind: Kind = "metanet") -> list[str]:
    """Names of the checkpoints that come with the package, sorted.

    Args:
        kind: ``"metanet"``, those for [ScaleGMNOptimizer][amortopt.ScaleGMNOptimizer]; ``"rule"``, those for
            [UNFOptimizer][amortopt.UNFOptimizer]; or ``"functional"``.
    """
    root = shipped_folder("checkpoints")
    names = []
    for name in sorted(os.listdir(root)) if root.is_dir() else ():
        try:
            config = json.loads((root / name / CONFIG).read_bytes()) if NAME.fullmatch(name) else None
        except (OSError, ValueError):
            continue
        if isinstance(config, dict) and config.get("kind") == kind:
            names.append(name)
    return names


def locate(source: str | os.PathLike[str], kind: Kind | None) -> Path:
    """The folder of a release.

    Args:
        source: A folder; else the name of a shipped release; else a hub id, which is downloaded.
        kind: What is wanted, for the message; None for any.

    Raises:
        FileNotFoundError: No such release.
        ValueError: No path, or a file.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"source: got {type(source).__name__}, expected a folder, a shipped name or a hub id, as a string"
        )
    path, text, root = Path(source), os.fspath(source), shipped_folder("checkpoints")
    if text and path.is_dir():
        return path
    if text and path.exists():
        raise ValueError(f"source: {text} is a file, expected a checkpoint's folder; pass the folder")
    if NAME.fullmatch(text) and (root / text / CONFIG).is_file():
        return root / text
    names = [name for each in get_args(Kind) if kind in (None, each) for name in list_shipped(each)]
    known = f"shipped {kind or 'checkpoint'}s are {', '.join(names) or '(none)'}"
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


def state_bytes(module: nn.Module, kind: Kind) -> bytes:
    """The state of a module as a safetensors file.

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
    return safetensors.torch.save(state)


def check_target(folder: str | os.PathLike[str]) -> None:
    """Raise a ``ValueError`` unless a checkpoint can go to this folder without touching anything else."""
    if not isinstance(folder, (str, os.PathLike)):
        raise ValueError(f"folder: got {type(folder).__name__}, expected a path, as a string or a Path")
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ValueError(f"folder: {target} is a file, expected a folder; choose another one")
    foreign = sorted(set(os.listdir(target) if target.exists() else ()) - {WEIGHTS, CONFIG, CARD})
    if foreign:
        raise ValueError(
            f"folder: {target} holds other files than a checkpoint's ({', '.join(foreign[:3])}); "
            "choose a new or an empty folder"
        )


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as json gives them back: tuples become lists, keys become text.

    Raises:
        ValueError: A field that json cannot hold.
    """
    fields = {}
    for key, value in config.items():
        try:
            fields[key] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            advice = "use finite numbers, text, lists and dicts"
            raise ValueError(f"{key}: json cannot hold it ({error}); {advice}") from error
    return fields


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a checkpoint has {WEIGHTS} and {CONFIG}; {_AGAIN}")
    return path.read_bytes()


def canonical(value: Any) -> bytes:
    """JSON text that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def sha256(data: bytes) -> str:
    """Checksum as hexadecimal text."""
    return hashlib.sha256(data).hexdigest()
