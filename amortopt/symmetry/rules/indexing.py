"""Looking up, gathering and scattering by index."""

from __future__ import annotations

import math

import torch

from amortopt.symmetry.rules.arithmetic import gated, together
from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, rule, settings
from amortopt.symmetry.rules.dimensions import by_axis, mix_along, places, replaced, to_power, without
from amortopt.symmetry.solve.dims import Dims, fixed
from amortopt.symmetry.solve.labels import Labels


@rule("embedding", "embedding_bag")
def embedding(labels: Labels, call: Call) -> Result:
    """Rows of a table, or sums, means or maxima of rows; its first axis is an input of the network."""
    if call.args.get("per_sample_weights") is not None:
        raise NoRule("it has weights per sample")
    weight = call.value("weight")
    rows, columns = weight.dims
    labels.mix((columns,), (rows,))
    labels.pin((rows,), call.name)
    labels.tie(rows, labels.fresh_input(weight.shape[0]), call.name)
    if call.name == "embedding":
        return Result((*call.value("indices").dims, columns), call.name)
    if call.args.get("mode") == 2:  # maxima
        labels.limit((columns,), "positive", call.name)
    out = (fixed(call.shape[0], "batch"), columns)
    return Result((), call.name, settings(call, "mode"), parts=(out, *(None for _ in call.shapes[1:])))


@rule("index")
def index(labels: Labels, call: Call) -> Result:
    """By tensors of indices: axes that they index keep their order; the other axes are as they were."""
    x, by = call.value("self"), _indexed_axes(labels, call)
    used, picked = list(by), max(value.ndim if value.dtype != torch.bool else 1 for value in by.values())
    # Next to each other, indices are replaced where they are; apart from each other, by the first axes.
    place = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    before = tuple(dim for axis, dim in enumerate(x.dims) if axis not in by and axis < place)
    after = tuple(dim for axis, dim in enumerate(x.dims) if axis not in by and axis >= place)
    return Result((*before, *places(call.shape[place : place + picked]), *after), call.name)


def _indexed_axes(labels: Labels, call: Call) -> dict[int, Value]:
    """Axis -> the tensor that indexes it, a mask for as many axes as it has; these axes keep their order."""
    x, by, axis = call.value("self"), dict[int, Value](), 0
    for value in call.setting("indices"):
        width = 1
        if isinstance(value, Value):
            width = value.ndim if value.dtype in (torch.bool, torch.uint8) else 1
            by |= dict.fromkeys(range(axis, axis + width), value)
        elif value is not None:
            raise NoRule("an index is not one tensor")
        axis += width
    if not by or any(value.ndim == 0 and value.dtype == torch.bool for value in by.values()):
        raise NoRule("it has no index along an axis")
    mix_along(labels, x.dims, *by)
    for axis, value in by.items():
        labels.pin(value.dims, call.name)
        _hold(labels, x, axis, call.name)
    return by


@rule("index_put")
def index_put(labels: Labels, call: Call) -> Result:
    """Written, or added, to places: along axes that are not indexed the values have the tensor's units."""
    x, source, by = call.value("self"), call.value("values"), _indexed_axes(labels, call)
    used = list(by)
    kept = [axis for axis in range(x.ndim) if axis not in by]
    masks = [value for value in by.values() if value.dtype in (torch.bool, torch.uint8)]
    apart = used != list(range(used[0], used[-1] + 1))
    if apart or (masks and any(value is not masks[0] for value in by.values())):
        labels.pin((*source.dims, *(x.dims[axis] for axis in kept)), call.name)
        return Result(x.dims, call.name)
    # Indices stand next to each other: in the values, what they pick is where they are in the tensor.
    before, behind = [axis for axis in kept if axis < used[0]], [axis for axis in kept if axis > used[0]]
    picked = _picked(by, masks, source, len(behind))
    dims = [*(x.dims[axis] for axis in before), *places(picked), *(x.dims[axis] for axis in behind)]
    sizes = (*(x.shape[axis] for axis in before), *picked, *(x.shape[axis] for axis in behind))
    along = [axis - len(sizes) for axis in range(len(before), len(before) + len(picked))]
    mix_along(labels, source.dims, *(source.ndim + axis for axis in along if source.ndim + axis >= 0))
    dims = together(labels, source, Value(tuple(dims), sizes), len(sizes), call.name)
    rest = (*dims[: len(before)], *dims[len(before) + len(picked) :])
    back = dict(zip(kept, rest, strict=True))
    return Result(tuple(back.get(axis, dim) for axis, dim in enumerate(x.dims)), call.name)


