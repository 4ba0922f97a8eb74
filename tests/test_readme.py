"""The README's snippets and commands run; tests/benchmarks/test_docs.py holds its numbers to the results."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.docs.commands import SMALL, kind, run_command
from tests.docs.pages import commands, fences, run_page

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = commands(README)
OURS = [command for command in COMMANDS if "amortopt" in command.split()[0]]


def test_readme_is_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= 150


def test_readme_snippets_print_what_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(ROOT / "README.md")


def test_readme_example_is_a_dozen_lines_with_a_class_of_the_reader() -> None:
    first = fences(README, "python")[0].text
    lines = [line for line in first.splitlines() if line.strip()]
    assert len(lines) <= 12 and "F.tanh" in first and "one_shot" in lines[-1]


def test_commands_of_all_kinds_are_run_somewhere() -> None:
    pages = [README, *(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))]
    shown = {kind(c) for page in pages for c in commands(page) if "amortopt" in c.split()[0]}
    assert shown == set(SMALL)


@pytest.mark.parametrize("command", OURS)
def test_readme_command_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    assert run_command(command, tmp_path) == 0


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_readme_make_target_exists(command: str) -> None:
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_readme_set_up_is_that_of_the_makefile() -> None:
    install = next(c for c in COMMANDS if "pip install" in c).partition("-m pip ")[2]
    assert install in (ROOT / "Makefile").read_text()


def test_readme_links_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert not [link for link in links if not (ROOT / link).exists()]
