"""benchmarks/harness/docs.py: every number in README and docs is that of the committed results."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness import docs
from benchmarks.harness.store import RESULTS, ROOT


def test_docs_show_the_committed_results() -> None:
    outdated = [str(path.relative_to(ROOT)) for path in docs.outdated()]
    assert not outdated, "run python benchmarks/harness/docs.py"


def test_docs_hold_every_block() -> None:
    shown = {name for names in docs.places(ROOT).values() for name in names}
    assert shown == set(docs.BLOCKS)


def test_docs_report_every_results_file() -> None:
    assert {path.stem for path in RESULTS.glob("*.json")} == set(docs.REPORTS)


def test_docs_renew_only_what_is_between_the_marks(tmp_path: Path) -> None:
    begin, end = docs.marks("gauge")
    page = tmp_path / "docs" / "deep" / "page.md"
    page.parent.mkdir(parents=True)
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    changes = docs.outdated(tmp_path)
    assert changes == {page: f"before\n{docs.block('gauge')}\nafter\n"}
    page.write_text(changes[page])
    assert not docs.outdated(tmp_path)


def test_docs_refuse_a_block_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(docs.marks("gauge")[0])
    with pytest.raises(ValueError, match=r"without <!-- gauge:end --> after it"):
        docs.places(tmp_path)


@pytest.mark.parametrize("name", docs.BLOCKS)
def test_docs_blocks_are_tables_with_equally_long_rows(name: str) -> None:
    tables = [part for part in docs.block(name).split("\n\n") if "\n|---|" in part]
    assert tables
    for table in tables:
        assert len({line.count(" |") for line in table.splitlines() if line.startswith("| ")}) == 1
