"""Guide, how-to and the first page: snippets print what they show, commands run, links lead somewhere."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from amortopt.symmetry.rules import base as rules
from amortopt.system.registry import Registry
from tests.docs.commands import run_command
from tests.docs.pages import commands, fences, run_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [DOCS / "index.md", *sorted((DOCS / "guide").glob("*.md")), *sorted((DOCS / "how-to").glob("*.md"))]
WITH_CODE = [page for page in PAGES if fences(page.read_text(encoding="utf-8"), "python")]
COMMANDS = sorted(
    {c for page in PAGES for c in commands(page.read_text(encoding="utf-8")) if c.startswith("amortopt ")}
)


def name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of all registries, so that what a page registers is gone after it.

    What the package itself registers when meta-training is imported has to be there before.
    """
    importlib.import_module("amortopt.meta.fit")
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    modules = [module for key, module in sys.modules.items() if key.startswith("amortopt")]
    for registry in (value for module in modules for value in vars(module).values()):
        if isinstance(registry, Registry):
            monkeypatch.setattr(registry, "_makers", dict(registry._makers))


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_page_prints_what_it_shows(
    page: Path, registries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page)


@pytest.mark.parametrize("command", COMMANDS)
def test_page_command_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    assert run_command(command, tmp_path) == 0


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=name)
def test_page_links_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert all(link.startswith("project/") for link in missing)  # made by a hook of the site
