"""Image problems: MNIST, FashionMNIST, CIFAR-10 in colour, and CIFAR-10 and SVHN in grayscale.

The files are the data sets' own, downloaded through torchvision with its checksums, or put there by hand.
They are read here, in formats that carry numbers only: nothing in a user's folder is ever unpickled.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch

from amortopt.tasks.examples import Examples
from amortopt.tasks.formats import (
    Cifar10Files,
    Gray,
    IdxFiles,
    ImageFiles,
    Images,
    SvhnFiles,
    channel_mean,
    colours,
    luma,
    shrink,
)
from amortopt.tasks.objective import CrossEntropy
from amortopt.tasks.problem import Problem, Which, check_which, hold_out, register_problem

Preprocessing: TypeAlias = Literal["standardised", "small_cnn_zoo"]


class VisionProblem(Problem):
    """Images [1, H, W], or [3, H, W] in colour, in ten classes.

    A fixed tenth of the train images (``val_fraction``) is held out as val. Pixels are standardised by mean
    and standard deviation (two scalars) of the remaining train images, and colours made gray as Pillow does.
    The networks of the Small CNN Zoo (Unterthiner et al. 2020) were trained on other inputs: pixels scaled to
    [-1, 1], and the mean of red, green and blue as gray value.

    Args:
        root: Folder that holds the data sets.
        download: Whether to download into ``root`` what is missing (needs torchvision: the extra ``vision``).
        val_fraction: Fraction of the train images held out, in (0, 1).
        seed: Seed of the permutation that chooses them.
        preprocessing: ``"standardised"``, or ``"small_cnn_zoo"`` for inputs as those networks expect them.
        size: Height and width to which images are shrunk, each pixel the mean of the area it covers, such as
            8 for FashionMNIST and 16 for CIFAR-10 in Zhou et al. 2024 (arXiv 2402.05232); None keeps them.
    """

    objective = CrossEntropy(10)
    channels = 1
    """1 for grayscale, 3 for colour."""
    files: ImageFiles
    """Reads the data set's own files and downloads them."""

    def __init__(
        self,
        root: str | Path = "data",
        download: bool = False,
        val_fraction: float = 0.1,
        seed: int = 0,
        preprocessing: Preprocessing = "standardised",
        size: int | None = None,
    ) -> None:
        side = self.files.side
        if size is not None and not (isinstance(size, int) and 1 <= size <= side):
            raise ValueError(f"size: got {size!r}, expected 1 to {side} pixels, or None to keep {side}")
        if preprocessing not in get_args(Preprocessing):
            raise ValueError(
                f"preprocessing: got {preprocessing!r}, expected one of {', '.join(get_args(Preprocessing))}"
            )
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction: got {val_fraction}, expected a fraction between 0 and 1")
        self.root = Path(root)
        self.download = download
        self.val_fraction = val_fraction
        self.seed = seed
        self.preprocessing: Preprocessing = preprocessing
        self.size = size
        self.arguments = ("root", "download", "val_fraction", "seed", "preprocessing")
        if size is not None:  # zoos stored before images could be shrunk stay the same
            self.arguments += ("size",)

    @property
    def input_shape(self) -> tuple[int, ...]:
        side = self.size or self.files.side
        return (self.channels, side, side)

    def read(self, train: bool) -> Images:
        """Read the data set's own train or test images from ``root``.

        Raises:
            FileNotFoundError: If a file is not there; says which, and how to get it.
            ValueError: If a file is damaged.
        """
        gray: Gray = channel_mean if self.preprocessing == "small_cnn_zoo" else luma
        return self.files.read(self.root, train, gray if self.channels == 1 else colours)

    def split(self, which: Which) -> Examples:
        check_which(which)
        arguments = self.to_config() | {"root": self.root.resolve()}
        del arguments["name"]
        return _load(type(self), **arguments)[which]


@register_problem("mnist")
class Mnist(VisionProblem):
    """MNIST (LeCun et al. 1998): 28x28, 60,000 train and 10,000 test images.

    Read from ``root/MNIST/raw``: ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
    ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each plain or ``.gz`` (torchvision's layout).
    """

    files = IdxFiles("MNIST")


@register_problem("fashion_mnist")
class FashionMnist(VisionProblem):
    """FashionMNIST (Xiao et al. 2017): MNIST's format, in ``root/FashionMNIST/raw``."""

    files = IdxFiles("FashionMNIST")


@register_problem("cifar10_gray")
class Cifar10Gray(VisionProblem):
    """CIFAR-10 (Krizhevsky 2009) in grayscale: 32x32, 50,000 train and 10,000 test images.

    Read from the *binary version* in ``root/cifar-10-batches-bin``: ``data_batch_1.bin`` to
    ``data_batch_5.bin`` and ``test_batch.bin``. (The Python version is a pickle, so it is not read.)
    """

    files = Cifar10Files()


@register_problem("cifar10")
class Cifar10(VisionProblem):
    """CIFAR-10 (Krizhevsky 2009) in colour; the files of [Cifar10Gray][amortopt.tasks.Cifar10Gray]."""

    channels = 3
    files = Cifar10Files()


@register_problem("svhn_gray")
class SvhnGray(VisionProblem):
    """SVHN, cropped digits (Netzer et al. 2011), in grayscale: 32x32, 73,257 train and 26,032 test images.

    Read from ``root/train_32x32.mat`` and ``root/test_32x32.mat`` (needs scipy: the extra ``vision``).
    """

    files = SvhnFiles()


@lru_cache(maxsize=4)
def _load(cls: type[VisionProblem], **arguments: Any) -> dict[Which, Examples]:
    problem = cls(**arguments)
    if problem.download:
        problem.files.fetch(problem.root)
    train, test = (problem.read(train=part) for part in (True, False))
    held = max(1, round(problem.val_fraction * len(train.labels)))
    keep, val = hold_out(len(train.labels), held, problem.seed)
    parts: dict[Which, Images] = {
        "train": Images(train.pixels[keep], train.labels[keep]),
        "val": Images(train.pixels[val], train.labels[val]),
        "test": test,
    }
    if problem.size is not None:
        parts = {which: Images(shrink(p.pixels, problem.size), p.labels) for which, p in parts.items()}
    if problem.preprocessing == "small_cnn_zoo":
        mean, std = 127.5, 127.5
    else:
        # Mean and variance of bytes from a histogram: whole numbers, so the same on every machine.
        counts, values = np.bincount(parts["train"].pixels.reshape(-1), minlength=256), np.arange(256)
        total, first, second = int(counts.sum()), int(counts @ values), int(counts @ values**2)
        mean, variance = first / total, (total * second - first * first) / total**2
        std = max(variance, 1.0) ** 0.5  # one grey level at least: constant images stay finite
    examples: dict[Which, Examples] = {}
    for which, part in parts.items():
        x = (part.pixels.astype(np.float32) - np.float32(mean)) / np.float32(std)
        y = torch.from_numpy(part.labels.astype(np.int64))
        examples[which] = Examples(torch.from_numpy(x).reshape(-1, *problem.input_shape), y)
    return examples
