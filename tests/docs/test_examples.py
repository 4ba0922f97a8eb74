"""The programs in examples/ run, and open with their purpose, their command and the time that it takes."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
NEEDS = {"prove_a_symmetry": "torchvision"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_opens_with_purpose_command_and_time(example: Path) -> None:
    opening = ast.get_docstring(ast.parse(example.read_text(encoding="utf-8"))) or ""
    assert re.match(r"[A-Z].*\.\n\n    python examples/" + example.name, opening)
    assert re.search(r"Measured: [\d.]+ (s|minutes)", opening)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_with_the_small_options_that_it_names(
    example: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(NEEDS.get(example.stem, "torch"))
    opening = ast.get_docstring(ast.parse(example.read_text(encoding="utf-8"))) or ""
    commands = re.findall(rf"python examples/{example.name}(.*)", opening)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example), *shlex.split(commands[-1].partition("#")[0])])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out
