"""States of a run, from which it goes on after an interruption: written whole, checked before use."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from amortopt.system.files import write_whole

LAST = "last.ckpt"


class WholeStateIO(TorchCheckpointIO):
    """Writes a state beside its place, then renames it: a killed run or a full disk leaves the one before.

    Lightning's default writes into the system's temporary folder and moves the file, which is a copy where
    that folder is on another file system.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a state; called by the Trainer in the first process."""
        for leftover in Path(path).parent.glob(f".{Path(path).name}.*.tmp"):
            leftover.unlink()  # of a run that was killed while it wrote
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(Path(path), buffer.getvalue())


def state_to_resume(folder: Path, ckpt_path: str | None) -> Path | None:
    """The state that a run starts from.

    Args:
        folder: Folder of the run.
        ckpt_path: ``"last"``, the path of a state, or None to start anew.

    Returns:
        The file; None to start anew.

    Raises:
        ValueError: There is no such file, it is damaged, or it would be overwritten.
    """
    last = folder / LAST
    if ckpt_path is None:
        if last.exists():
            raise ValueError(
                f"name: {folder} holds the state of an earlier run; pass --ckpt_path last to go on with it, "
                f"another --name or --runs to keep it, or delete {last}"
            )
        return None
    path = last if ckpt_path == "last" else Path(ckpt_path)
    if not path.is_file():
        advice = "pass --ckpt_path last" if last.exists() else "leave it out to start anew"
        raise ValueError(f"ckpt_path: got {ckpt_path!r}, but there is no file {path}; {advice}")
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"ckpt_path: {path} is no training state, or was cut off ({type(error).__name__}); "
            f"delete it and start anew without --ckpt_path"
        ) from error
    return path
