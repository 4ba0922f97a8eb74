"""Small archives in the image data sets' own formats, and the arrays that stand in them."""

from __future__ import annotations

import gzip
import struct
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
