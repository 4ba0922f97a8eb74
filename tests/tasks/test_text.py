"""Text problems: symbols, windows and parts; texts from files and archives."""

from __future__ import annotations

import hashlib
import io
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from amortopt.tasks import Lm1b, PydocText, TextProblem, make_problem, text
from amortopt.tasks.text import VOCABULARY, decode, encode
from tests.tasks import archives

TEXT = "".join(f"Sentence {i}: a fox \N{EM DASH} or \u00e9\U0001f98a?\n" for i in range(100))


def plain(text: str) -> str:
    """The text as its symbols know it, character by character."""
    return "".join(c if c in VOCABULARY else VOCABULARY[-1] for c in text)


def from_file(tmp_path: Path, text: str = TEXT, **arguments: Any) -> TextProblem:
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8", newline="")
    problem = make_problem("text_file", path=path, **arguments)
    assert isinstance(problem, TextProblem)
    return problem


def test_vocabulary_has_every_printable_character_once() -> None:
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 97 == PydocText().objective.num_classes
    assert encode(VOCABULARY).tolist() == list(range(97))


def test_encode_knows_each_character_and_one_symbol_for_all_others() -> None:
    assert decode(encode(TEXT)) == plain(TEXT)
    assert encode("\t\r\x7f\x80\U0001f98a\ud800").tolist() == [96] * 6
    assert encode("").shape == (0,)


def test_pydoc_text_is_some_half_million_characters_of_english() -> None:
    problem = PydocText()
    assert 300_000 < len(problem.symbols) < 1_000_000
    assert (problem.symbols == 96).float().mean() < 0.01
    assert "statement" in decode(problem.symbols)


def test_text_targets_are_the_inputs_one_character_on(tmp_path: Path) -> None:
    for which in ("train", "val", "test"):
        split = from_file(tmp_path, length=7).split(which)
        assert split.x.dtype == split.y.dtype == torch.int64
        assert split.x.shape == split.y.shape and split.x.shape[1:] == (7,)
        assert torch.equal(split.x[:, 1:], split.y[:, :-1])
        assert torch.equal(split.x[1:, 0], split.y[:-1, -1])


def test_text_parts_are_contiguous_and_share_no_character(tmp_path: Path) -> None:
    problem = from_file(tmp_path, length=7)
    text, parts = plain(TEXT), {w: problem.split(w) for w in ("train", "val", "test")}
    cut = {w: decode(s.x.flatten()) for w, s in parts.items()}
    starts = [text.index(part) for part in cut.values()]
    assert starts[0] == 0 and starts == sorted(starts)
    for i, part in enumerate(cut.values()):
        end = starts[i + 1] if i < 2 else len(text)
        # No more than a window is lost at the end of a part.
        assert end - 7 <= starts[i] + len(part) < end
    assert starts[1] / len(text) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("length", [0, -1, 2.0, "8"])
def test_text_length_is_checked(length: Any) -> None:
    with pytest.raises(ValueError, match="length: got"):
        PydocText(length=length)


def test_text_too_short_for_a_window_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="length: got 32 for a val part of 10 characters, expected at m"):
        from_file(tmp_path, "a" * 100).split("val")


def test_text_source_tells_texts_apart(tmp_path: Path) -> None:
    first = from_file(tmp_path, "a" * 100).source
    assert "text.txt, 100 characters, sha256 " in first
    other = tmp_path / "other"
    other.mkdir()
    assert from_file(other, "b" * 100).source != first
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in PydocText().source


def test_text_file_reads_a_folder_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("later" * 50)
    (tmp_path / "a.txt").write_text("first" * 50)
    (tmp_path / "c.bin").write_bytes(b"\xff" * 50)
    problem = make_problem("text_file", path=tmp_path)
    assert isinstance(problem, TextProblem)
    assert decode(problem.symbols) == "first" * 50 + "later" * 50


@pytest.mark.parametrize("characters", [1, 255, 3_000_000])
def test_text_file_reads_no_more_than_asked_for(tmp_path: Path, characters: int) -> None:
    text = "\N{EM DASH}ab" * 500_000  # more than a chunk, whose border is inside a character
    problem = from_file(tmp_path, text, characters=characters)
    assert decode(problem.symbols) == plain(text[:characters])


def test_text_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"ab\xff\xfe" * 100)
    with pytest.raises(ValueError, match=r"text\.txt: expected UTF-8 text"):
        make_problem("text_file", path=tmp_path / "text.txt").split("train")


@pytest.mark.parametrize("path", ["missing", "."])
def test_text_file_that_is_not_there_says_what_to_pass(tmp_path: Path, path: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file and no folder with \*\.txt"):
        make_problem("text_file", path=tmp_path / path).split("train")


@pytest.mark.parametrize("characters", [0, -5, 1.5])
def test_text_characters_are_checked(characters: Any) -> None:
    with pytest.raises(ValueError, match="characters: got"):
        make_problem("lm1b", characters=characters)


@pytest.mark.parametrize("packed", [True, False])
def test_lm1b_reads_the_start_of_its_first_part(tmp_path: Path, packed: bool) -> None:
    archives.write_lm1b(tmp_path / "data", TEXT, packed=packed)
    problem = Lm1b(tmp_path / "data", characters=1000)
    assert decode(problem.symbols) == plain(TEXT[:1000])
    # Nothing of the archive is unpacked, whatever its members are called.
    assert {p.name for p in tmp_path.iterdir()} == {"data"}


def test_lm1b_keeps_what_it_read_from_the_archive(tmp_path: Path) -> None:
    archive = archives.write_lm1b(tmp_path, TEXT, packed=True)
    first = Lm1b(tmp_path, characters=1001).symbols
    archive.unlink()
    text._read_lm1b.cache_clear()
    assert torch.equal(Lm1b(tmp_path, characters=1001).symbols, first)


def test_lm1b_missing_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"statmt\.org.*download=True"):
        Lm1b(tmp_path).split("train")


def test_lm1b_archive_without_the_part_or_cut_off_is_refused(tmp_path: Path) -> None:
    archive = archives.write_lm1b(tmp_path, TEXT, name="other", packed=True)
    with pytest.raises(ValueError, match="has no file"):
        Lm1b(tmp_path).split("train")
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"not a complete tar\.gz archive"):
        Lm1b(tmp_path).split("train")


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes, sha256: str) -> list[str]:
    """Let the network give this content; returns the list of addresses that were asked for."""
    asked: list[str] = []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(text, "_LM1B_SHA256", sha256)
    return asked


def test_lm1b_downloads_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = archives.write_lm1b(tmp_path / "source", TEXT, packed=True).read_bytes()
    asked = serve(monkeypatch, content, hashlib.sha256(content).hexdigest())
    for characters in (500, 600):
        problem = Lm1b(tmp_path / "root", download=True, characters=characters)
        assert decode(problem.symbols) == plain(TEXT[:characters])
    assert len(asked) == 1 and asked[0].startswith("https://")


def test_lm1b_download_with_a_wrong_checksum_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, b"something else", "0" * 64)
    with pytest.raises(ConnectionError, match=r"SHA-256 .* by hand"):
        Lm1b(tmp_path, download=True).split("train")
    assert not list(tmp_path.iterdir())
