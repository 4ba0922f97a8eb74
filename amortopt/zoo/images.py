"""Zoos of implicit representations: a SIREN for every image of MNIST-5k, fitted from a start of its own.

    amortopt zoo mnist-inr --out zoos/mnist_inr                    # 5,000 images, one view each
    amortopt zoo mnist-inr --out zoos/mnist_inr_one_pass --fits one-pass

A *view* is one fit of an image; views differ in their random start. With ``fits="one-pass"`` a checkpoint
such as ``images-siren`` gives all weights in one forward pass from one common start, so that all networks
share one gauge. A pass gives an image the same weights each time: its further views are fits of the image
turned, stretched, sheared and moved a little.

Legend: B networks, N pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amortopt._types import Params
from amortopt.functional.networks import apply_many, finite_networks, params_of
from amortopt.system.devices import check_device
from amortopt.system.numbers import check_counts
from amortopt.tasks import Siren, init_many
from amortopt.tasks.mnist5k import MNIST5k, images
from amortopt.tasks.problem_families.images import pixel_coordinates
from amortopt.zoo.build import build_shards
from amortopt.zoo.config import Table, check_recipe
from amortopt.zoo.store import Manifest

_SIDE, _IMAGES = 28, 5000
_CHUNK = 64  # networks that are fitted at once: their activations stay in the cache
_NETWORK, _MOVE = range(2)  # random streams of the starts, of what is done to pictures
Fit: TypeAlias = Callable[[Siren, Tensor, Tensor, list[int]], Params]
"""Family, pixel coordinates [N, 2], grey levels [B, N, 1] and seeds [B] to fitted params [B, ...]."""


@dataclass(frozen=True)
class MnistInrZooConfig:
    """Recipe of a zoo of implicit representations.

    Args:
        images: Number of images, in a fixed random order of the 5,000.
        views: Fits per image; see above.
        seed: Seed of the zoo.
        val_fraction: Share of the images of every digit for validation; all views of an image are in its
            part.
        test_fraction: Share of them for testing.
        fits: ``"independent"``: Adam from random starts. ``"one-pass"``: a checkpoint's forward pass.
        checkpoint: Of the pass.
        hidden: Units of the two hidden layers.
        w0: Angular frequency of the sines.
        steps: Adam steps of a fit. A step sees a quarter of the pixels, every other row and column.
        learning_rate: Of Adam; it falls as a cosine.
        shard_size: Networks per shard file.

    Raises:
        ValueError: If a value is out of its range; the message names it.
    """

    images: int = _IMAGES
    views: int = 1
    seed: int = 0
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    fits: Literal["independent", "one-pass"] = "independent"
    checkpoint: str = "images-siren"
    hidden: int = 32
    w0: float = 30.0
    steps: int = 300
    learning_rate: float = 0.001
    shard_size: int = 500

    def __post_init__(self) -> None:
        counts = ("images", "views", "hidden", "steps", "shard_size")
        check_counts(**{name: getattr(self, name) for name in counts})
        if self.images > _IMAGES:
            raise ValueError(f"images: got {self.images}, expected at most the {_IMAGES} that there are")
        check_recipe(self, (), (), ("seed",))
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: got {self.learning_rate}, expected a positive number")
        if self.fits not in ("independent", "one-pass"):
            raise ValueError(f"fits: got {self.fits!r}, expected 'independent' or 'one-pass'")

    @property
    def count(self) -> int:
        """Number of networks."""
        return self.images * self.views

    def to_dict(self, family: Siren) -> dict[str, Any]:
        """The recipe as plain json values."""
        described = {
            "problem": MNIST5k().to_config(),
            "family": family.to_config(),
            "count": self.count,
        }
        unused = ("hidden", "w0", "steps", "learning_rate") if self.fits == "one-pass" else ("checkpoint",)
        rest = {key: value for key, value in asdict(self).items() if key not in unused}
        return json.loads(json.dumps(described | rest))


def build_mnist_inr_zoo(
    config: MnistInrZooConfig,
    folder: str | Path,
    *,
    fit: Fit | None = None,
    family: Siren | None = None,
    shard: str = "1/1",
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> list[int]:
    """Fit the networks of a recipe and store them in a folder, as far as they are not there yet.

    [load_zoo][amortopt.zoo.load_zoo] reads it. Its table has the columns index, seed, split, image (its
    number among the 5,000), view, label, finite and psnr (dB, over all pixels). Other arguments, value and
    errors are those of [build_zoo][amortopt.zoo.build_zoo].

    Args:
        config: Recipe.
        folder: Zoo folder.
        fit: How networks are fitted; by default Adam. A recipe of one-pass fits needs it.
        family: The family that ``fit`` gives weights of.

    Raises:
        ValueError: A recipe of one-pass fits without ``fit`` and ``family``.
    """
    if config.fits == "one-pass" and (fit is None or family is None):
        raise ValueError(
            "fit: got none, expected the pass of a checkpoint for fits='one-pass'; build with "
            "`amortopt zoo mnist-inr --fits one-pass`"
        )
    device = check_device(device)
    made = Siren(widths=(2, config.hidden, config.hidden, 1), w0=config.w0) if family is None else family
    with torch.random.fork_rng(devices=[]):
        module = made.build()
    shapes = {name: list(p.shape) for name, p in params_of(module).items()}
    manifest = Manifest(config.to_dict(made), shapes)
    pictures, labels = images()
    order = np.random.RandomState(config.seed).permutation(len(pictures))
    parts = _parts(config, labels.numpy())
    xy = pixel_coordinates(_SIDE).to(device)

    def train(number: int, on_networks: Callable[[int], None]) -> tuple[Params, Table]:
        index = np.arange(*manifest.bounds(number))
        image, view = order[index % config.images], index // config.images
        sources = [np.random.default_rng([config.seed, _NETWORK, int(i)]) for i in index]
        seeds = np.array([source.integers(2**48) for source in sources])
        fitted, psnr = [], []
        for start in range(0, len(index), _CHUNK):
            rows = slice(start, start + _CHUNK)
            grey = pictures[torch.from_numpy(image[rows])].view(-1, _SIDE, _SIDE)
            if config.fits == "one-pass":
                grey = torch.where(
                    torch.from_numpy(view[rows] > 0)[:, None, None], moved(grey, seeds[rows]), grey
                )
            grey, chosen = grey.reshape(-1, _SIDE**2, 1).to(device), seeds[rows].tolist()
            params = adam_fit(config, made, xy, grey, chosen) if fit is None else fit(made, xy, grey, chosen)
            fitted.append({name: p.detach() for name, p in params.items()})
            with torch.no_grad():
                error = (apply_many(module, params, xy) - grey).square().mean((1, 2))
            psnr.append(-10 * error.log10())
            on_networks(len(grey))
        params = {name: torch.cat([each[name] for each in fitted]) for name in fitted[0]}
        return params, {
            "index": index,
            "seed": seeds.astype(np.int64),
            "split": parts[image],
            "image": image.astype(np.int64),
            "view": view,
            "label": labels.numpy()[image],
            "finite": finite_networks(params).cpu().numpy(),
            "psnr": torch.cat(psnr).cpu().numpy().astype(np.float64),
        }

    def work(number: int) -> int:
        start, stop = manifest.bounds(number)
        return stop - start

    return build_shards(folder, manifest, train, work, shard=shard, device=device, progress=progress)


def _parts(config: MnistInrZooConfig, labels: np.ndarray) -> np.ndarray:
    """Part of every image [5000]: of every digit the same shares."""
    part = np.full(len(labels), "train", dtype="<U5")
    rng = np.random.RandomState(config.seed + 1)
    for digit in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == digit))
        val, test = (round(share * len(order)) for share in (config.val_fraction, config.test_fraction))
        part[order[:val]], part[order[val : val + test]] = "val", "test"
    return part


def moved(pictures: Tensor, seeds: np.ndarray) -> Tensor:
    """Pictures [B, H, W], each turned, stretched, sheared and moved as its seed [B] says; zero outside.

    Turned by at most 0.25 (in radians), sheared by 0.15, moved by a twentieth of a side; axes are stretched
    by factors from exp(-0.1) to exp(0.1).
    """
    u = np.stack([np.random.default_rng([int(seed), _MOVE]).uniform(-1, 1, 6) for seed in seeds])
    angle, shear, stretch = 0.25 * u[:, 0], 0.15 * u[:, 1], np.exp(0.1 * u[:, 2:4])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    form = np.zeros_like(turn)  # [B, 2, 2]
    form[:, 0, 0], form[:, 0, 1], form[:, 1, 1] = stretch[:, 0], shear, stretch[:, 1]
    matrix = np.concatenate([turn @ form, 0.1 * u[:, 4:, None]], 2)  # of coordinates from -1 to 1
    grid = F.affine_grid(
        torch.from_numpy(matrix).to(pictures), [len(u), 1, *pictures.shape[1:]], align_corners=True
    )
    return F.grid_sample(pictures[:, None], grid, align_corners=True)[:, 0]


def adam_fit(config: MnistInrZooConfig, family: Siren, xy: Tensor, grey: Tensor, seeds: list[int]) -> Params:
    """Fit B networks at once by Adam, each from the start that its seed gives.

    A step sees every other row and column of the images, four such lattices in turn.

    Args:
        config: Steps and learning rate.
        family: Their architecture.
        xy: Pixel coordinates [N, 2], row by row.
        grey: Grey levels [B, N, 1].
        seeds: Of the starts.
    """
    with torch.random.fork_rng(devices=[]):
        module = family.build().to(xy.device)
    params = {name: p.to(xy.device).requires_grad_() for name, p in init_many(family.build, seeds).items()}
    lattices = []
    places = torch.arange(len(xy), device=xy.device).view(_SIDE, _SIDE)
    for row, column in ((0, 0), (1, 1), (0, 1), (1, 0)):
        chosen = places[row::2, column::2].flatten()
        lattices.append((xy[chosen], grey[:, chosen]))
    adam = torch.optim.Adam(list(params.values()), lr=config.learning_rate, betas=(0.9, 0.99))
    for step in range(config.steps):
        x, y = lattices[step % len(lattices)]
        factor = min(1.0, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        adam.param_groups[0]["lr"] = config.learning_rate * factor
        # A mean over pixels, a sum over networks: Adam treats every network as if it were alone.
        loss = (apply_many(module, params, x) - y).square().mean((1, 2)).sum()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
    return params
