"""Small archives in the data sets' own formats, and what stands in them."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
from scipy.io import savemat

TRAIN, TEST = 30, 12


def _draw(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.RandomState(seed)
    pixels = rng.randint(0, 256, shape).astype(np.uint8)
    return pixels, (np.arange(shape[0]) % 10).astype(np.uint8)


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(root: Path, name: str, *, packed: bool) -> dict[bool, tuple[np.ndarray, np.ndarray]]:
    """Write an MNIST-like set; returns {train: (pixels [N, 28, 28], labels [N])}."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    content = {}
    for train, prefix, count in ((True, "train", TRAIN), (False, "t10k", TEST)):
        pixels, labels = _draw((count, 28, 28), seed=count)
        for array, kind in ((pixels, "images-idx3-ubyte"), (labels, "labels-idx1-ubyte")):
            if packed:
                (folder / f"{prefix}-{kind}.gz").write_bytes(gzip.compress(_idx(array)))
            else:
                (folder / f"{prefix}-{kind}").write_bytes(_idx(array))
        content[train] = pixels, labels
    return content


def write_cifar10(root: Path) -> dict[bool, tuple[np.ndarray, np.ndarray]]:
    """Write the binary version of CIFAR-10; returns {train: (pixels [N, 3, 32, 32], labels [N])}."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    train, test = _draw((TRAIN, 3, 32, 32), seed=1), _draw((TEST, 3, 32, 32), seed=2)

    def write(name: str, pixels: np.ndarray, labels: np.ndarray) -> None:
        records = np.concatenate([labels[:, None], pixels.reshape(len(pixels), -1)], axis=1)
        (folder / name).write_bytes(records.astype(np.uint8).tobytes())

    for i, part in enumerate(np.split(np.arange(TRAIN), 5), start=1):
        write(f"data_batch_{i}.bin", train[0][part], train[1][part])
    write("test_batch.bin", *test)
    return {True: train, False: test}


def write_svhn(root: Path) -> dict[bool, tuple[np.ndarray, np.ndarray]]:
    """Write SVHN's two .mat files; returns {train: (pixels [N, 3, 32, 32], labels [N], 0 to 9)}."""
    root.mkdir(parents=True, exist_ok=True)
    content = {}
    for train, name, count in ((True, "train", TRAIN), (False, "test", TEST)):
        pixels, labels = _draw((count, 3, 32, 32), seed=count)
        stored = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        savemat(root / f"{name}_32x32.mat", {"X": pixels.transpose(2, 3, 1, 0), "y": stored})
        content[train] = pixels, labels
    return content


LM1B = "1-billion-word-language-modeling-benchmark-r13output"
LM1B_PART = f"{LM1B}/training-monolingual.tokenized.shuffled/news.en-00001-of-00100"


def write_lm1b(root: Path, text: str, *, name: str = LM1B_PART, packed: bool) -> Path:
    """Write the one train part that is read, in a folder or in the archive among others; returns the file."""
    root.mkdir(parents=True, exist_ok=True)
    if not packed:
        path = root / name
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8", newline="")
        return path
    path = root / f"{LM1B}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for member, content in ((f"{LM1B}/README", "read me"), ("../escaped", "x"), (name, text)):
            info = tarfile.TarInfo(member)
            info.size = len(content.encode())
            archive.addfile(info, io.BytesIO(content.encode()))
    return path
