"""Looking up, gathering and scattering by index."""

from __future__ import annotations

import torch

from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, by_axis, rule
from amortopt.symmetry.rules.broadcasting import together
from amortopt.symmetry.solve.dims import Dim, fixed
from amortopt.symmetry.solve.labels import Labels


@rule("embedding")
def embedding(labels: Labels, call: Call) -> Result:
    """Rows of a table: its first axis is an input of the network, known by index."""
    weight, indices = call.value("weight"), call.value("indices")
    labels.mix((weight.dims[1],), (weight.dims[0],))
    _known(labels, weight.dims[0], weight.shape[0], call.name)
    return Result((*indices.dims, weight.dims[1]), call.name)


@rule("embedding_bag")
def embedding_bag(labels: Labels, call: Call) -> Result:
    """Sums, means or maxima of rows of a table."""
    if call.args.get("per_sample_weights") is not None:
        raise NoRule("it has weights per sample")
    weight = call.value("weight")
    labels.mix((weight.dims[1],), (weight.dims[0],))
    _known(labels, weight.dims[0], weight.shape[0], call.name)
    if call.args.get("mode") == 2:
        labels.limit((weight.dims[1],), "positive", call.name)
    out = (fixed(call.shape[0], "batch"), weight.dims[1])
    rest = tuple(None for _ in call.shapes[1:])
    return Result((), call.name, (("mode", str(call.args.get("mode"))),), parts=(out, *rest))


def _known(labels: Labels, dim: Dim, size: int, reason: str) -> None:
    labels.pin((dim,), reason)
    labels.tie(dim, labels.fresh_input(size), reason)


@rule("index")
def index(labels: Labels, call: Call) -> Result:
    """By tensors of indices: what they are along keeps its order; everything else is kept."""
    x, by = call.value("self"), _by_axis(call)
    _read_at(labels, x, by, call.name)
    used, picked = list(by), max(value.ndim if value.dtype != torch.bool else 1 for value in by.values())
    # Next to each other, indices are replaced where they are; apart from each other, by the first axes.
    place = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    before = tuple(dim for axis, dim in enumerate(x.dims) if axis not in by and axis < place)
    after = tuple(dim for axis, dim in enumerate(x.dims) if axis not in by and axis >= place)
    new = tuple(fixed(size, "position") for size in call.shape[place : place + picked])
    return Result((*before, *new, *after), call.name)


def _by_axis(call: Call) -> dict[int, Value]:
    """Axis -> the tensor that it is indexed by; a mask is along as many axes as it has."""
    found: dict[int, Value] = {}
    axis = 0
    for value in call.setting("indices"):
        width = 1
        if isinstance(value, Value):
            width = value.ndim if value.dtype in (torch.bool, torch.uint8) else 1
            found |= dict.fromkeys(range(axis, axis + width), value)
        elif value is not None:
            raise NoRule("an index is not one tensor")
        axis += width
    if not found or any(value.ndim == 0 and value.dtype == torch.bool for value in found.values()):
        raise NoRule("it has no index along an axis")
    return found


def _read_at(labels: Labels, x: Value, by: dict[int, Value], reason: str) -> None:
    """Let the order along indexed axes, and of the indices, be as it is."""
    labels.mix(
        tuple(dim for axis, dim in enumerate(x.dims) if axis not in by), tuple(x.dims[axis] for axis in by)
    )
    for axis, value in by.items():
        labels.pin(value.dims, reason)
        _hold(labels, x.dims[axis], x.shape[axis], x.param is not None, reason)


@rule("index_put")
def index_put(labels: Labels, call: Call) -> Result:
    """Written, or added, to places: along the axes that are kept the values move as the tensor does."""
    x, source, by = call.value("self"), call.value("values"), _by_axis(call)
    _read_at(labels, x, by, call.name)
    used = list(by)
    kept = [axis for axis in range(x.ndim) if axis not in by]
    apart = used != list(range(used[0], used[-1] + 1))
    if apart or any(value.dtype == torch.bool for value in by.values()) or used[0] != 0:
        labels.pin((*source.dims, *(x.dims[axis] for axis in kept)), call.name)
        return Result(x.dims, call.name)
    picked = max(value.ndim for value in by.values())
    shape = tuple(torch.broadcast_shapes(*(value.shape for value in by.values())))
    places = tuple(fixed(size, "position") for size in shape[len(shape) - picked :])
    target = Value((*places, *(x.dims[axis] for axis in kept)), (*shape, *(x.shape[axis] for axis in kept)))
    labels.mix(
        source.dims[source.ndim - len(kept) :] if kept else (), source.dims[: max(source.ndim - len(kept), 0)]
    )
    dims = together(labels, source, target, target.ndim, call.name)
    back = dict(zip(kept, dims[picked:], strict=True))
    return Result(tuple(back.get(axis, dim) for axis, dim in enumerate(x.dims)), call.name)


