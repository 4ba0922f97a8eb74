"""Files written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write under a temporary name beside ``path``, then rename.

    Args:
        path: The file; its folder is made if it is not there, a file of that name is replaced.
        data: Its content.

    Raises:
        OSError: With the cause and the file, also for a folder or a device; what was there before is still
            there.
    """
    if path.exists() and not path.is_file():
        raise OSError(
            errno.EINVAL, f"could not write {path}: it is there and no regular file; choose another name"
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write {path}: {error.strerror or error}; nothing half-written is left and what was "
            "there before is kept",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
