"""Files are written whole or not at all, and only over regular files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from amortopt.system.files import write_whole


def test_write_whole_replaces_a_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "a", b"1")
    write_whole(tmp_path / "new" / "a", b"2")
    assert [path.read_bytes() for path in (tmp_path / "new").iterdir()] == [b"2"]


def test_write_whole_refuses_what_is_no_regular_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for target in (pipe, tmp_path):
        with pytest.raises(OSError, match="no regular file"):
            write_whole(target, b"1")
    assert pipe.is_fifo()
