"""Image data sets' own file formats, and their downloads through torchvision.

Shapes: N images, H x W pixels. Sizes are checked before a file is believed.
"""

from __future__ import annotations

import gzip
import math
import struct
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import numpy as np

from amortopt.system.extras import needed_for

Gray: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""``gray(rgb uint8 [N, 3, ...]) -> [N, ...]``, in [0, 255]; or [N, 3, ...], colours kept."""

_CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
_CIFAR10_RECORD = 1 + 3 * 32 * 32  # label byte, then the red, green and blue planes
_CIFAR10_TRAIN, _CIFAR10_TEST = [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"
_IDX_UBYTE = 0x08
_NUM_CLASSES = 10


@dataclass(frozen=True, eq=False)
class Images:
    """Images as they stand in a file.

    Attributes:
        pixels: Values in [0, 255]: gray [N, H, W] or colours [N, 3, H, W]; uint8, or float32 if
            ``channel_mean`` made them.
        labels: Class indices [N], 0 to 9.
    """

    pixels: np.ndarray
    labels: np.ndarray


def luma(rgb: np.ndarray) -> np.ndarray:
    """Gray values uint8 [N, ...] of colours uint8 [N, 3, ...]: ITU-R 601-2 luma in 16-bit fixed point.

    It is what Pillow's mode ``L`` computes.
    """
    red, green, blue = (rgb[:, c].astype(np.uint32) for c in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8)


def channel_mean(rgb: np.ndarray) -> np.ndarray:
    """Gray values float32 [N, ...] of colours uint8 [N, 3, ...]: means in [0, 255], not rounded."""
    return rgb.sum(1, dtype=np.uint32).astype(np.float32) / np.float32(3)


def colours(rgb: np.ndarray) -> np.ndarray:
    """Keep the colours: uint8 [N, 3, ...] as it is, in place of a gray value."""
    return rgb


def shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """Shrink square images [..., H, H] to [..., side, side]: a new pixel is the mean of the area it covers.

    Of uint8, the nearest whole numbers (halves up) are computed in whole numbers: the same bits on every
    machine. Values in [0, 255]; float32 stays float32.

    Raises:
        ValueError: If ``side`` is not in 1 to H, or the images are not square.
    """
    height, width = pixels.shape[-2:]
    if height != width or not 1 <= side <= height:
        raise ValueError(f"size: got {side} for images of {(height, width)} pixels, expected 1 to {height}")
    # In units of 1/side old pixels: where old and new pixels overlap, along one axis.
    old, new = np.arange(height) * side, np.arange(side) * height
    overlap = np.minimum(old + side, new[:, None] + height) - np.maximum(old, new[:, None])
    weights = np.maximum(overlap, 0).astype(np.float32)
    total = weights @ pixels @ weights.T  # of bytes: whole numbers, exact below 2^24
    if pixels.dtype == np.uint8:
        return ((2 * total.astype(np.int64) + height**2) // (2 * height**2)).astype(np.uint8)
    return (total / np.float32(height**2)).astype(pixels.dtype)


class ImageFiles(ABC):
    """The files of a data set under a root folder.

    Attributes:
        side: Height and width H of its images, in pixels.
    """

    side: int

    @abstractmethod
    def fetch(self, root: Path) -> None:
        """Download what is missing or damaged."""

    @abstractmethod
    def read(self, root: Path, train: bool, gray: Gray) -> Images:
        """Read the train part or the test part.

        Raises:
            FileNotFoundError: If a file is not there; says which, and how to get it.
            ValueError: If a file is damaged.
            ImportError: If a package that reads it is not installed.
        """


@dataclass(frozen=True)
class IdxFiles(ImageFiles):
    """MNIST's format, plain or gzipped, in ``root/name/raw``; ``name`` is that of torchvision's class."""

    name: str
    side: int = 28

    def fetch(self, root: Path) -> None:
        source = getattr(_torchvision_datasets(), self.name)
        mirrors = [source.mirrors] if isinstance(source.mirrors, str) else source.mirrors
        folder = root / self.name / "raw"
        for file, md5 in source.resources:
            if not (folder / file).with_suffix("").exists():
                _download([mirror + file for mirror in mirrors], folder, file, md5)

    def read(self, root: Path, train: bool, gray: Gray) -> Images:
        folder, prefix = root / self.name / "raw", "train" if train else "t10k"
        arrays: list[np.ndarray] = []
        for kind, axes in (("images", 3), ("labels", 1)):
            path = folder / f"{prefix}-{kind}-idx{axes}-ubyte"
            packed = path.with_name(path.name + ".gz")
            path = packed if packed.exists() and not path.exists() else _existing(path)
            try:
                raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ValueError(f"{path}: not a complete gzip file ({error}); fetch it again") from error
            # Two zero bytes, element type, number of axes, axis lengths (big-endian), elements.
            header = 4 + 4 * axes
            if raw[:4] != bytes([0, 0, _IDX_UBYTE, axes]) or len(raw) < header:
                raise ValueError(
                    f"{path}: got a file that starts with {raw[:4]!r}, expected idx{axes}-ubyte; fetch it "
                    "again"
                )
            shape = struct.unpack(f">{axes}I", raw[4:header])
            if len(raw) - header != math.prod(shape):
                raise ValueError(
                    f"{path}: got {len(raw) - header} elements, expected {shape}; the file is damaged"
                )
            if kind == "images" and shape[1:] != (self.side, self.side):
                raise ValueError(
                    f"{path}: got images of {shape[1:]} pixels, expected ({self.side}, {self.side})"
                )
            arrays.append(np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape))
        return _checked(arrays[0], arrays[1], path)


@dataclass(frozen=True)
class Cifar10Files(ImageFiles):
    """The binary version of CIFAR-10, in ``root/cifar-10-batches-bin``."""

    side: int = 32

    def fetch(self, root: Path) -> None:
        folder = root / "cifar-10-batches-bin"
        names = [*_CIFAR10_TRAIN, _CIFAR10_TEST]
        if all((folder / name).exists() for name in names):
            return
        archive = root / _CIFAR10_URL.rpartition("/")[2]
        _download([_CIFAR10_URL], root, archive.name, _CIFAR10_MD5)
        folder.mkdir(exist_ok=True)
        with tarfile.open(archive) as packed:
            for name in names:
                content = packed.extractfile(f"{folder.name}/{name}")
                if content is None:
                    raise ValueError(
                        f"{archive}: has no file {folder.name}/{name}; delete it to fetch it again"
                    )
                part = folder / f"{name}.part"  # renamed when complete, so a killed run leaves no half file
                part.write_bytes(content.read())
                part.replace(folder / name)

    def read(self, root: Path, train: bool, gray: Gray) -> Images:
        parts: list[Images] = []
        for name in _CIFAR10_TRAIN if train else [_CIFAR10_TEST]:
            path = _existing(root / "cifar-10-batches-bin" / name)
            raw = np.fromfile(path, dtype=np.uint8)
            if raw.size == 0 or raw.size % _CIFAR10_RECORD:
                raise ValueError(
                    f"{path}: got {raw.size} bytes, expected a multiple of {_CIFAR10_RECORD} (a label and "
                    "3x32x32 pixels per image); the file is damaged, fetch it again"
                )
            records = raw.reshape(-1, _CIFAR10_RECORD)
            parts.append(_checked(gray(records[:, 1:].reshape(-1, 3, 32, 32)), records[:, 0], path))
        return Images(*(np.concatenate([getattr(p, key) for p in parts]) for key in ("pixels", "labels")))


@dataclass(frozen=True)
class SvhnFiles(ImageFiles):
    """SVHN's cropped digits: ``X`` [32, 32, 3, N] and ``y`` [N, 1] in ``.mat``; label 10 is the digit 0."""

    side: int = 32

    def fetch(self, root: Path) -> None:
        source = _torchvision_datasets().SVHN
        for part in ("train", "test"):
            url, name, md5 = source.split_list[part]
            _download([url], root, name, md5)

    def read(self, root: Path, train: bool, gray: Gray) -> Images:
        path = _existing(root / f"{'train' if train else 'test'}_32x32.mat")
        with needed_for("reading SVHN's .mat files", extra="vision"):
            from scipy.io import loadmat
            from scipy.io.matlab import MatReadError
        try:
            content = loadmat(path, variable_names=["X", "y"])
            images, labels = content["X"], content["y"].reshape(-1)
        except (MatReadError, KeyError, ValueError, TypeError, OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path}: expected a MATLAB file with X and y; it is damaged ({error}), fetch it again"
            ) from error
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
            raise ValueError(f"{path}: got X {images.dtype} {images.shape}, expected uint8 (32, 32, 3, N)")
        return _checked(gray(images.transpose(3, 2, 0, 1)), labels.astype(np.int64) % 10, path)


