"""Operations that move dimensions about without computing anything."""

from __future__ import annotations

import math
from dataclasses import replace

from amortopt.symmetry.dims import Atom, Dim, Dims, Item, Sum, fixed, is_fixed, size_of, sum_of
from amortopt.symmetry.labels import Labels
from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, by_axis, rule


@rule(
    *(
        "view",
        "reshape",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "view_as",
        "reshape_as",
    ),
    *("_reshape_alias", "ravel", "atleast_2d", "atleast_3d"),
)
def reshape(labels: Labels, call: Call) -> Result:
    """Products of dimensions are joined or taken apart between the same atoms."""
    x = call.value("self")
    dims = regroup(labels, x.dims, call.shape)
    # Whether dimensions of size one come or go makes no difference to what is computed.
    same = [size for size in x.shape if size != 1] == [size for size in call.shape if size != 1]
    return Result(dims, "" if same else "reshape", param=x.param if x.shape == call.shape else None)


def regroup(labels: Labels, dims: Dims, after: tuple[int, ...]) -> Dims:
    """Labels of a reshaped tensor.

    Args:
        labels: The constraints, to resolve ``dims``.
        dims: Labels before.
        after: Shape after.

    Raises:
        NoRule: A group would have to be taken apart in a way that no symmetry survives.
    """
    before, sizes, result = list(dims), list(after), list[Dim]()
    while sizes:
        # The shortest runs of dimensions on both sides with as many positions.
        taken, wanted = before[:1], [sizes.pop(0)]
        del before[:1]
        while (have := math.prod(size_of(dim) for dim in taken)) != (need := math.prod(wanted)):
            if have < need:
                taken.append(before.pop(0))
            else:
                wanted.append(sizes.pop(0))
        if not sizes:
            taken.extend(before)
        items = [item for dim in taken for item in labels.resolve(dim)]
        result.extend(_distribute(labels, items, wanted))
    return tuple(result)


def taken_apart(labels: Labels, dim: Dim, sizes: tuple[int, ...]) -> list[Dim]:
    """A dimension as several ones, the last one fastest; an owner and what is nested in it."""
    return _distribute(labels, list(labels.resolve(dim)), list(sizes))


