"""Norms. What comes out of a norm with gain and offset has scales of its own.

All have an epsilon, so a positive scaling of what goes in is felt; where units are normalized one by one, and
without subtracting a mean over units, their signs are not.
"""

from __future__ import annotations

from amortopt.symmetry.axes import ScaleKind
from amortopt.symmetry.rules.base import Call, NoRule, Result, rule
from amortopt.symmetry.rules.shape import taken_apart
from amortopt.symmetry.solve.dims import Dims, fixed, with_exponent
from amortopt.symmetry.solve.labels import Labels


@rule("batch_norm", "instance_norm")
def batch_norm(labels: Labels, call: Call) -> Result:
    """y = (x - mean) / sqrt(var + eps) * gain + offset, per channel: a channel may change its sign."""
    x = call.value("input")
    channels = x.dims[1]
    others = (x.dims[0], *x.dims[2:])
    labels.limit((channels,), "sign", call.name)
    labels.limit(others, "none", call.name)
    labels.mix((channels,), others)
    for key, dim in (("running_mean", channels), ("running_var", labels.unscaled(labels.resolve(channels)))):
        if (statistic := call.optional(key)) is not None:
            labels.tie(statistic.dims[0], dim, call.name)
    out = _affine(labels, call, (channels,))
    return Result((x.dims[0], *out, *x.dims[2:]), call.name, _eps(call))


def _affine(labels: Labels, call: Call, dims: Dims) -> Dims:
    """Scales after gain and offset; the gain undoes those of what it multiplies."""
    weight, bias = call.optional("weight"), call.optional("bias")
    if weight is None and bias is None:
        return dims
    if weight is None:
        labels.limit(dims, "none", call.name)
    out = dims if weight is None else tuple(labels.rescaled(dim) for dim in dims)
    for before, after, own in zip(dims, out, weight.dims if weight is not None else out, strict=True):
        if weight is not None:
            undone = labels.product(after, with_exponent(labels.resolve(before), -1), call.name)
            labels.tie(own, undone, call.name)
    for after, own in zip(out, bias.dims if bias is not None else (), strict=bias is not None):
        labels.tie(own, after, call.name)
    return out


def _eps(call: Call) -> tuple[tuple[str, str], ...]:
    return (("eps", str(call.args.get("eps"))),)


@rule("layer_norm", "rms_norm")
def layer_norm(labels: Labels, call: Call) -> Result:
    """Over the last dimensions. The mean of a layer norm forbids signs, a root mean square does not."""
    x = call.value("input")
    count = len(call.args["normalized_shape"])
    kind: ScaleKind = "none" if call.name == "layer_norm" else "sign"
    labels.limit(x.dims, kind, call.name)
    labels.mix(x.dims[: x.ndim - count], x.dims[x.ndim - count :])
    out = _affine(labels, call, x.dims[x.ndim - count :])
    return Result((*x.dims[: x.ndim - count], *out), call.name, _eps(call))


@rule("group_norm")
def group_norm(labels: Labels, call: Call) -> Result:
    """Runs of channels together, over all positions; a run of one channel may change its sign."""
    x, groups = call.value("input"), int(call.args["num_groups"])
    others = (x.dims[0], *x.dims[2:])
    labels.limit(others, "none", call.name)
    labels.mix((x.dims[1],), others)
    channels = x.dims[1]
    if 1 < groups < x.shape[1]:
        owner, run = taken_apart(labels, channels, (groups, x.shape[1] // groups))
        labels.mix((owner,), (run,))
        channels = labels.resolve((*owner, *run))
    labels.limit((channels,), "sign" if groups == x.shape[1] else "none", call.name)
    out = _affine(labels, call, (channels,))
    config = (("num_groups", str(groups)), *_eps(call))
    return Result((x.dims[0], *out, *x.dims[2:]), call.name, config)


@rule("linalg_vector_norm", "norm")
def vector_norm(labels: Labels, call: Call) -> Result:
    """Signs of what is summed do not matter, positive scales of everything else are kept."""
    x = call.value("self")
    given = call.args.get("dim")
    axes = range(x.ndim) if given in (None, []) else given if isinstance(given, list | tuple) else [given]
    over = {axis % x.ndim for axis in axes}
    summed, rest = (
        tuple(x.dims[a] for a in range(x.ndim) if (a in over) is within) for within in (True, False)
    )
    labels.limit(summed, "sign", call.name)
    # Counting what is not zero (order 0) has no scale.
    labels.limit(rest, "positive" if call.args.get("ord", call.args.get("p", 2)) != 0 else "none", call.name)
    labels.mix(rest, summed)
    keep: Dims = ((),) if call.args.get("keepdim") else ()
    dims: Dims = ()
    for axis, dim in enumerate(x.dims):
        dims += keep if axis in over else (dim,)
    return Result(dims, call.name, (("dim", str(sorted(over))),))


@rule("_weight_norm")
def weight_norm(labels: Labels, call: Call) -> Result:
    """w = g v / |v|: the direction's magnitudes do not matter, its signs do."""
    v, g, axis = call.value("v"), call.value("g"), call.axis("dim", call.value("v").ndim)
    if g.ndim != v.ndim:
        raise NoRule("its magnitudes are not per unit of one dimension")
    rest = tuple(dim for other, dim in enumerate(v.dims) if other != axis)
    labels.limit(rest, "sign", call.name)
    labels.mix((v.dims[axis],), rest)
    magnitude, sign = labels.rescaled(v.dims[axis], "positive"), labels.rescaled(v.dims[axis], "sign")
    labels.tie(v.dims[axis], labels.product(magnitude, sign, call.name), call.name)
    for other, dim in enumerate(g.dims):
        if other != axis:
            labels.tie(dim, fixed(g.shape[other], "position"), call.name)
    out = labels.product(g.dims[axis], sign, call.name)
    return Result((*v.dims[:axis], out, *v.dims[axis + 1 :]), call.name, (("dim", str(axis)),))