def _download(urls: list[str], folder: Path, name: str, md5: str) -> None:
    """Fetch from the first mirror that works; does nothing if the file is there with the right checksum."""
    errors = []
    for url in urls:
        try:
            return _torchvision_datasets().utils.download_url(url, str(folder), name, md5)
        except (RuntimeError, OSError) as error:  # RuntimeError: the checksum; OSError: the network
            errors.append(f"{url}: {error}")
    raise ConnectionError(
        f"could not download {name} ({'; '.join(errors)}); put it into {folder} by hand and "
        "pass download=False"
    )


def _torchvision_datasets() -> ModuleType:
    try:
        import torchvision.datasets
        import torchvision.datasets.utils
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        raise ImportError(
            f"downloading needs a torchvision that matches the installed torch; its import failed: {error}. "
            "pip install 'amortopt[vision]', at the versions of constraints.txt, or put the files there "
            "by hand and pass download=False"
        ) from error
    return torchvision.datasets


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there; put the data set's own file there, pass the root folder that holds it, "
            "or pass download=True"
        )
    return path


def _checked(pixels: np.ndarray, labels: np.ndarray, path: Path) -> Images:
    if len(labels) != len(pixels) or len(labels) == 0:
        raise ValueError(
            f"{path}: got {len(labels)} labels for {len(pixels)} images, expected one label each"
        )
    if labels.max() >= _NUM_CLASSES:
        raise ValueError(
            f"{path}: got label {labels.max()}, expected 0 to {_NUM_CLASSES - 1}; the file is damaged"
        )
    return Images(pixels, labels)
