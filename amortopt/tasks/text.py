"""Text problems: predict the next character.

The vocabulary is the same for every text: newline, the 95 printable characters of ASCII, and one symbol for
all others. So networks of one shape fit every text, and a text that differs a little between machines (as
CPython's help does between Python's versions) changes the data but never the network. Files are read as text
and nothing else; of an archive, one known member is read and nothing is unpacked.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import sys
import tarfile
import urllib.request
import zlib
from abc import abstractmethod
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortopt.system.files import write_whole
from amortopt.tasks.examples import Examples
from amortopt.tasks.objective import CrossEntropy
from amortopt.tasks.problem import SPLITS, Problem, Which, check_which, register_problem

VOCABULARY = "\n" + "".join(map(chr, range(32, 127))) + "\N{REPLACEMENT CHARACTER}"
"""The character of every symbol; the last stands for all characters that are not among the others."""

_OTHER = len(VOCABULARY) - 1
_HELD_OUT = 0.1  # fraction of the characters in the val part, and in the test part
_LM1B = "1-billion-word-language-modeling-benchmark-r13output"
_LM1B_URL = f"https://www.statmt.org/lm-benchmark/{_LM1B}.tar.gz"
_LM1B_SHA256 = "01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e"
_LM1B_PART = f"{_LM1B}/training-monolingual.tokenized.shuffled/news.en-00001-of-00100"
_CHUNK = 1 << 20  # bytes


def encode(text: str) -> Tensor:
    """Symbols of a text of L characters: indices into ``VOCABULARY``, int64 [L].

    Examples:
        >>> encode("a~\\n\\u00e9").tolist()
        [66, 95, 0, 96]
    """
    points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32).astype(np.int64)
    symbols = np.where((points >= 32) & (points < 127), points - 31, _OTHER)
    return torch.from_numpy(np.where(points == ord("\n"), 0, symbols))


def decode(symbols: Tensor) -> str:
    """Text of symbols int64 [L]; undoes [encode][amortopt.tasks.text.encode], but for other symbols."""
    return "".join(VOCABULARY[i] for i in symbols.tolist())


class TextProblem(Problem):
    """Windows of a text; the class at every position is the character that comes next.

    The text is cut into three contiguous parts, the first 80 percent of its characters for train, then 10 for
    val and 10 for test, and each part into windows that share no character to be predicted. Inputs are
    symbols int64 [N, length], targets the same shifted by one.

    Args:
        length: Characters T of a window.
        characters: Read no more than this many characters, where the text is a file's.
    """

    arguments = ("length",)

    def __init__(self, length: int = 32, characters: int = sys.maxsize) -> None:
        for name, value in (("length", length), ("characters", characters)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected a positive number of characters")
        self.length, self.characters = length, characters
        self.objective = CrossEntropy(len(VOCABULARY), (length,))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    @abstractmethod
    def symbols(self) -> Tensor:
        """The whole text, int64 [L]; the same tensor at every call."""

    @property
    def source(self) -> str:
        """What the text is on this machine: its origin, length and checksum, to be stored with results."""
        digest = hashlib.sha256(self.symbols.to(torch.uint8).numpy().tobytes()).hexdigest()
        return f"{self.origin}, {len(self.symbols)} characters, sha256 {digest[:16]}"

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where the text comes from, in words."""

    def split(self, which: Which) -> Examples:
        check_which(which)
        symbols = self.symbols
        held = int(_HELD_OUT * len(symbols))
        sizes = (len(symbols) - 2 * held, held, held)
        part = dict(zip(SPLITS, symbols.split(sizes), strict=True))[which]
        count = (len(part) - 1) // self.length
        if count < 1:
            raise ValueError(
                f"length: got {self.length} for a {which} part of {len(part)} characters, expected at most "
                f"{len(part) - 1}; take shorter windows or a longer text"
            )
        used = count * self.length
        shape = (count, self.length)
        return Examples(part[:used].reshape(shape), part[1 : used + 1].reshape(shape))


@register_problem("pydoc_text")
class PydocText(TextProblem):
    """The help texts that come with every Python: about 460,000 characters of technical English.

    CPython's ``pydoc_data.topics``, its topics one after the other in the order of their names. The text
    differs a little between Python's versions: ``source`` says which one this is.

    Args:
        length: Characters T of a window.
    """

    @property
    def symbols(self) -> Tensor:
        return _pydoc()

    @property
    def origin(self) -> str:
        version = sys.version_info
        return f"pydoc_data.topics of Python {version.major}.{version.minor}.{version.micro}"


@lru_cache(maxsize=1)
def _pydoc() -> Tensor:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError(
            "this Python has no pydoc_data.topics (some distributions package it apart); "
            "install Python's full standard library"
        ) from error
    return encode("\n".join(topics[name] for name in sorted(topics)))


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
        super().__init__(length, characters)
        self.path = Path(path)

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
        super().__init__(length, characters)
        self.root, self.download = Path(root), download

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
    kept, plain, archive = root / f"lm1b-{characters}.txt", root / _LM1B_PART, root / f"{_LM1B}.tar.gz"
    for path in (plain, kept):
        if path.is_file():
            with path.open("rb") as file:
                return encode(_decoded(file, path, characters))
    if not archive.is_file():
        if not download:
            raise FileNotFoundError(
                f"neither {plain} nor {archive} is there; put the benchmark there (from {_LM1B_URL}), pass "
                "the root folder that holds it, or pass download=True (1.8 GB)"
            )
        _fetch(_LM1B_URL, archive, _LM1B_SHA256)
    text: str | None = None
    try:
        with tarfile.open(archive, "r|gz") as packed:
            for member in packed:  # one of them is used; the archive is not read past it
                if member.name == _LM1B_PART and member.isreg():
                    text = _decoded(packed.extractfile(member), archive, characters)
                    break
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(
            f"{archive}: not a complete tar.gz archive ({error}); delete it to fetch it again"
        ) from error
    if text is None:
        raise ValueError(f"{archive}: has no file {_LM1B_PART}; delete it to fetch it again")
    write_whole(kept, text.encode())
    return encode(text)


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