def _hold(labels: Labels, dim: Dim, size: int, param: bool, reason: str) -> None:
    """Let the order along a dimension be as it is."""
    if param:
        labels.tie(dim, fixed(size, "position"), reason)
    labels.pin((dim,), reason)


@rule("index_select")
def index_select(labels: Labels, call: Call) -> Result:
    """By a vector of indices along one dimension."""
    x = call.value("self")
    axis = call.axis("dim", x.ndim)
    rest = (*x.dims[:axis], *x.dims[axis + 1 :])
    labels.mix(rest, (x.dims[axis],))
    labels.pin(call.value("index").dims, call.name)
    _hold(labels, x.dims[axis], x.shape[axis], x.param is not None, call.name)
    dims = (*x.dims[:axis], fixed(call.shape[axis], "position"), *x.dims[axis + 1 :])
    return Result(dims, call.name, (("dim", str(axis)),))


@rule("zeros", "zeros_like", "new_zeros", "empty", "empty_like", "new_empty")
def zeros(labels: Labels, call: Call) -> Result:
    """Zeros, and what is written over, move with anything, at every index with something else."""
    dims = tuple(labels.fresh(size, "constant") for size in call.shape)
    several = tuple(dim for dim, size in zip(dims, call.shape, strict=True) if size > 1)
    if len(several) > 1:
        labels.nest(several)
    return Result(dims)


@rule("ones", "ones_like", "full", "full_like", "new_ones", "new_full")
def constant(labels: Labels, call: Call) -> Result:
    """One value everywhere is permuted with anything."""
    return Result(tuple(labels.fresh(size, "constant", "none") for size in call.shape))


@rule("fill", "zero")
def filled(labels: Labels, call: Call) -> Result:
    """Written over with a number."""
    x, value = call.value("self"), call.args.get("value", 0)
    if isinstance(value, Value) or value != 0:
        labels.pin(x.dims, call.name)
    return Result(x.dims)


@rule("bucketize", "searchsorted", "histc", "bincount")
def counted(labels: Labels, call: Call) -> Result:
    """Which of some bounds a value lies between, or how many do: nothing may be moved or scaled."""
    for value in call.args.values():
        if isinstance(value, Value):
            labels.pin(value.dims, call.name)
    x = call.value("input" if "input" in call.args else "self")
    if x.shape == call.shape:
        return Result(x.dims, call.name)
    return Result(tuple(fixed(size, "position") for size in call.shape), call.name)


@rule("topk", "sort", "argsort", "argmax", "argmin", "kthvalue")
def ordered(labels: Labels, call: Call) -> Result:
    """The largest along a dimension, and where they are: places are known by their index."""
    x = call.value("self")
    if call.args.get("dim") is None:
        labels.pin(x.dims, call.name)
        return Result((), call.name)
    axis = call.axis("dim", x.ndim)
    even = labels.even(x.dims, (axis,))
    labels.limit(even, "positive", call.name)
    labels.mix((*even[:axis], *even[axis + 1 :]), (x.dims[axis],))
    labels.freeze((x.dims[axis],))
    config = (("dim", str(axis)), ("k", str(call.args.get("k"))))
    if len(call.shape) < x.ndim:
        kept = (*even[:axis], *even[axis + 1 :])
    else:
        kept = (*even[:axis], fixed(call.shape[axis], "position"), *even[axis + 1 :])
    places = tuple(labels.unscaled(labels.resolve(dim)) for dim in kept)
    if len(call.shapes) < 2:
        return Result(places, call.name, config)
    return Result((), call.name, config, parts=(kept, places))


