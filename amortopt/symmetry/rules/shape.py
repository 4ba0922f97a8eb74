"""Operations that move dimensions about without computing anything."""

from __future__ import annotations

import math

from amortopt.symmetry.rules.base import Call, NoRule, Result, rule
from amortopt.symmetry.solve.dims import Atom, Dim, Dims, Item, Sum, fixed, size_of
from amortopt.symmetry.solve.labels import Labels


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
    if "dtype" in call.args or math.prod(x.shape) != math.prod(call.shape):
        raise NoRule("it reads the bits as another type")
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
    if 0 in after:
        raise NoRule("there are no elements")
    if not after:
        # A number has no dimension left that could say what it is multiplied by.
        labels.limit(dims, "none", "reshape")
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


@rule("t", "transpose", "permute", "numpy_T", "swapaxes", "movedim", "mT", "mH", "matrix_H", "adjoint")
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
    if ndim < 2:
        return tuple(order)
    if call.name in ("t", "numpy_T"):
        return tuple(reversed(order))
    if call.name == "permute":
        return tuple(axis % ndim for axis in call.setting("dims"))
    if call.name in ("mT", "mH", "matrix_H", "adjoint"):
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
    keys = ("axis0", "axis1") if "axis0" in call.args else ("dim0", "dim1")
    first, second = (call.axis(key, ndim) for key in keys)
    order[first], order[second] = second, first
    return tuple(order)


@rule("channel_shuffle")
def channel_shuffle(labels: Labels, call: Call) -> Result:
    """Runs of channels are dealt out in turn."""
    x, groups = call.value("self"), int(call.args["groups"])
    owner, run = taken_apart(labels, x.dims[1], (groups, x.shape[1] // groups))
    dims = (x.dims[0], labels.resolve((*run, *owner)), *x.dims[2:])
    return Result(dims, call.name, (("groups", str(groups)),))


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
