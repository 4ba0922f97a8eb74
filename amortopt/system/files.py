"""Files and folders written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path


def write_whole(path: Path, data: bytes, advice: str = "what was there before is kept") -> None:
    """Write under a temporary name beside ``path``, then rename.

    Args:
        path: The file; its folder is made if it is not there, a file of that name is replaced.
        data: Its content.
        advice: End of the message if that fails.

    Raises:
        OSError: With the cause and the file, also for a folder or a device; what was there before is still
            there.
    """
    if path.exists() and not path.is_file():
        raise OSError(
            errno.EINVAL, f"could not write {path}: it is there and no regular file; choose another name"
        )
    # The host belongs to the name: processes on several machines write into one folder.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_through(temporary, data)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write {path}: {error.strerror or error} ({len(data) / 1e6:.1f} MB); nothing "
            f"half-written is left and {advice}",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(target: Path, files: Mapping[str, bytes], what: str) -> None:
    """Write a folder of files, beside the target, then rename: a reader sees the old or the whole new one.

    Args:
        target: The folder; one that is there is replaced, with all that it holds.
        files: File name -> content.
        what: What the folder is, for the message.

    Raises:
        OSError: The disk is full or the folder cannot be written; what was there before is still there.
    """
    fresh = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name, data in files.items():
            _write_through(fresh / name, data)
        if target.exists():
            os.replace(target, old)
        os.replace(fresh, target)
    except OSError as error:
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise OSError(
            error.errno,
            f"could not write {what} {target}: {error.strerror or error}; nothing half-written is "
            "left and what was there before is kept: make room (or mend access) and save again",
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def _write_through(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk: a rename may otherwise overtake the content."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def shipped_folder(name: str) -> Path:
    """The folder ``checkpoints`` or ``recipes``: of the checkout that the package is in, or of the wheel."""
    package = Path(__file__).parents[1]
    checkout = package.parent / name
    if (package.parent / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    return package / f"_{name}"
