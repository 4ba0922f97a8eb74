"""Looking up, gathering and scattering by index."""

from __future__ import annotations

from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, by_axis, rule
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


@rule("index", "_unsafe_index")
def index(labels: Labels, call: Call) -> Result:
    """By tensors of indices: what they are along keeps its order; everything else is kept."""
    x, indices = call.value("self"), list(call.args["indices"])
    indices += [None] * (x.ndim - len(indices))
    used = [axis for axis, value in enumerate(indices) if value is not None]
    tensors = [value for value in indices if isinstance(value, Value)]
    if len(tensors) != len(used) or used != list(range(used[0], used[-1] + 1)):
        raise NoRule("its indices are apart from each other")
    labels.mix(
        tuple(dim for axis, dim in enumerate(x.dims) if axis not in used), tuple(x.dims[a] for a in used)
    )
    for value in tensors:
        labels.pin(value.dims, call.name)
    for axis in used:
        _hold(labels, x.dims[axis], x.shape[axis], x.param is not None, call.name)
    picked = max(value.ndim for value in tensors)
    new = tuple(fixed(size, "position") for size in call.shape[used[0] : used[0] + picked])
    dims = (*x.dims[: used[0]], *new, *x.dims[used[-1] + 1 :])
    if len(dims) != len(call.shape):
        raise NoRule("its indices are masks")
    return Result(dims, call.name)


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


@rule("zeros", "zeros_like", "new_zeros")
def zeros(labels: Labels, call: Call) -> Result:
    """Zeros move with anything, at every index with something else."""
    dims = tuple(labels.fresh(size, "constant") for size in call.shape)
    if len(dims) > 1:
        labels.nest(dims)
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


@rule("topk", "sort", "argsort", "argmax", "argmin", "kthvalue")
def ordered(labels: Labels, call: Call) -> Result:
    """The largest along a dimension, and where they are: places are known by their index."""
    x = call.value("self")
    if call.args.get("dim") is None:
        raise NoRule("it runs over all dimensions")
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


@rule("scatter", "scatter_add")
def scatter(labels: Labels, call: Call) -> Result:
    """Written to places known by their index; along all other dimensions alike."""
    x, places, source = call.value("self"), call.value("index"), call.args.get("src", call.args.get("value"))
    axis = call.axis("dim", x.ndim)
    dims = _alike_except(labels, x, places, axis, call.name)
    if call.args.get("reduce") is not None:
        raise NoRule("it multiplies or adds in place")
    if isinstance(source, Value):
        labels.mix((*source.dims[:axis], *source.dims[axis + 1 :]), (source.dims[axis],))
        labels.pin((source.dims[axis],), call.name)
        for other, dim in enumerate(source.dims):
            if other != axis:
                labels.tie(dim, dims[other], call.name)
        labels.align(by_axis(dims), by_axis(source.dims))
    else:
        labels.limit(dims, "none", call.name)
    return Result(dims, call.name, (("dim", str(axis)),))


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
