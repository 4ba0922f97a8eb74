"""Steps on images and volumes: convolutions, pooling, borders, sizes, Fourier transforms of several axes."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.symmetry.programs.base import Program, step_of_programs

_aten = torch.ops.aten
_POOLS: list[Callable[[Tensor], Tensor]] = [
    *(lambda x: F.max_pool2d(x, 2, 1, 1), lambda x: F.avg_pool2d(x, 2, 1, 1)),
    lambda x: F.adaptive_avg_pool2d(x, 2),
    *(lambda x: F.adaptive_max_pool2d(x, 2), lambda x: F.adaptive_max_pool2d(x, 1, True)[0]),
    lambda x: F.max_pool2d(x, 2, 1, 1, return_indices=True)[0],
    lambda x: _aten.max_pool2d(x, [2, 2], [1, 1], [1, 1]),
]  # fmt: skip
_POOLS_OF_VOLUMES: list[Callable[[Tensor], Tensor]] = [
    *(lambda x: F.max_pool3d(x, (1, 2, 2), 1, (0, 1, 1)), lambda x: F.avg_pool3d(x, (1, 2, 2), 1, (0, 1, 1))),
    lambda x: F.adaptive_avg_pool3d(x, 2),
    lambda x: F.adaptive_max_pool3d(x, 2),
    lambda x: F.max_pool3d(x, (1, 2, 2), 1, (0, 1, 1), return_indices=True)[0],
    lambda x: F.interpolate(x, size=(2, 3, 3), mode="nearest-exact"),
    lambda x: F.interpolate(x, scale_factor=2),
    lambda x: F.interpolate(x, size=(2, 2, 3), mode="trilinear"),
    lambda x: F.pad(x, (1, 0, 1, 1, 1, 0), "replicate"),
    lambda x: _aten.replication_pad3d(x, [1, 0, 0, 1, 0, 0]),
    lambda x: _aten.reflection_pad3d(F.pad(x, (1, 1, 1, 1, 1, 1)), [1, 1, 0, 1, 1, 0]),
    lambda x: torch.fft.fftn(x, dim=(2, 3)).real,
]  # fmt: skip
_SIZES: list[Callable[[Tensor], Tensor]] = [
    lambda x: F.interpolate(x, scale_factor=2),
    lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    lambda x: F.interpolate(x, size=(3, 2), mode="bilinear"),
    lambda x: F.interpolate(x, size=(2, 3), mode="bicubic"),
    lambda x: F.interpolate(x, size=(3, 2), mode="bilinear", antialias=True),
    lambda x: F.interpolate(x, size=(2, 2), mode="bicubic", antialias=True),
]  # fmt: skip
_TRANSFORMS: list[Callable[[Tensor], Tensor]] = [
    *(lambda x: torch.fft.fft2(x).real, lambda x: torch.fft.fft2(x).abs(), lambda x: torch.fft.rfft2(x).imag),
    *(lambda x: torch.fft.ifft2(x).imag, lambda x: torch.fft.ifftn(x, dim=(-1,)).real),
    lambda x: torch.fft.fftn(x, dim=-1).abs(),
    lambda x: torch.fft.irfft2(torch.fft.rfft2(x).tanh(), s=x.shape[-2:]),
    lambda x: torch.fft.ifft(x).real,
    lambda x: torch.fft.irfftn(torch.fft.rfftn(x, dim=(-2, -1)), s=x.shape[-2:], dim=(-2, -1)),
    *(lambda x: torch.fft.hfft(x + 0j, n=x.shape[-1]), lambda x: torch.fft.hfft2(x + 0j, s=x.shape[-2:])),
    *(lambda x: torch.fft.hfftn(x + 0j, s=x.shape[-1:], dim=(-1,)), lambda x: torch.fft.ihfft(x).real),
    *(lambda x: torch.fft.ihfft2(x).imag, lambda x: torch.fft.ihfftn(x, dim=(-1,)).real),
    *(lambda x: torch.fft.fftshift(x, -1), lambda x: torch.fft.ifftshift(x, 1)),
]  # fmt: skip


@step_of_programs(2, ndim=4)
def convolution_of_images(p: Program, x: Tensor, r: Random) -> Tensor:
    form, size, out = r.randrange(4), x.shape[1], r.choice([4, 6])
    if form == 0:
        return F.conv_transpose2d(x, p.weight(size, out, 2, 1), p.weight(out))
    if form == 1:
        groups = r.choice([n for n in (2, 3, size) if size % n == 0])
        return F.conv2d(
            x, p.weight(2 * groups, size // groups, 1, 3), p.weight(2 * groups), 1, (0, 1), 1, groups
        )
    bias = p.weight(out) if r.random() < 0.6 else None
    if form == 2:
        return F.conv2d(x, p.weight(out, size, 1, 1), bias)
    return F.conv2d(x, p.weight(out, size, 3, 3), bias, padding=1)


@step_of_programs(1, ndim=4)
def volume(p: Program, x: Tensor, r: Random) -> Tensor:
    form, size = r.randrange(4), x.shape[1]
    x = x.unsqueeze(2)
    if form == 0:
        return F.conv3d(x, p.weight(4, size, 1, 2, 2), p.weight(4), padding=(0, 1, 1)).squeeze(2)
    if form == 1:
        return F.conv_transpose3d(x, p.weight(size, 4, 1, 2, 2), p.weight(4)).squeeze(2)
    x = F.pad(x, (1, 1, 1, 1, 0, 0), "reflect") if form == 2 and min(x.shape[3:]) > 1 else x
    return r.choice(_POOLS_OF_VOLUMES)(x).flatten(2, 3)


@step_of_programs(1, ndim=5)
def volume_as_it_is(p: Program, x: Tensor, r: Random) -> Tensor | None:
    return r.choice(_POOLS_OF_VOLUMES)(x) if x[0].numel() < 300 else x.amax(2)


@step_of_programs(2, ndim=4)
def pool_of_images(p: Program, x: Tensor, r: Random) -> Tensor:
    return r.choice(_POOLS)(x)


@step_of_programs(1, ndim=4)
def unpooled(p: Program, x: Tensor, r: Random) -> Tensor:
    y, places = F.max_pool2d(x, (1, 2), (1, 2), (0, 1), return_indices=True)
    y = F.max_unpool2d(r.choice([y, y.tanh(), y + 1]), places, (1, 2), (1, 2), (0, 1), x.shape[2:])
    return (
        y
        if r.random() < 0.7
        else F.max_unpool3d(*F.max_pool3d(x.unsqueeze(2), (1, 1, 1), return_indices=True), (1, 1, 1)).squeeze(
            2
        )
    )


@step_of_programs(1, ndim=4)
def other_size(p: Program, x: Tensor, r: Random) -> Tensor:
    return r.choice(_SIZES)(x)


@step_of_programs(1, ndim=3)
def other_length(p: Program, x: Tensor, r: Random) -> Tensor:
    mode = r.choice(["linear", "nearest-exact", "pool", "windows"])
    if mode == "pool":
        return F.adaptive_max_pool1d(x, 2) if r.random() < 0.5 else F.max_pool1d(x, 1, return_indices=True)[0]
    if mode == "windows":
        return x.unfold(-1, 2, 1) if x.shape[-1] > 1 else x
    return F.interpolate(x, size=r.choice([2, 5]), mode=mode)


@step_of_programs()
def borders(p: Program, x: Tensor, r: Random) -> Tensor | None:
    if x.ndim not in (3, 4):
        return None
    mode = r.choice(["reflect", "replicate", "circular"])
    if min(x.shape[2:]) < 2:
        mode = "replicate"
    names = {"reflect": "reflection_pad", "replicate": "replication_pad"}
    if mode in names and r.random() < 0.7:
        return getattr(_aten, f"{names[mode]}{x.ndim - 2}d")(x, [1, 1] if x.ndim == 3 else [1, 0, 1, 1])
    if mode == "circular" and r.random() < 0.5:
        return _aten._pad_circular(x, [1, 1] if x.ndim == 3 else [1, 0, 1, 1])
    return F.pad(x, (1, 1) if x.ndim == 3 else (1, 0, 1, 1), mode)


@step_of_programs(1, ndim=4)
@step_of_programs(1, ndim=3)
def transform(p: Program, x: Tensor, r: Random) -> Tensor:
    return r.choice(_TRANSFORMS)(x)


@step_of_programs(1, ndim=4)
def shuffled_pixels(p: Program, x: Tensor, r: Random) -> Tensor | None:
    if x.shape[1] % 4 == 0:
        return F.pixel_shuffle(x, 2)
    return F.pixel_unshuffle(x, 2) if x.shape[2] % 2 == x.shape[3] % 2 == 0 else None


@step_of_programs(1, ndim=4)
def sampled(p: Program, x: Tensor, r: Random) -> Tensor:
    form, n = r.randrange(3), len(x)
    grid = torch.linspace(-1, 1, 8, dtype=x.dtype).view(1, 2, 2, 2).expand(n, 2, 2, 2)
    if form == 0:
        return _aten.grid_sampler_2d(x, grid, 0, 0, False)
    if form == 1:
        volume = torch.linspace(-1, 1, 12, dtype=x.dtype).view(1, 1, 2, 2, 3).expand(n, 1, 2, 2, 3)
        return _aten.grid_sampler_3d(x.unsqueeze(2), volume, 0, 0, False).squeeze(2)
    # Places that the network computes.
    moved = x.flatten(1)[:, :1].tanh()[:, :, None, None] * 0.3 + grid
    return F.grid_sample(x, moved, align_corners=True)


@step_of_programs(1, ndim=4)
@step_of_programs(1, ndim=3)
def instance_norm(p: Program, x: Tensor, r: Random) -> Tensor | None:
    if x[0, 0].numel() < 2:
        return None
    size = x.shape[1]
    affine = (p.weight(size), p.weight(size)) if r.random() < 0.7 else (None, None)
    if r.random() < 0.7:
        return F.instance_norm(x, None, None, *affine)
    return F.batch_norm(x, None, None, *affine, training=True)