def _picked(by: dict[int, Value], masks: list[Value], source: Value, behind: int) -> tuple[int, ...]:
    """Sizes of what indices pick. A mask picks as many places as the values have there, or any number."""
    if not masks:
        return tuple(torch.broadcast_shapes(*(value.shape for value in by.values())))
    return (source.shape[-1 - behind] if source.ndim > behind else 1,)


@rule("masked_scatter")
def masked_scatter(labels: Labels, call: Call) -> Result:
    """Rows of a source, in their order, written to the rows that a mask holds: units along them are the same.

    Only if the mask is the same for all units of the last dimension; else nothing may move.
    """
    x, mask, source = call.value("self"), call.value("mask"), call.value("source")
    unit = labels.unit_of(mask.dims[-1]) if mask.ndim and mask.shape[-1:] == x.shape[-1:] else None
    # Units of a copied or constant axis, along which the mask does not vary.
    whole = unit is not None and labels.origin(unit) == "constant" and labels.permutable(unit)
    if not whole or source.shape[-1:] != x.shape[-1:] or x.ndim < 2:
        for value in (x, mask, source):
            labels.pin(value.dims, call.name)
        return Result(x.dims, call.name)
    for value in (x, mask, source):
        mix_along(labels, value.dims, *range(value.ndim - 1))
        labels.pin(value.dims[:-1], call.name)
    labels.tie(source.dims[-1], x.dims[-1], call.name)
    return Result((*x.dims[:-1], gated(labels, mask, x, x.ndim, call.name)[-1]), call.name)


def _hold(labels: Labels, x: Value, axis: int, reason: str) -> None:
    """Allow nothing along an axis; for a parameter it is one of positions then."""
    if x.param is not None:
        labels.tie(x.dims[axis], fixed(x.shape[axis], "position"), reason)
    labels.pin((x.dims[axis],), reason)


@rule("index_select")
def index_select(labels: Labels, call: Call) -> Result:
    """By a vector of indices along one dimension."""
    x = call.value("self")
    axis = call.axis("dim", x.ndim)
    mix_along(labels, x.dims, axis)
    labels.pin(call.value("index").dims, call.name)
    _hold(labels, x, axis, call.name)
    dims = replaced(x.dims, axis, fixed(call.shape[axis], "position"))
    return Result(dims, call.name, (("dim", str(axis)),))


@rule("zeros", "zeros_like", "new_zeros", "empty", "empty_like", "new_empty")
def zeros(labels: Labels, call: Call) -> Result:
    """Zeros, and memory to be written over, may be permuted and rescaled with any tensor."""
    dims = tuple(labels.fresh(size, "constant") for size in call.shape)
    several = tuple(dim for dim, size in zip(dims, call.shape, strict=True) if size > 1)
    if len(several) > 1:
        labels.nest(several)
    return Result(dims, zero=math.prod(call.shape) == 1 and "empty" not in call.name)


@rule("ones", "ones_like", "full", "full_like", "new_ones", "new_full")
def constant(labels: Labels, call: Call) -> Result:
    """One value everywhere is permuted with anything."""
    if call.args.get("fill_value") == 0:
        return zeros(labels, call)
    return Result(tuple(labels.fresh(size, "constant", "none") for size in call.shape))


@rule("fill", "zero")
def filled(labels: Labels, call: Call) -> Result:
    """Written over with a number: zeros may be rescaled, other numbers not."""
    x, value = call.value("self"), call.args.get("value", 0)
    if isinstance(value, Value) or value != 0:
        labels.pin(x.dims, call.name)
    return Result(x.dims)


@rule("bucketize", "searchsorted", "histc", "bincount")
def counted(labels: Labels, call: Call) -> Result:
    """Bins of values, or numbers of values in bins: nothing may be permuted or rescaled."""
    for value in call.args.values():
        if isinstance(value, Value):
            labels.pin(value.dims, call.name)
    x = call.value("input" if "input" in call.args else "self")
    if x.shape == call.shape:
        return Result(x.dims, call.name)
    return Result(places(call.shape), call.name)


@rule("topk", "sort", "argsort", "argmax", "argmin", "kthvalue")
def ordered(labels: Labels, call: Call) -> Result:
    """Values ordered by size along a dimension, and their indices; units along it are not permuted."""
    x = call.value("self")
    if call.args.get("dim") is None:
        labels.pin(x.dims, call.name)
        return Result((), call.name)
    axis = call.axis("dim", x.ndim)
    even = labels.even(x.dims, (axis,))
    labels.limit(even, "positive", call.name)
    labels.mix(without(even, axis), (x.dims[axis],))
    labels.freeze((x.dims[axis],))
    config = (("dim", str(axis)), *settings(call, "k"))
    along = places(call.shape[axis : axis + 1]) if len(call.shape) == x.ndim else ()
    kept = replaced(even, axis, *along)
    indices = to_power(labels, kept, 0)
    if len(call.shapes) < 2:
        return Result(indices, call.name, config)
    return Result((), call.name, config, parts=(kept, indices))


