"""Pooling and reductions over dimensions."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import torch

from amortopt.symmetry.axes import ScaleKind
from amortopt.symmetry.rules.arithmetic import multiplied, together
from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, rule
from amortopt.symmetry.rules.dimensions import axes_of, held, per_axis, places, to_power, without
from amortopt.symmetry.solve.dims import Dims
from amortopt.symmetry.solve.labels import Labels

_POOLS: dict[str, tuple[ScaleKind, tuple[str, ...]]] = {
    # max(q x) = q max(x) for q > 0; averages are linear.
    "max_pool": ("positive", ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    "avg_pool": (
        "free",
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ),
    "adaptive_max_pool": ("positive", ("output_size",)),
    "adaptive_avg_pool": ("free", ()),
}
"""Name without the number of axes -> the scales it commutes with, settings by which two pools differ."""


@rule(
    *(f"{pool}{rank}d" for pool in _POOLS for rank in (1, 2, 3)),
    *(f"max_pool{rank}d_with_indices" for rank in (1, 2, 3)),
)
def pool(labels: Labels, call: Call) -> Result:
    """Windows over the last axes mix positions; channels keep their units."""
    x = call.value("self")
    name, axes = re.findall(r"(\w+_pool)(\d)d", call.name)[0]
    (kind, keys), rank = _POOLS[name], int(axes)
    kept = held(labels, x.dims, rank, call.name)
    labels.limit(kept, kind, call.name)
    dims = (*kept, *places(call.shape[-rank:]))
    if name == "adaptive_avg_pool":
        if call.shape[-rank:] == (1,) * rank:
            return Result(dims, "global_avg_pool")
        return Result(dims, call.name, (("output_size", per_axis(call.shape[-rank:], rank)),))
    values = {key: call.args[key] for key in keys if key in call.args}
    if values.get("stride") == []:
        values["stride"] = values["kernel_size"]
    config = tuple(
        (key, str(value) if isinstance(value, bool) else per_axis(value, rank))
        for key, value in values.items()
    )
    if len(call.shapes) < 2:
        return Result(dims, call.name, config)
    # The second output are places of maxima, which have no scale.
    return Result((), call.name, config, parts=(dims, to_power(labels, dims, 0)))


@rule(
    *(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "trilinear3d")),
    *(f"_upsample_nearest_exact{rank}d" for rank in (1, 2, 3)),
    *("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
)
def upsample(labels: Labels, call: Call) -> Result:
    """Linear over the positions of each channel, which keep their order."""
    x = call.value("input" if "input" in call.args else "self")
    kept = held(labels, x.dims, x.ndim - 2, call.name)
    config = (("size", per_axis(call.shape[2:], len(call.shape[2:]))),)
    return Result((*kept, *places(call.shape[2:])), call.name, config)


_REDUCTIONS: dict[ScaleKind, tuple[str, ...]] = {
    "free": ("mean", "sum", "nansum", "nanmean"),
    "positive": ("amax", "amin", "max", "min", "median", "nanmedian", "mode"),
    "none": (
        *(
            "var",
            "std",
            "logsumexp",
            "prod",
            "any",
            "all",
            "count_nonzero",
            "var_mean",
            "std_mean",
            "aminmax",
        ),
    ),
}
_KIND: dict[str, ScaleKind] = {op: kind for kind, ops in _REDUCTIONS.items() for op in ops}


@rule(*_KIND)
def reduction(labels: Labels, call: Call) -> Result:
    """Units that are reduced over may be permuted, the others also have the scales of their kind."""
    kind = _KIND[call.name]
    if call.integer and kind == "free":
        kind = "none"  # a count
    if isinstance(call.args.get("other"), Value):
        dims = together(labels, call.value("self"), call.value("other"), len(call.shape), call.name)
        labels.limit(dims, kind, call.name)
        return Result(dims, call.name)
    x, over = call.value("self"), call.args.get("dim")
    axes = tuple(sorted(axis % x.ndim for axis in axes_of(over, x.ndim))) if x.ndim else ()
    even = labels.even(x.dims, axes)
    labels.mix(without(even, *axes), tuple(x.dims[axis] for axis in axes))
    dims = reduced(even, axes, call.args.get("keepdim", False))
    labels.limit(even if call.integer else dims, kind, call.name)
    if call.name == "mean" and x.ndim >= 3 and axes == tuple(range(2, x.ndim)):
        return Result(dims, "global_avg_pool")
    config = (("dim", str(axes)),)
    if len(call.shapes) < 2:
        return Result(dims, call.name, config)
    if kind == "none":
        return Result((), call.name, config, parts=tuple(dims for _ in call.shapes))
    # The second output is the place of the extremum, which is another one after a permutation.
    labels.freeze(tuple(x.dims[axis] for axis in axes))
    return Result((), call.name, config, parts=(dims, to_power(labels, dims, 0)))


def reduced(dims: Dims, axes: Collection[int], keepdim: Any) -> Dims:
    """The dimensions left after reducing over ``axes``; with ``keepdim`` one of size one for each of them."""
    return tuple(() if axis in axes else dim for axis, dim in enumerate(dims) if keepdim or axis not in axes)


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")
def running(labels: Labels, call: Call) -> Result:
    """Along an axis whose order matters; sums are linear, extrema commute with positive scales."""
    x = call.value("self")
    axis = call.axis("dim", x.ndim)
    dims = labels.even(x.dims, (axis,))
    labels.mix(without(dims, axis), (x.dims[axis],))
    labels.freeze((x.dims[axis],))
    kind: dict[str, ScaleKind] = {"cumsum": "free", "cummax": "positive", "cummin": "positive"}
    labels.limit(dims, kind.get(call.name, "none"), call.name)
    parts = (dims, to_power(labels, dims, 0)) if len(call.shapes) > 1 else None
    return Result(dims if parts is None else (), call.name, (("dim", str(axis)),), parts=parts)


@rule("diff")
def differences(labels: Labels, call: Call) -> Result:
    """Of neighbours along an axis, which keeps its order: linear."""
    x = call.value("self")
    if call.args.get("prepend") is not None or call.args.get("append") is not None:
        raise NoRule("it is given what lies before or behind")
    axis = call.axis("dim", x.ndim)
    dims = labels.even(x.dims, (axis,))
    labels.mix(without(dims, axis), (x.dims[axis],))
    labels.pin((x.dims[axis],), call.name)
    dims = (*dims[:axis], *places(call.shape[axis : axis + 1]), *dims[axis + 1 :])
    return Result(dims, call.name, (("dim", str(axis)),))


@rule("quantile", "nanquantile")
def quantile(labels: Labels, call: Call) -> Result:
    """Interpolated between ordered values, so homogeneous; a vector of levels is a first dimension."""
    x, level = call.value("self"), call.setting("q")
    dim = call.args.get("dim")
    axes = tuple(sorted(axis % x.ndim for axis in axes_of(dim, x.ndim)))
    even = labels.even(x.dims, axes)
    labels.mix(without(even, *axes), tuple(x.dims[axis] for axis in axes))
    dims = reduced(even, axes, call.args.get("keepdim", False))
    labels.limit(dims, "positive", call.name)
    levels = places(level.shape) if isinstance(level, Value) else ()
    if isinstance(level, Value):
        labels.pin(level.dims, call.name)
    return Result((*levels, *dims), call.name, (("dim", str(axes)),))


@rule("max_unpool2d", "max_unpool3d")
def unpooled(labels: Labels, call: Call) -> Result:
    """Written to the places that a pooling took them from, channel by channel."""
    x, indices = call.value("self"), call.value("indices")
    rank = 2 if call.name == "max_unpool2d" else 3
    kept, of = held(labels, x.dims, rank, call.name), held(labels, indices.dims, rank, call.name)
    labels.limit(of, "none", call.name)
    kept = tuple(
        multiplied(labels, a, b, call.name) for a, b in zip(to_power(labels, of, 0), kept, strict=True)
    )
    return Result((*kept, *places(call.shape[-rank:])), call.name)


@rule("cosine_similarity", "pairwise_distance", "dist")
def compared_vectors(labels: Labels, call: Call) -> Result:
    """Of two tensors along a dimension; a cosine does not change with the signs of single coordinates."""
    x, y = (call.value(key) for key in (("self", "other") if call.name == "dist" else ("x1", "x2")))
    shape = tuple(torch.broadcast_shapes(x.shape, y.shape))
    dims = together(labels, x, y, len(shape), call.name)
    labels.limit(dims, "sign" if call.name == "cosine_similarity" else "none", call.name)
    if call.name == "dist":
        over = tuple(range(len(shape)))
    else:
        over = (len(shape) - 1 if call.name == "pairwise_distance" else call.axis("dim", len(shape)),)
    rest = without(dims, *over)
    labels.limit(rest, "none", call.name)
    labels.mix(rest, tuple(dims[axis] for axis in over))
    if call.args.get("keepdim"):
        rest = (*rest, ())
    return Result(rest, call.name)
