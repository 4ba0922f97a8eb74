"""Text problems read from files: any text, and the One Billion Word benchmark.

Files are read as text and nothing else; of an archive, one known member is read and nothing is unpacked.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import tarfile
import urllib.request
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amortopt.tasks.problem import register_problem
from amortopt.tasks.text import TextProblem, encode

_LM1B = "1-billion-word-language-modeling-benchmark-r13output"
_LM1B_URL = f"https://www.statmt.org/lm-benchmark/{_LM1B}.tar.gz"
_LM1B_SHA256 = "01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e"
_LM1B_PART = "training-monolingual.tokenized.shuffled/news.en-00001-of-00100"
_CHUNK = 1 << 20  # bytes


@register_problem("text_file")
class TextFile(TextProblem):
    """The user's own text: a file, or the ``*.txt`` files of a folder in the order of their names; UTF-8.

    Args:
        path: File or folder.
        length: Characters T of a window.
        characters: Read no more than this many characters.
    """

    arguments = ("path", "length", "characters")

    def __init__(
        self, path: str | Path = "data/text", length: int = 32, characters: int = 10_000_000
    ) -> None:
        super().__init__(length)
        self.path = Path(path)
        self.characters = _checked_count(characters)

    @property
    def symbols(self) -> Tensor:
        return _read_files(self.path.resolve(), self.characters)

    @property
    def origin(self) -> str:
        return self.path.name


@register_problem("lm1b")
class Lm1b(TextProblem):
    """The start of the One Billion Word benchmark (Chelba et al. 2013, arXiv 1312.3005), a sentence a line.

    The first train part of its hundred is read, from the unpacked folder
    ``root/1-billion-word-language-modeling-benchmark-r13output`` or from that archive, ``.tar.gz``, as it is.
    Read from the archive, the characters that are used are kept beside it, in ``root/lm1b-<characters>.txt``.

    Args:
        root: Folder that holds the data set.
        download: Whether to download the archive into ``root`` if nothing is there (1.8 GB, SHA-256 checked).
        length: Characters T of a window.
        characters: Read this many characters; a train part has some forty million.
    """

    arguments = ("root", "download", "length", "characters")

    def __init__(
        self,
        root: str | Path = "data",
        download: bool = False,
        length: int = 32,
        characters: int = 1_000_000,
    ) -> None:
        super().__init__(length)
        self.root = Path(root)
        self.download = download
        self.characters = _checked_count(characters)

    @property
    def symbols(self) -> Tensor:
        return _read_lm1b(self.root.resolve(), self.download, self.characters)

    @property
    def origin(self) -> str:
        return "One Billion Word benchmark, train part 1"


@lru_cache(maxsize=4)
def _read_files(path: Path, characters: int) -> Tensor:
    paths = sorted(p for p in path.glob("*.txt") if p.is_file()) if path.is_dir() else [path]
    if not paths or not paths[0].is_file():
        raise FileNotFoundError(
            f"path: {path} is no file and no folder with *.txt files; pass one that is, in UTF-8"
        )
    parts: list[Tensor] = []
    for one in paths:
        with one.open("rb") as file:
            parts.append(encode(_decoded(file, one, characters - sum(map(len, parts)))))
        if sum(map(len, parts)) >= characters:
            break
    return torch.cat(parts)


@lru_cache(maxsize=4)
def _read_lm1b(root: Path, download: bool, characters: int) -> Tensor:
    kept = root / f"lm1b-{characters}.txt"
    plain = root / _LM1B / _LM1B_PART
    for path in (plain, kept):
        if path.is_file():
            with path.open("rb") as file:
                return encode(_decoded(file, path, characters))
    archive = root / f"{_LM1B}.tar.gz"
    if not archive.is_file():
        if not download:
            raise FileNotFoundError(
                f"neither {plain} nor {archive} is there; put the benchmark there (from {_LM1B_URL}), pass "
                "the root folder that holds it, or pass download=True (1.8 GB)"
            )
        _fetch(_LM1B_URL, archive, _LM1B_SHA256)
    text = _archived(archive, characters)
    fresh = kept.with_name(f".{kept.name}.{os.getpid()}.part")  # renamed when complete
    fresh.write_text(text, encoding="utf-8", newline="")
    fresh.replace(kept)
    return encode(text)


def _archived(archive: Path, characters: int) -> str:
    """Read the start of the one member that is used; nothing else of the archive is looked at."""
    try:
        with tarfile.open(archive, "r|gz") as packed:
            for member in packed:
                if member.name == f"{_LM1B}/{_LM1B_PART}" and member.isreg():
                    file = packed.extractfile(member)
                    assert file is not None  # a regular file has content
                    return _decoded(file, archive, characters)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(
            f"{archive}: not a complete tar.gz archive ({error}); delete it to fetch it again"
        ) from error
    raise ValueError(f"{archive}: has no file {_LM1B}/{_LM1B_PART}; delete it to fetch it again")


def _decoded(file: Any, path: Path, characters: int) -> str:
    """The first characters of an open binary file, without reading more than a chunk past them."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    parts: list[str] = []
    count = 0
    try:
        while count < characters and (chunk := file.read(_CHUNK)):
            parts.append(decoder.decode(chunk))
            count += len(parts[-1])
        if count < characters:
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, got other bytes ({error}); convert it") from error
    return "".join(parts)[:characters]


def _fetch(url: str, path: Path, sha256: str) -> None:
    """Download a file; it appears under its name only when complete and with the right checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.part")
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=60) as source, fresh.open("wb") as file:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha256:
            raise OSError(f"its SHA-256 is {digest.hexdigest()}, expected {sha256}")
        fresh.replace(path)
    except OSError as error:
        raise ConnectionError(
            f"could not download {url} ({error}); put it at {path} by hand and pass download=False"
        ) from error
    finally:
        fresh.unlink(missing_ok=True)


def _checked_count(characters: int) -> int:
    if not isinstance(characters, int) or characters < 1:
        raise ValueError(f"characters: got {characters!r}, expected a positive number of characters")
    return characters
