"""The site: every public name has a place in the API reference, and the build has no warnings."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
API = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "api").glob("*.md")))
ROOMS = [
    "amortopt",
    "symmetry",
    "metanets",
    "reading",
    "tasks",
    "tasks.problem_families",
    "training",
    "zoo",
    "release",
    "optim",
    "testing",
]
TOOLS = ("mkdocs", "material", "mkdocstrings", "latex2mathml")


def documented() -> set[str]:
    """Last parts of the names on the API pages; a whole module's name stands for all that it defines."""
    names = set()
    for identifier in re.findall(r"^::: (\S+)", API, re.MULTILINE):
        if importlib.util.find_spec(identifier) if identifier.islower() and _is_module(identifier) else None:
            module = importlib.import_module(identifier)
            names |= set(getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]))
        names.add(identifier.rpartition(".")[2])
    return names


def _is_module(identifier: str) -> bool:
    try:
        return importlib.util.find_spec(identifier) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_are_in_the_api_reference(room: str) -> None:
    module = importlib.import_module(room if room == "amortopt" else f"amortopt.{room}")
    public = {
        name
        for name in getattr(module, "__all__", ())
        if not isinstance(getattr(module, name), ModuleType) and name != "__version__"
    }
    assert sorted(public - documented()) == [], "give each a line on a page of docs/api/"


def test_navigation_holds_every_page() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = re.findall(r"[\w-]+(?:/[\w-]+)*\.md", navigation)
    docs = ROOT / "docs"
    pages = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}
    assert pages - set(listed) == {page for page in pages if page.startswith("results/files/")}
    assert set(listed) - pages == {"project/changelog.md", "project/contributing.md"}  # made by a hook


def test_contributing_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:amortopt|tests|docs|benchmarks)/[\w./-]*)`", text)
    assert named and not [path for path in named if not (ROOT / path).exists()]


def test_docstrings_have_the_one_syntax_of_cross_references() -> None:
    files = {path: path.read_text(encoding="utf-8") for path in (ROOT / "amortopt").rglob("*.py")}
    assert not [
        str(path) for path, text in files.items() if re.search(r":(meth|class|func|attr|mod):`", text)
    ]


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(tool) for tool in TOOLS), reason="tools of the site: amortopt[docs]"
)
def test_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    html = "\n".join(page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html"))
    assert "<math" in html
    # Nothing is loaded from elsewhere: no scripts, styles, fonts or pictures with an address.
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?://[^\"]+", html)