@rule("gather", "take_along_dim")
def gather(labels: Labels, call: Call) -> Result:
    """By indices along one dimension, which keeps its order; along the others units are the same."""
    x = call.value("self")
    indices = call.value("index" if "index" in call.args else "indices")
    if call.args.get("dim") is None or indices.ndim != x.ndim:
        raise NoRule("it is flattened")
    axis = call.axis("dim", x.ndim)
    dims = _alike_except(labels, x, indices, axis, call.name, broadcast=call.name == "take_along_dim")
    return Result(replaced(dims, axis, indices.dims[axis]), call.name, (("dim", str(axis)),))


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(labels: Labels, call: Call) -> Result:
    """Written to places along one dimension, which keeps its order; along the others units are the same."""
    x, source = call.value("self"), call.args.get("src", call.args.get("value"))
    axis = call.axis("dim", x.ndim)
    dims = _alike_except(labels, x, call.value("index"), axis, call.name)
    reduce = call.args.get("reduce")
    if reduce in ("prod", "multiply"):
        raise NoRule("it multiplies")
    if isinstance(source, Value):
        if any(n != m for k, (n, m) in enumerate(zip(source.shape, x.shape, strict=True)) if k != axis):
            raise NoRule("what it writes is narrower or wider")
        mix_along(labels, source.dims, axis)
        labels.pin((source.dims[axis],), call.name)
        for dim, target in zip(without(source.dims, axis), without(dims, axis), strict=True):
            labels.tie(dim, target, call.name)
        labels.align(by_axis(dims), by_axis(source.dims))
    else:
        labels.limit(dims, "none", call.name)
    if reduce in ("amax", "amin"):
        labels.limit(dims, "positive", call.name)
    return Result(dims, call.name, (("dim", str(axis)), ("reduce", str(reduce))))


@rule("index_add", "index_copy", "index_fill", "index_reduce")
def indexed(labels: Labels, call: Call) -> Result:
    """Slices added or written to places along one dimension; along the others they have its units."""
    x, source, reduce = call.value("self"), call.args.get("source"), str(call.args.get("reduce"))
    axis = call.axis("dim", x.ndim)
    dims = labels.even(x.dims, (axis,))
    labels.mix(without(dims, axis), (x.dims[axis],))
    _hold(labels, x, axis, call.name)
    labels.pin(call.value("index").dims, call.name)
    if isinstance(source, Value):
        if source.ndim != x.ndim:
            raise NoRule("what it writes has other dimensions")
        mix_along(labels, source.dims, axis)
        labels.pin((source.dims[axis],), call.name)
        shape = x.shape[:axis] + x.shape[axis + 1 :]
        slices = (Value(without(source.dims, axis), shape), Value(without(dims, axis), shape))
        kept = together(labels, *slices, len(shape), call.name)
        dims = (*kept[:axis], dims[axis], *kept[axis:])
    else:
        labels.limit(dims, "none", call.name)
    if call.name == "index_reduce":
        labels.limit(dims, "positive" if reduce in ("amax", "amin", "mean") else "none", call.name)
    return Result(dims, call.name, (("dim", str(axis)), ("reduce", reduce)))


def _alike_except(
    labels: Labels, x: Value, indices: Value, axis: int, reason: str, *, broadcast: bool = False
) -> Dims:
    """Hold the order along ``axis``; along the others, indices are permuted like ``x``. Labels of ``x``."""
    dims = labels.even(x.dims, (axis,))
    labels.mix(without(dims, axis), (x.dims[axis],))
    _hold(labels, x, axis, reason)
    labels.pin((indices.dims[axis],), reason)
    for other, dim in enumerate(indices.dims):
        if other == axis or (broadcast and indices.shape[other] == 1):
            continue
        if indices.shape[other] != x.shape[other]:
            raise NoRule("its indices are fewer than what they choose from")
        labels.tie_units(dim, dims[other], reason)
    labels.align(by_axis(dims), by_axis(indices.dims))
    return dims


@rule("one_hot")
def one_hot(labels: Labels, call: Call) -> Result:
    """Indices as a new dimension."""
    x = call.value("self")
    labels.limit(x.dims, "none", call.name)
    return Result((*x.dims, fixed(call.shape[-1], "position")), call.name)
