"""Runs the snippets of a Markdown page in order, and compares what they print with what the page shows."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import sys
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import ModuleType

_FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Fence:
    """A fenced block: its language, its text, its first line, and the text block right below it."""

    language: str
    text: str
    line: int
    output: str | None = None


def fences(page: str, language: str) -> list[Fence]:
    """Blocks of a language; a block ``text`` right below one is its output."""
    matches = list(_FENCE.finditer(page))
    found = []
    for match, following in zip_longest(matches, matches[1:]):
        output = None
        if following and following[1] == "text" and not page[match.end() : following.start()].strip():
            output = following[2]
        line = page[: match.start()].count("\n") + 1
        found.append(Fence(match[1], match[2], line, output))
    return [fence for fence in found if fence.language == language]


def commands(page: str) -> list[str]:
    """Lines of the page's bash blocks, without comments."""
    lines = [line for fence in fences(page, "bash") for line in fence.text.splitlines()]
    return [command for line in lines if (command := line.partition("#")[0].strip())]


def run_page(path: Path) -> None:
    """Run the Python blocks of a page as one program.

    Raises:
        AssertionError: A block prints something else than the page shows.
    """
    # Dataclasses look up the module that they are defined in.
    module = sys.modules["page"] = ModuleType("page")
    try:
        for fence in fences(path.read_text(encoding="utf-8"), "python"):
            printed = io.StringIO()
            # Blank lines in front, so that a traceback has the page's own line numbers.
            code = compile("\n" * fence.line + fence.text, str(path), "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, module.__dict__)
            if fence.output is not None:
                same = doctest.OutputChecker().check_output(fence.output, printed.getvalue(), _FLAGS)
                assert same, f"{path}:{fence.line} prints\n{printed.getvalue()}\nbut shows\n{fence.output}"
    finally:
        del sys.modules["page"]
