"""Tables in the README: between marks, made from results files."""

from __future__ import annotations

from pathlib import Path

from amortopt.system.files import write_whole


def rewrite_readme(path: Path, block: str) -> None:
    """Put a block in the place of the one with the same marks.

    Args:
        path: The README.
        block: Its first and its last line are the marks.

    Raises:
        ValueError: The README lacks the marks.
    """
    begin, *_, end = block.splitlines()
    text = path.read_text(encoding="utf-8")
    before, found, rest = text.partition(begin)
    _, finish, after = rest.partition(end)
    if not found or not finish:
        raise ValueError(f"{path} lacks the marks {begin} and {end}; put them where the results belong")
    write_whole(path, (before + block + after).encode())