@rule("gather", "take_along_dim")
def gather(labels: Labels, call: Call) -> Result:
    """By a tensor of indices along one dimension, which is known by its index; along all others alike."""
    x = call.value("self")
    places = call.value("index" if "index" in call.args else "indices")
    if call.args.get("dim") is None or places.ndim != x.ndim:
        raise NoRule("it is flattened")
    axis = call.axis("dim", x.ndim)
    dims = _alike_except(labels, x, places, axis, call.name)
    return Result((*dims[:axis], places.dims[axis], *dims[axis + 1 :]), call.name, (("dim", str(axis)),))


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(labels: Labels, call: Call) -> Result:
    """Written to places known by their index; along all other dimensions alike."""
    x, places, source = call.value("self"), call.value("index"), call.args.get("src", call.args.get("value"))
    axis = call.axis("dim", x.ndim)
    dims = _alike_except(labels, x, places, axis, call.name)
    reduce = call.args.get("reduce")
    if reduce in ("prod", "multiply"):
        raise NoRule("it multiplies")
    if isinstance(source, Value):
        if any(n != m for k, (n, m) in enumerate(zip(source.shape, x.shape, strict=True)) if k != axis):
            raise NoRule("what it writes is narrower or wider")
        labels.mix((*source.dims[:axis], *source.dims[axis + 1 :]), (source.dims[axis],))
        labels.pin((source.dims[axis],), call.name)
        for other, dim in enumerate(source.dims):
            if other != axis:
                labels.tie(dim, dims[other], call.name)
        labels.align(by_axis(dims), by_axis(source.dims))
    else:
        labels.limit(dims, "none", call.name)
    if reduce in ("amax", "amin"):
        labels.limit(dims, "positive", call.name)
    return Result(dims, call.name, (("dim", str(axis)), ("reduce", str(reduce))))


@rule("index_add", "index_copy", "index_fill", "index_reduce")
def indexed(labels: Labels, call: Call) -> Result:
    """Slices added or written to places along one dimension; they move as the tensor does."""
    x, source, reduce = call.value("self"), call.args.get("source"), str(call.args.get("reduce"))
    axis = call.axis("dim", x.ndim)
    dims = labels.even(x.dims, (axis,))
    labels.mix((*dims[:axis], *dims[axis + 1 :]), (x.dims[axis],))
    _hold(labels, x.dims[axis], x.shape[axis], x.param is not None, call.name)
    labels.pin(call.value("index").dims, call.name)
    if isinstance(source, Value):
        if source.ndim != x.ndim:
            raise NoRule("what it writes has other dimensions")
        labels.mix((*source.dims[:axis], *source.dims[axis + 1 :]), (source.dims[axis],))
        labels.pin((source.dims[axis],), call.name)
        shape = x.shape[:axis] + x.shape[axis + 1 :]
        written = Value(source.dims[:axis] + source.dims[axis + 1 :], shape)
        own = Value(dims[:axis] + dims[axis + 1 :], shape)
        kept = together(labels, written, own, len(shape), call.name)
        dims = (*kept[:axis], dims[axis], *kept[axis:])
    else:
        labels.limit(dims, "none", call.name)
    if call.name == "index_reduce":
        labels.limit(dims, "positive" if reduce in ("amax", "amin", "mean") else "none", call.name)
    return Result(dims, call.name, (("dim", str(axis)), ("reduce", reduce)))


def _alike_except(labels: Labels, x: Value, places: Value, axis: int, reason: str) -> tuple[Dim, ...]:
    """Hold the order along an axis and let places be permuted as what they are places of; the labels."""
    dims = labels.even(x.dims, (axis,))
    labels.mix((*dims[:axis], *dims[axis + 1 :]), (x.dims[axis],))
    _hold(labels, x.dims[axis], x.shape[axis], x.param is not None, reason)
    labels.pin((places.dims[axis],), reason)
    for other, dim in enumerate(places.dims):
        if other == axis:
            continue
        if places.shape[other] != x.shape[other]:
            raise NoRule("its indices are fewer than what they choose from")
        labels.tie_units(dim, dims[other], reason)
    labels.align(by_axis(dims), by_axis(places.dims))
    return dims


@rule("one_hot")
def one_hot(labels: Labels, call: Call) -> Result:
    """Indices as a new dimension."""
    x = call.value("self")
    labels.limit(x.dims, "none", call.name)
    return Result((*x.dims, fixed(call.shape[-1], "position")), call.name)
