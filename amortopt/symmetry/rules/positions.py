"""Copies of tensors along an axis, and positions reordered, padded, read by windows, transformed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product

from amortopt.symmetry.rules.arithmetic import gated, multiplied, together
from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, rule, settings
from amortopt.symmetry.rules.dimensions import axes_of, held, per_axis, places, replaced, to_power, without
from amortopt.symmetry.rules.shape import taken_apart
from amortopt.symmetry.solve.dims import Atom, Dim, Dims, fixed, is_fixed, sum_of
from amortopt.symmetry.solve.labels import Labels


@rule("expand", "expand_as", "broadcast_to")
def expand(labels: Labels, call: Call) -> Result:
    """Copies along a dimension of size one, or along a new one."""
    x = call.value("self")
    new = len(call.shape) - x.ndim
    dims: list[Dim] = []
    for axis, size in enumerate(call.shape):
        dim = x.dims[axis - new] if axis >= new else ()
        if axis >= new and x.shape[axis - new] == size:
            dims.append(dim)
            continue
        if dim:
            labels.tie(dim, fixed(1, "broadcast"), call.name)
        dims.append(copies(labels, size, dims[-1] if dims else ()))
    same = call.shape == x.shape
    return Result(tuple(dims), "" if same else "expand", param=x.param if same else None)


@rule("broadcast_tensors")
def broadcast(labels: Labels, call: Call) -> Result:
    """Every tensor expanded to the shape of all."""
    values = call.setting("tensors")
    if not all(isinstance(value, Value) for value in values):
        raise NoRule("a part is not one tensor")
    parts = tuple(expand(labels, replace(call, args={"self": value})).dims for value in values)
    return Result((), "expand", parts=parts)


def copies(labels: Labels, size: int, before: Dim) -> Dim:
    """A new dimension along which all values are equal: any permutation is allowed."""
    resolved = labels.resolve(before)
    atom = resolved[-1] if resolved else None
    owner = atom.unit if isinstance(atom, Atom) and len(resolved) == 1 else None
    return labels.fresh(size, "constant", "none", owner=owner)


@rule("repeat", "tile")
def repeat(labels: Labels, call: Call) -> Result:
    """Copies of whole dimensions, one after the other."""
    x = call.value("self")
    new = len(call.shape) - x.ndim
    dims: list[Dim] = []
    for axis, size in enumerate(call.shape):
        dim, length = (x.dims[axis - new], x.shape[axis - new]) if axis >= new else ((), 1)
        if length == 1 and size > 1 and dim:
            labels.tie(dim, fixed(1, "broadcast"), call.name)
        dims.append(dim if size == length else (*copies(labels, size // length, ()), *labels.resolve(dim)))
    return Result(tuple(dims), "repeat", (("shape", str(call.shape)),))


@rule("repeat_interleave")
def repeat_interleave(labels: Labels, call: Call) -> Result:
    """A run of copies for every unit."""
    x = call.value("self")
    if isinstance(call.args.get("repeats"), Value) or call.args.get("dim") is None:
        raise NoRule("its numbers of copies vary")
    axis = call.axis("dim", x.ndim)
    units = labels.resolve(x.dims[axis])
    dim = (*units, *copies(labels, call.shape[axis] // x.shape[axis], units))
    return Result(replaced(x.dims, axis, dim), call.name, (("dim", str(axis)),))


@rule("flip", "roll", "fft_fftshift", "fft_ifftshift", "fliplr", "flipud")
def reordered(labels: Labels, call: Call) -> Result:
    """Positions change places, so units along them may not."""
    x = call.value("self")
    axes = {"fliplr": [1], "flipud": [0]}.get(call.name, call.args.get("dims", call.args.get("dim")))
    over = axes_of(axes, x.ndim)
    config = (("dims", str(over)), ("shifts", str(call.args.get("shifts", ""))))
    return Result(_reordered_along(labels, x, over, call), call.name, config)


def _reordered_along(labels: Labels, x: Value, axes: Iterable[int], call: Call) -> Dims:
    dims = x.dims
    for axis in (axis % x.ndim for axis in axes):
        dims = replaced(dims, axis, unordered(labels, dims, axis, call.shape[axis], call.name))
    return dims


@rule("pad", "constant_pad_nd")
def pad(labels: Labels, call: Call) -> Result:
    """Zeros around units may be permuted and rescaled with them; other values forbid both."""
    x = call.value("self")
    widths, mode = list(call.setting("pad")), str(call.args.get("mode", "constant"))
    value = call.args.get("value")
    if mode == "constant" and value not in (None, 0):
        labels.limit(x.dims, "none", call.name)
    dims = list(x.dims)
    for place in range(len(widths) // 2):
        axis = x.ndim - 1 - place
        before, after = widths[2 * place : 2 * place + 2]
        if (before, after) == (0, 0):
            continue
        dim = labels.resolve(dims[axis])
        if is_fixed(dim) or mode != "constant" or min(before, after) < 0 or value not in (None, 0):
            dims[axis] = unordered(labels, dims, axis, call.shape[axis], call.name)
        else:
            labels.mix(without(dims, axis), (dim,))
            zeros = [labels.fresh(size, "constant") if size else () for size in (before, after)]
            dims[axis] = sum_of([part for part in (zeros[0], dim, zeros[1]) if part])
    return Result(tuple(dims), call.name, (("pad", str(widths)), ("mode", mode)))


@rule(
    *(f"{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3)),
    *("_pad_circular",),
)
def mirrored(labels: Labels, call: Call) -> Result:
    """Borders filled with positions of the tensor, so these keep their order."""
    x = call.value("self")
    widths = list(call.args["padding" if "padding" in call.args else "pad"])
    axes = range(x.ndim - len(widths) // 2, x.ndim)
    return Result(_reordered_along(labels, x, axes, call), call.name, (("pad", str(widths)),))


@rule("unfold")
def windows(labels: Labels, call: Call) -> Result:
    """Windows along a dimension, as a new last one."""
    x = call.value("self")
    axis = call.axis("dimension", x.ndim)
    unordered(labels, x.dims, axis, call.shape[axis], call.name)
    count, size = fixed(call.shape[axis], "position"), fixed(call.shape[-1], "position")
    return Result((*replaced(x.dims, axis, count), size), call.name, (("dim", str(axis)),))


@rule("as_strided")
def overlapping(labels: Labels, call: Call) -> Result:
    """Windows over the first axes of a tensor, by steps in memory; the last axes, and the batch, stay.

    x [2, 8, 6], memory steps (48, 6, 1), as [2, 3, 4, 6] with steps (48, 12, 6, 1): the first axis and the
    last have the same size and step in both. The others begin at 0, 6, 12, ... 42, each a place of x's axis
    1. So these are three windows of four positions.
    """
    x, sizes, steps, own = call.value("self"), call.setting("size"), call.setting("stride"), call.args["own"]
    if own is None:
        raise NoRule("it begins elsewhere, or elements of its tensor share memory")
    before, after = list(zip(x.shape, own, strict=True)), list(zip(sizes, steps, strict=True))
    for last, first in product(range(min(len(before), len(after)), -1, -1), (1, 0)):
        if first + last > min(len(before), len(after)):
            continue
        kept = before[:first] == after[:first] and before[len(before) - last :] == after[len(after) - last :]
        if kept and _places(after[first : len(after) - last]) <= _places(before[first : len(before) - last]):
            break
    else:
        raise NoRule("it reads beyond its tensor")
    dims = x.dims
    for axis in range(first, x.ndim - last):
        dims = replaced(dims, axis, unordered(labels, dims, axis, x.shape[axis], call.name))
    inside = places(sizes[first : len(sizes) - last])
    config = (("size", str(sizes[first:])), ("stride", str(steps)))
    return Result((*dims[:first], *inside, *dims[x.ndim - last :]), call.name, config)


def _places(axes: Iterable[tuple[int, int]]) -> set[int]:
    """All sums of an index times its step, over axes of (size, step)."""
    found = {0}
    for size, step in axes:
        found = {place + index * step for place in found for index in range(size)}
    return found


@rule("im2col")
def patches(labels: Labels, call: Call) -> Result:
    """[N, C, H, W] -> [N, C k k, L]: patches, with the positions inside them behind each channel."""
    x = call.value("self")
    *batch, channels = held(labels, x.dims, 2, call.name)
    inside = fixed(call.shape[-2] // x.shape[-3], "kernel")
    dims = (*batch, (*labels.resolve(channels), *inside), fixed(call.shape[-1], "position"))
    return Result(dims, call.name, _window(call))


@rule("col2im")
def from_patches(labels: Labels, call: Call) -> Result:
    """[N, C k k, L] -> [N, C, H, W]: sums of overlapping patches."""
    x = call.value("self")
    channels, inside = taken_apart(labels, x.dims[-2], (call.shape[-3], x.shape[-2] // call.shape[-3]))
    *batch, channels = held(labels, (*x.dims[:-2], channels, inside, x.dims[-1]), 2, call.name)
    return Result((*batch, channels, *places(call.shape[-2:])), call.name, _window(call))


def _window(call: Call) -> tuple[tuple[str, str], ...]:
    keys = ("kernel_size", "dilation", "padding", "stride")
    return tuple((key, per_axis(call.setting(key), 2)) for key in keys)


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def sampled(labels: Labels, call: Call) -> Result:
    """Interpolated at places that a second tensor [N, ..., 2] gives: linear, channel by channel."""
    x, grid = call.value("input"), call.value("grid")
    batch, channels = held(labels, x.dims, x.ndim - 2, call.name)
    labels.limit(grid.dims, "none", call.name)
    labels.mix((grid.dims[0],), grid.dims[1:])
    labels.pin(grid.dims[1:], call.name)
    batch = multiplied(labels, batch, to_power(labels, grid.dims[:1], 0)[0], call.name)
    config = settings(call, "interpolation_mode", "padding_mode", "align_corners")
    return Result((batch, channels, *places(call.shape[2:])), call.name, config)


@rule("roi_align", space="torchvision")
def regions(labels: Labels, call: Call) -> Result:
    """[N, C, H, W] averaged over regions [K, 5], which name an image and a box: [K, C, h, w]; linear."""
    x, rois = call.value("input"), call.value("rois")
    batch, channels = held(labels, x.dims, x.ndim - 2, call.name)
    labels.mix(rois.dims, (channels,))
    labels.pin((batch, *rois.dims), call.name)
    keys = ("spatial_scale", "pooled_height", "pooled_width", "sampling_ratio", "aligned")
    return Result(
        (*places(call.shape[:1]), channels, *places(call.shape[2:])), call.name, settings(call, *keys)
    )


_TRANSFORMS = ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")


@rule(*(f"fft_{kind}{rank}" for kind in _TRANSFORMS for rank in ("", "2", "n")))
def fourier(labels: Labels, call: Call) -> Result:
    """Linear; positions along the transformed axes keep their order, and frequencies have one."""
    x = call.value("self")
    over = axes_of(call.args.get("dim"), x.ndim)
    config = (("dim", str(over)), *settings(call, "norm"))
    return Result(_reordered_along(labels, x, over, call), call.name, config)


@rule("view_as_complex")
def complex_pairs(labels: Labels, call: Call) -> Result:
    """Real and imaginary part, the last dimension, have their order and one scale."""
    return Result(held(labels, call.value("self").dims, 1, call.name), call.name)


@rule("view_as_real")
def real_pairs(labels: Labels, call: Call) -> Result:
    """Real and imaginary part as a new last dimension, in order."""
    del labels
    return Result((*call.value("self").dims, fixed(2, "part")), call.name)


@rule("complex", "polar")
def complex_of(labels: Labels, call: Call) -> Result:
    """From real and imaginary part, or from magnitude and angle."""
    if call.name == "complex":
        dims = together(labels, call.value("real"), call.value("imag"), len(call.shape), call.name)
    else:
        dims = gated(labels, call.value("angle"), call.value("abs"), len(call.shape), call.name)
    return Result(dims, call.name)


def unordered(labels: Labels, dims: Sequence[Dim], axis: int, size: int, reason: str) -> Dim:
    """Allows nothing along an axis whose positions are reordered or left out; returns the axis after it."""
    dim = dims[axis]
    inputs = any(labels.is_input(item) for item in labels.resolve(dim))
    labels.mix(without(dims, axis), (dim,))
    labels.pin((dim,), reason)
    return labels.fresh_input(size) if inputs else fixed(size, "position")
