"""Dimensions put one after the other, and taken apart again."""

from __future__ import annotations

from dataclasses import replace

from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, rule
from amortopt.symmetry.rules.dimensions import by_axis, mix_along, replaced
from amortopt.symmetry.rules.positions import unordered
from amortopt.symmetry.solve.dims import Dim, fixed, sum_of
from amortopt.symmetry.solve.labels import Labels


@rule("cat")
def concatenate(labels: Labels, call: Call) -> Result:
    """The parts follow each other along one dimension; along the others they have the same units."""
    values = call.setting("tensors")
    if not all(isinstance(value, Value) for value in values):
        raise NoRule("a part is not one tensor")
    # An empty tensor of one dimension may stand for any other.
    values = [value for value in values if value.shape != (0,)]
    if len({value.ndim for value in values}) != 1:
        raise NoRule("there is nothing to put together")
    axis = call.axis("dim", values[0].ndim)
    values = [value for value in values if value.shape[axis]] or values
    dims = [
        () if other == axis else _alike(labels, [value.dims[other] for value in values], call.name)
        for other in range(values[0].ndim)
    ]
    labels.align(*(by_axis(value.dims) for value in values))
    dims[axis] = sum_of([labels.resolve(value.dims[axis]) for value in values])
    return Result(tuple(dims), "cat", (("dim", str(axis)),))


def _alike(labels: Labels, parts: list[Dim], reason: str) -> Dim:
    """Ties a dimension that several values share; a part without units keeps the others from moving."""
    leader = next((part for part in parts if labels.variables(part)), parts[0])
    for part in parts:
        if part is leader:
            continue
        if not labels.variables(part):
            labels.pin((leader,), reason)
        else:
            labels.tie(part, leader, reason)
    return leader


@rule("hstack", "vstack", "dstack", "column_stack")
def concatenate_along(labels: Labels, call: Call) -> Result:
    """Concatenation along rows, columns or depth."""
    values = call.setting("tensors")
    axis = {"hstack": 1, "vstack": 0, "dstack": 2, "column_stack": 1}[call.name]
    if not all(isinstance(value, Value) and value.ndim > axis for value in values) or values[0].ndim < 2:
        raise NoRule("its parts have too few dimensions")
    return concatenate(labels, replace(call, args={"tensors": values, "dim": axis}))


@rule("stack")
def stack(labels: Labels, call: Call) -> Result:
    """A new dimension of values with the same units and scales."""
    values = call.setting("tensors")
    if not all(isinstance(value, Value) for value in values):
        raise NoRule("a part is not a tensor")
    axis = call.axis("dim", values[0].ndim + 1)
    dims = [_alike(labels, [value.dims[k] for value in values], call.name) for k in range(values[0].ndim)]
    labels.align(*(by_axis(value.dims) for value in values))
    dims.insert(axis, fixed(len(values), "position"))
    return Result(tuple(dims), "stack", (("dim", str(axis)),))


@rule("slice", "narrow")
def slice_(labels: Labels, call: Call) -> Result:
    """A range of a dimension: units inside it are not permuted with those outside."""
    x = call.value("self")
    axis = call.axis("dim", x.ndim)
    size, start = x.shape[axis], call.args.get("start")
    if not (start is None or isinstance(start, int)):
        raise NoRule("where it starts depends on a tensor")
    start = 0 if start is None else max(start + size, 0) if start < 0 else min(start, size)
    stop = start + call.shape[axis] * (call.args.get("step") or 1)
    config = (("dim", str(axis)), ("start", str(start)), ("length", str(call.shape[axis])))
    if call.shape[axis] == size:
        return Result(x.dims, param=x.param)
    if (call.args.get("step") or 1) != 1 or not call.shape[axis]:
        dim = unordered(labels, x.dims, axis, call.shape[axis], call.name)
    else:
        mix_along(labels, x.dims, axis)
        cuts = sorted({start, stop, size} - {0})
        dim = labels.cut(x.dims[axis], cuts)[0 if start == 0 else 1]
    dims = replaced(x.dims, axis, dim)
    labels.use(dims)
    return Result(dims, "slice", config)


@rule(
    "split", "chunk", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk", "hsplit", "vsplit"
)
def split(labels: Labels, call: Call) -> Result:
    """Parts of a dimension, one after the other."""
    x = call.value("self")
    if call.name in ("hsplit", "vsplit"):
        axis = min(1, x.ndim - 1) if call.name == "hsplit" else 0
    else:
        axis = call.axis("dim", x.ndim)
    sizes = [shape[axis] for shape in call.shapes if shape is not None]
    config = (("dim", str(axis)), ("sizes", str(sizes)))
    if not all(sizes):
        raise NoRule("a part has no elements")
    if all(size == 1 for size in sizes):
        selected = [labels.select(x.dims, axis, k) for k in range(len(sizes))]
        parts = tuple((*dims[:axis], fixed(1, "position"), *dims[axis:]) for dims in selected)
        return Result((), "split", config, parts=parts)
    # Units nested in a dimension that is taken apart are alike in all of its parts.
    mix_along(labels, x.dims, axis)
    cuts = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    pieces = labels.cut(x.dims[axis], cuts)
    labels.use((*x.dims, *pieces))
    parts = tuple(replaced(x.dims, axis, piece) for piece in pieces)
    return Result((), "split", config, parts=parts)


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
    index = call.setting("index")
    if not isinstance(index, int):
        raise NoRule("its index depends on a tensor")
    index %= x.shape[axis]
    config = (("dim", str(axis)), ("index", str(index)))
    return Result(labels.select(x.dims, axis, index), "select" if x.shape[axis] > 1 else "", config)
