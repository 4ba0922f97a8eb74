"""Operations that move dimensions about without computing anything."""

from __future__ import annotations

import math

from amortopt.symmetry.rules.base import Call, NoRule, Result, rule
from amortopt.symmetry.rules.dimensions import places
from amortopt.symmetry.solve.dims import Atom, Dim, Dims, Item, Sum, fixed, size_of
from amortopt.symmetry.solve.labels import Labels


@rule(
    *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as"),
    *("reshape_as", "_reshape_alias", "ravel", "atleast_1d", "atleast_2d", "atleast_3d"),
)
def reshape(labels: Labels, call: Call) -> Result:
    """Dimensions are joined or taken apart: [6] to [2, 3] are 2 runs of 3 units."""
    x = call.value("self")
    if "dtype" in call.args or math.prod(x.shape) != math.prod(call.shape):
        raise NoRule("it reads the bits as another type")
    dims = regroup(labels, x.dims, call.shape)
    # Whether dimensions of size one come or go makes no difference to what is computed.
    same = [size for size in x.shape if size != 1] == [size for size in call.shape if size != 1]
    return Result(dims, "" if same else "reshape", param=x.param if x.shape == call.shape else None)


def regroup(labels: Labels, dims: Dims, after: tuple[int, ...]) -> Dims:
    """Labels of a tensor with labels ``dims`` after reshaping it to ``after``.

    Raises NoRule where a group would have to be taken apart in a way that no symmetry survives.
    """
    if 0 in after:
        raise NoRule("there are no elements")
    if not after:
        # A number has no dimension left that could carry a scale.
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
    """A dimension as several ones of these sizes, the last one fastest: owners and runs nested in them."""
    return _distribute(labels, list(labels.resolve(dim)), list(sizes))


def _distribute(labels: Labels, items: list[Item], sizes: list[int]) -> list[Dim]:
    """Spread items over dimensions of ``sizes``; both have the same number of positions."""
    if len(sizes) == 1:
        return [tuple(items)]
    if all(labels.is_input(item) for item in items):
        several = sum(size != 1 for size in sizes) > 1
        if several:
            # A scale along it (of a norm's gain) could not be expressed any more.
            labels.pin((tuple(items),), "reshape")
        return [() if size == 1 else labels.fresh_input(size) if several else tuple(items) for size in sizes]
    # Neighbours that both keep their order are one item, which can be taken apart anywhere.
    joined: list[Item] = []
    for item in items:
        last = joined[-1] if joined else None
        ordered = isinstance(last, Atom) and all(labels.is_pinned((part,)) for part in (last, item))
        if ordered and last is not None and not (labels.is_input(last) and labels.is_input(item)):
            joined[-1] = Atom(last.size * item.size, role="position")
        else:
            joined.append(item)
    result: list[Dim] = []
    for size in sizes:
        taken: list[Item] = []
        while (rest := size // size_of(tuple(taken))) > 1:
            item = joined.pop(0)
            if item.size > rest or rest % item.size:
                if item.size % rest:
                    raise NoRule(f"it takes {item.size} units apart")
                if isinstance(item, Sum):
                    # Parts of equal sizes, one after the other, are an index and a choice.
                    run = item.size // rest
                    outer, inner = labels.stack(labels.cut((item,), [run * (k + 1) for k in range(rest)]))
                else:
                    outer, inner = labels.split(item, rest)
                item, joined = outer[0], [*inner, *joined]
            taken.append(item)
        result.append(tuple(taken))
    result[-1] += tuple(joined)
    return result


@rule("t", "transpose", "permute", "numpy_T", "swapaxes", "movedim", "mT", "mH", "matrix_H", "adjoint")
def permute(labels: Labels, call: Call) -> Result:
    """Dimensions change places."""
    del labels
    x = call.value("self")
    order, ndim = list(range(x.ndim)), x.ndim
    if ndim < 2:
        pass
    elif call.name in ("t", "numpy_T"):
        order.reverse()
    elif call.name == "permute":
        order = [axis % ndim for axis in call.setting("dims")]
    elif call.name in ("mT", "mH", "matrix_H", "adjoint"):
        order[-2:] = ndim - 1, ndim - 2
    elif call.name == "movedim":
        sources, targets = (
            [axis % ndim for axis in (axes if isinstance(axes, list | tuple) else [axes])]
            for axes in (call.args["source"], call.args["destination"])
        )
        order = [axis for axis in order if axis not in sources]
        for target, source in sorted(zip(targets, sources, strict=True)):
            order.insert(target, source)
    else:
        keys = ("axis0", "axis1") if "axis0" in call.args else ("dim0", "dim1")
        first, second = (call.axis(key, ndim) for key in keys)
        order[first], order[second] = second, first
    dims = tuple(x.dims[axis] for axis in order)
    same = order == list(range(ndim)) or x.param is not None
    return Result(dims, "" if same else "permute", (("order", str(tuple(order))),), param=x.param)


@rule("channel_shuffle")
def channel_shuffle(labels: Labels, call: Call) -> Result:
    """[N, g C, ...]: channel c of group k goes to place g c + k."""
    x, groups = call.value("self"), int(call.args["groups"])
    owner, run = taken_apart(labels, x.dims[1], (groups, x.shape[1] // groups))
    dims = (x.dims[0], labels.resolve((*run, *owner)), *x.dims[2:])
    return Result(dims, call.name, (("groups", str(groups)),))


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(labels: Labels, call: Call) -> Result:
    """[..., C k k, H, W] -> [..., C, k H, k W], or back: runs of k k channels become positions."""
    x, up = call.value("self"), call.name == "pixel_shuffle"
    factor = int(call.args["upscale_factor" if up else "downscale_factor"])
    channels = labels.fresh(call.shape[-3], call.path or call.op) if up else labels.resolve(x.dims[-3])
    runs = (*channels, *fixed(factor**2, "position"))
    if up:
        labels.tie(x.dims[-3], runs, call.name)
    labels.pin(x.dims[-2:], call.name)
    dims = (*x.dims[:-3], channels if up else runs, *places(call.shape[-2:]))
    return Result(dims, call.name, (("factor", str(factor)),))
