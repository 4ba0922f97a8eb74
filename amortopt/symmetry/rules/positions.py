"""Positions repeated, reordered, padded."""

from __future__ import annotations

from collections.abc import Sequence

from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, rule
from amortopt.symmetry.solve.dims import Atom, Dim, fixed, is_fixed, sum_of
from amortopt.symmetry.solve.labels import Labels


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
        dims[axis % x.ndim] = unordered(labels, dims, axis % x.ndim, call.shape[axis % x.ndim], call.name)
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
            dims[axis] = unordered(labels, dims, axis, call.shape[axis], call.name)
        else:
            labels.mix((*dims[:axis], *dims[axis + 1 :]), (dim,))
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
        dims[axis] = unordered(labels, dims, axis, call.shape[axis], call.name)
    return Result(tuple(dims), call.name, (("pad", str(widths)),))


@rule("unfold")
def windows(labels: Labels, call: Call) -> Result:
    """Windows along a dimension, as a new last one."""
    x = call.value("self")
    axis = call.axis("dimension", x.ndim)
    unordered(labels, x.dims, axis, call.shape[axis], call.name)
    count, size = fixed(call.shape[axis], "position"), fixed(call.shape[-1], "position")
    return Result((*x.dims[:axis], count, *x.dims[axis + 1 :], size), call.name, (("dim", str(axis)),))


def unordered(labels: Labels, dims: Sequence[Dim], axis: int, size: int, reason: str) -> Dim:
    """A value's axis whose positions are put into another order, or some of them left out."""
    dim = dims[axis]
    inputs = any(labels.is_input(item) for item in labels.resolve(dim))
    labels.mix((*dims[:axis], *dims[axis + 1 :]), (dim,))
    labels.pin((dim,), reason)
    return labels.fresh_input(size) if inputs else fixed(size, "position")