def _distribute(labels: Labels, items: list[Item], sizes: list[int]) -> list[Dim]:
    """Spread items over dimensions of the given sizes, the total being the same."""
    if len(sizes) == 1:
        return [tuple(items)]
    if all(labels.is_input(item) for item in items):
        several = sum(size != 1 for size in sizes) > 1
        if several:
            # What may be scaled along it (a norm's gain) would be lost.
            labels.pin((tuple(items),), "reshape")
        return [() if size == 1 else labels.fresh_input(size) if several else tuple(items) for size in sizes]
    items = _fixed_joined(labels, items)
    result: list[Dim] = []
    for size in sizes:
        taken: list[Item] = []
        while (rest := size // size_of(tuple(taken))) > 1:
            item = items.pop(0)
            if item.size > rest or rest % item.size:
                item, remainder = _split(labels, item, rest)
                items[:0] = remainder
            taken.append(item)
        result.append(tuple(taken))
    result[-1] += tuple(items)
    return result


def _fixed_joined(labels: Labels, items: list[Item]) -> list[Item]:
    """Neighbouring items of which each has its order are one, which can be taken apart anywhere."""
    joined: list[Item] = []
    for item in items:
        last = joined[-1] if joined else None
        alike = isinstance(last, Atom) and all(labels.is_pinned((part,)) for part in (last, item))
        if alike and last is not None and not (labels.is_input(last) and labels.is_input(item)):
            joined[-1] = Atom(last.size * item.size, role="position")
        else:
            joined.append(item)
    return joined


def _split(labels: Labels, item: Item, size: int) -> tuple[Item, list[Item]]:
    if isinstance(item, Sum):
        return _split_sum(labels, item, size)
    if item.size % size:
        raise NoRule(f"it takes {item.size} units apart")
    outer, inner = labels.split(item, size)
    return outer[0], list(inner)


def _split_sum(labels: Labels, total: Sum, size: int) -> tuple[Item, list[Item]]:
    """Parts of equal sizes, one after the other, are an index and a choice."""
    if total.size % size:
        raise NoRule(f"it takes {total.size} units apart")
    run = total.size // size
    index, inner = labels.stack(labels.cut((total,), [run * (k + 1) for k in range(size)]))
    return index[0], list(inner)


@rule("t", "transpose", "permute", "numpy_T", "swapaxes", "movedim", "mT", "matrix_H", "adjoint", "swapdims")
def permute(labels: Labels, call: Call) -> Result:
    """Dimensions change places."""
    del labels
    x = call.value("self")
    order = _order(call, x.ndim)
    dims = tuple(x.dims[axis] for axis in order)
    same = order == tuple(range(x.ndim)) or x.param is not None
    return Result(dims, "" if same else "permute", (("order", str(order)),), param=x.param)


def _order(call: Call, ndim: int) -> tuple[int, ...]:
    order = list(range(ndim))
    if call.name in ("t", "numpy_T"):
        return tuple(reversed(order))
    if call.name == "permute":
        return tuple(axis % ndim for axis in call.args["dims"])
    if call.name in ("mT", "matrix_H", "adjoint"):
        return (*order[:-2], ndim - 1, ndim - 2)
    if call.name == "movedim":
        sources, targets = (
            [axis % ndim for axis in (given if isinstance(given, list | tuple) else [given])]
            for given in (call.args["source"], call.args["destination"])
        )
        rest = [axis for axis in order if axis not in sources]
        for target, source in sorted(zip(targets, sources, strict=True)):
            rest.insert(target, source)
        return tuple(rest)
    keys = ("axis0", "axis1") if call.name == "swapaxes" else ("dim0", "dim1")
    first, second = (call.args[key] % ndim for key in keys)
    order[first], order[second] = second, first
    return tuple(order)


@rule("cat", "concat", "concatenate")
def concatenate(labels: Labels, call: Call) -> Result:
    """Along its dimension the parts follow each other; along all others they move alike."""
    values = [value for value in call.args["tensors"] if isinstance(value, Value) and value.shape != (0,)]
    if len(values) != len(call.args["tensors"]) or len({value.ndim for value in values}) != 1:
        raise NoRule("a part is not a tensor like the others")
    axis = call.axis("dim", values[0].ndim)
    dims = [
        () if other == axis else _alike(labels, [value.dims[other] for value in values], call.name)
        for other in range(values[0].ndim)
    ]
    labels.align(*(by_axis(value.dims) for value in values))
    dims[axis] = sum_of([labels.resolve(value.dims[axis]) for value in values])
    return Result(tuple(dims), "cat", (("dim", str(axis)),))


def _alike(labels: Labels, parts: list[Dim], reason: str) -> Dim:
    """One dimension for values that are put beside each other."""
    leader = next((part for part in parts if labels.variables(part)), parts[0])
    for part in parts:
        if part is leader:
            continue
        if not labels.variables(part):
            labels.pin((leader,), reason)
        else:
            labels.tie(part, leader, reason)
    return leader


@rule("hstack", "vstack", "dstack")
def concatenate_along(labels: Labels, call: Call) -> Result:
    """Concatenation along the dimension that the name says."""
    values = call.args["tensors"]
    axis = {"hstack": 1, "vstack": 0, "dstack": 2}[call.name]
    if not all(isinstance(value, Value) and value.ndim > axis for value in values) or values[0].ndim < 2:
        raise NoRule("its parts have too few dimensions")
    return concatenate(labels, replace(call, args={"tensors": values, "dim": axis}))


@rule("channel_shuffle")
def channel_shuffle(labels: Labels, call: Call) -> Result:
    """Runs of channels are dealt out in turn."""
    x, groups = call.value("self"), int(call.args["groups"])
    owner, run = taken_apart(labels, x.dims[1], (groups, x.shape[1] // groups))
    dims = (x.dims[0], labels.resolve((*run, *owner)), *x.dims[2:])
    return Result(dims, call.name, (("groups", str(groups)),))


@rule("stack")
def stack(labels: Labels, call: Call) -> Result:
    """A new dimension of values that move alike."""
    values = call.args["tensors"]
    if not all(isinstance(value, Value) for value in values):
        raise NoRule("a part is not a tensor")
    axis = call.axis("dim", values[0].ndim + 1)
    dims = [_alike(labels, [value.dims[k] for value in values], call.name) for k in range(values[0].ndim)]
    labels.align(*(by_axis(value.dims) for value in values))
    dims.insert(axis, fixed(len(values), "position"))
    return Result(tuple(dims), "stack", (("dim", str(axis)),))


@rule("slice", "narrow")
def slice_(labels: Labels, call: Call) -> Result:
    """A range of a dimension: units outside it are others than those inside."""
    x = call.value("self")
    axis = call.axis("dim", x.ndim)
    size, start = x.shape[axis], call.args.get("start")
    start = 0 if start is None else max(start + size, 0) if start < 0 else min(start, size)
    stop = start + call.shape[axis] * (call.args.get("step") or 1)
    config = (("dim", str(axis)), ("start", str(start)), ("length", str(call.shape[axis])))
    if call.shape[axis] == size:
        return Result(x.dims, param=x.param)
    if (call.args.get("step") or 1) != 1 or not call.shape[axis]:
        dim = _unordered(labels, x.dims[axis], call.shape[axis], call.name)
    else:
        _unselected(labels, x, axis)
        cuts = sorted({start, stop, size} - {0})
        dim = labels.cut(x.dims[axis], cuts)[0 if start == 0 else 1]
    dims = (*x.dims[:axis], dim, *x.dims[axis + 1 :])
    labels.use(dims)
    return Result(dims, "slice", config)


def _unselected(labels: Labels, x: Value, axis: int) -> None:
    """Units nested in a dimension that is taken apart in pieces of several are alike in all of them."""
    labels.mix(tuple(dim for other, dim in enumerate(x.dims) if other != axis), (x.dims[axis],))


def _unordered(labels: Labels, dim: Dim, size: int, reason: str) -> Dim:
    """A dimension whose positions are put into another order, or some of them left out."""
    inputs = any(labels.is_input(item) for item in labels.resolve(dim))
    labels.pin((dim,), reason)
    return labels.fresh_input(size) if inputs else fixed(size, "position")


@rule("split", "chunk", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(labels: Labels, call: Call) -> Result:
    """Parts of a dimension, one after the other."""
    x = call.value("self")
    axis = call.axis("dim", x.ndim)
    sizes = [shape[axis] for shape in call.shapes if shape is not None]
    config = (("dim", str(axis)), ("sizes", str(sizes)))
    if all(size == 1 for size in sizes):
        parts = [labels.select(x.dims, axis, k) for k in range(len(sizes))]
        return Result(
            (), "split", config, parts=tuple((*p[:axis], fixed(1, "position"), *p[axis:]) for p in parts)
        )
    _unselected(labels, x, axis)
    cuts = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    pieces = labels.cut(x.dims[axis], cuts)
    labels.use((*x.dims, *pieces))
    return Result(
        (), "split", config, parts=tuple((*x.dims[:axis], piece, *x.dims[axis + 1 :]) for piece in pieces)
    )


@rule("unbind")
def unbind(labels: Labels, call: Call) -> Result:
    """Every index of a dimension."""
    x = call.value("self")
    axis = call.axis("dim", x.ndim)
    parts = tuple(labels.select(x.dims, axis, k) for k in range(x.shape[axis]))
    return Result((), "unbind", (("dim", str(axis)),), parts=parts)


@rule("select")
def select(labels: Labels, call: Call) -> Result:
    """One index of a dimension."""
    x = call.value("self")
    axis = call.axis("dim", x.ndim)
    index = int(call.args["index"]) % x.shape[axis]
    config = (("dim", str(axis)), ("index", str(index)))
    return Result(labels.select(x.dims, axis, index), "select", config)


@rule("expand", "expand_as", "broadcast_to")
def expand(labels: Labels, call: Call) -> Result:
    """Copies along a dimension of size one, or along a new one."""
    x = call.value("self")
    new = len(call.shape) - x.ndim
    dims: list[Dim] = []
    for axis, size in enumerate(call.shape):
        own = x.dims[axis - new] if axis >= new else ()
        if axis >= new and x.shape[axis - new] == size:
            dims.append(own)
            continue
        if own:
            labels.tie(own, fixed(1, "broadcast"), call.name)
        dims.append(copies(labels, size, dims[-1] if dims else ()))
    same = call.shape == x.shape
    return Result(tuple(dims), "" if same else "expand", param=x.param if same else None)


def copies(labels: Labels, size: int, before: Dim) -> Dim:
    """A dimension along which all values are equal: whatever permutes it changes nothing."""
    resolved = labels.resolve(before)
    atom = resolved[-1] if resolved else None
    owner = atom.unit if isinstance(atom, Atom) and len(resolved) == 1 else None
    return labels.fresh(size, "constant", "none", owner=owner)


@rule("repeat", "tile")
def repeat(labels: Labels, call: Call) -> Result:
    """The whole dimension again and again."""
    x = call.value("self")
    new = len(call.shape) - x.ndim
    dims: list[Dim] = []
    for axis, size in enumerate(call.shape):
        own = x.dims[axis - new] if axis >= new else ()
        length = x.shape[axis - new] if axis >= new else 1
        if length == 1 and size > 1 and own:
            labels.tie(own, fixed(1, "broadcast"), call.name)
        dims.append(own if size == length else (*copies(labels, size // length, ()), *labels.resolve(own)))
    return Result(tuple(dims), "repeat", (("shape", str(call.shape)),))


@rule("repeat_interleave")
def repeat_interleave(labels: Labels, call: Call) -> Result:
    """Every unit again and again: a run of copies."""
    x = call.value("self")
    if isinstance(call.args.get("repeats"), Value) or call.args.get("dim") is None:
        raise NoRule("its numbers of copies vary")
    axis = call.axis("dim", x.ndim)
    own = labels.resolve(x.dims[axis])
    dim = (*own, *copies(labels, call.shape[axis] // x.shape[axis], own))
    return Result((*x.dims[:axis], dim, *x.dims[axis + 1 :]), "repeat_interleave", (("dim", str(axis)),))


@rule("flip", "roll", "rot90")
def reordered(labels: Labels, call: Call) -> Result:
    """Positions change places, so units along them may not."""
    x = call.value("self")
    axes = call.args.get("dims")
    over = range(x.ndim) if axes in (None, []) else axes if isinstance(axes, list | tuple) else [axes]
    dims = list(x.dims)
    for axis in over:
        dims[axis % x.ndim] = _unordered(labels, dims[axis % x.ndim], call.shape[axis % x.ndim], call.name)
    if call.name == "rot90":
        raise NoRule("it turns two dimensions")
    shifts = call.args.get("shifts", "")
    return Result(tuple(dims), call.name, (("dims", str(list(over))), ("shifts", str(shifts))))


@rule("pad", "constant_pad_nd")
def pad(labels: Labels, call: Call) -> Result:
    """Zeros before and after move with any units; other values around units do not."""
    x = call.value("self")
    widths, mode = list(call.args["pad"]), str(call.args.get("mode", "constant"))
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
            dims[axis] = _unordered(labels, dim, call.shape[axis], call.name)
        else:
            zeros = [labels.fresh(size, "constant") if size else () for size in (before, after)]
            dims[axis] = sum_of([part for part in (zeros[0], dim, zeros[1]) if part])
    return Result(tuple(dims), call.name, (("pad", str(widths)), ("mode", mode)))


@rule(
    *(f"{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3)),
    *("_pad_circular",),
)
def mirrored(labels: Labels, call: Call) -> Result:
    """Positions again at the borders."""
    x = call.value("self")
    widths = list(call.args["padding" if "padding" in call.args else "pad"])
    dims = list(x.dims)
    for axis in range(x.ndim - len(widths) // 2, x.ndim):
        dims[axis] = _unordered(labels, dims[axis], call.shape[axis], call.name)
    return Result(tuple(dims), call.name, (("pad", str(widths)),))


@rule("pixel_shuffle")
def pixel_shuffle(labels: Labels, call: Call) -> Result:
    """Runs of channels become positions."""
    x, factor = call.value("self"), int(call.args["upscale_factor"])
    origin = call.path or call.op
    channels = labels.fresh(call.shape[-3], origin)
    labels.tie(x.dims[-3], (*channels, *fixed(factor**2, "position")), call.name)
    labels.pin(x.dims[-2:], call.name)
    positions = tuple(fixed(size, "position") for size in call.shape[-2:])
    return Result((*x.dims[:-3], channels, *positions), call.name, (("factor", str(factor)),))


@rule("pixel_unshuffle")
def pixel_unshuffle(labels: Labels, call: Call) -> Result:
    """Positions become runs of channels."""
    x, factor = call.value("self"), int(call.args["downscale_factor"])
    labels.pin(x.dims[-2:], call.name)
    channels = (*labels.resolve(x.dims[-3]), *fixed(factor**2, "position"))
    positions = tuple(fixed(size, "position") for size in call.shape[-2:])
    return Result((*x.dims[:-3], channels, *positions), call.name, (("factor", str(factor)),))


@rule("unfold")
def windows(labels: Labels, call: Call) -> Result:
    """Windows along a dimension, as a new last one."""
    x = call.value("self")
    axis = call.axis("dimension", x.ndim)
    labels.pin((x.dims[axis],), call.name)
    count, size = fixed(call.shape[axis], "position"), fixed(call.shape[-1], "position")
    return Result((*x.dims[:axis], count, *x.dims[axis + 1 :], size), call.name, (("dim", str(axis)),))
