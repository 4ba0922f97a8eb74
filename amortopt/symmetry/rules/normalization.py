"""Normalization. The output of a norm with gain and offset has new scales, which the gain makes up for.

All norms have an epsilon, so a positive scale of the input changes the output. A sign does not, where units
are normalized one by one and no mean over units is subtracted.
"""

from __future__ import annotations

from amortopt.symmetry.axes import ScaleKind
from amortopt.symmetry.rules.base import Call, NoRule, Result, rule, settings
from amortopt.symmetry.rules.dimensions import axes_of, inverse, replaced, to_power, without
from amortopt.symmetry.rules.reduction import reduced
from amortopt.symmetry.rules.shape import taken_apart
from amortopt.symmetry.solve.dims import Dims, fixed
from amortopt.symmetry.solve.labels import Labels


@rule("batch_norm", "instance_norm")
def batch_norm(labels: Labels, call: Call) -> Result:
    """y = (x - mean) / sqrt(var + eps) * gain + offset, per channel: a channel may change its sign."""
    x = call.value("input")
    channels = x.dims[1]
    others = (x.dims[0], *x.dims[2:])
    statistics = [call.optional(key) for key in ("running_mean", "running_var")]
    # Running statistics that never change: the mean takes the scale of x, and what is divided by stays.
    frozen = all(x is not None and x.still for x in statistics)
    labels.limit((channels,), "free" if frozen else "sign", call.name)
    labels.limit(others, "none", call.name)
    labels.mix((channels,), others)
    for statistic, dim in zip(statistics, (channels, to_power(labels, (channels,), 0)[0]), strict=True):
        if statistic is not None:
            labels.tie(statistic.dims[0], dim, call.name)
    out = _affine(labels, call, (channels,))
    return Result((x.dims[0], *out, *x.dims[2:]), call.name, settings(call, "eps"))


def _affine(labels: Labels, call: Call, dims: Dims) -> Dims:
    """Labels after gain and offset: from scales q to new ones p, the gain is multiplied by p / q."""
    weight, bias = call.optional("weight"), call.optional("bias")
    if weight is None:
        if bias is not None:
            labels.limit(dims, "none", call.name)
        out = dims
    else:
        out = tuple(labels.rescaled(dim) for dim in dims)
        for before, after, gain in zip(dims, out, weight.dims, strict=True):
            labels.tie(gain, labels.product(after, inverse(labels, before), call.name), call.name)
    if bias is not None:
        for after, offset in zip(out, bias.dims, strict=True):
            labels.tie(offset, after, call.name)
    return out


@rule("layer_norm", "rms_norm")
def layer_norm(labels: Labels, call: Call) -> Result:
    """Over the last dimensions. The mean of a layer norm forbids signs, a root mean square does not."""
    x = call.value("input")
    count = len(call.args["normalized_shape"])
    kind: ScaleKind = "none" if call.name == "layer_norm" else "sign"
    labels.limit(x.dims, kind, call.name)
    labels.mix(x.dims[: x.ndim - count], x.dims[x.ndim - count :])
    out = _affine(labels, call, x.dims[x.ndim - count :])
    return Result((*x.dims[: x.ndim - count], *out), call.name, settings(call, "eps"))


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
    config = (("num_groups", str(groups)), *settings(call, "eps"))
    return Result((x.dims[0], *out, *x.dims[2:]), call.name, config)


@rule("linalg_vector_norm", "norm")
def vector_norm(labels: Labels, call: Call) -> Result:
    """Signs of what is summed do not matter, positive scales of everything else are kept."""
    x = call.value("self")
    over = {axis % x.ndim for axis in axes_of(call.args.get("dim"), x.ndim)}
    summed, rest = tuple(x.dims[axis] for axis in sorted(over)), without(x.dims, *over)
    labels.limit(summed, "sign", call.name)
    # Counting what is not zero (order 0) has no scale.
    labels.limit(rest, "positive" if call.args.get("ord", call.args.get("p", 2)) != 0 else "none", call.name)
    labels.mix(rest, summed)
    dims = reduced(x.dims, over, call.args.get("keepdim"))
    return Result(dims, call.name, (("dim", str(sorted(over))),))


@rule("_weight_norm")
def weight_norm(labels: Labels, call: Call) -> Result:
    """w = g v / |v|: the direction's magnitudes do not matter, its signs do."""
    v, g, axis = call.value("v"), call.value("g"), call.axis("dim", call.value("v").ndim)
    if g.ndim != v.ndim:
        raise NoRule("its magnitudes are not per unit of one dimension")
    rest = without(v.dims, axis)
    labels.limit(rest, "sign", call.name)
    labels.mix((v.dims[axis],), rest)
    magnitude, sign = labels.rescaled(v.dims[axis], "positive"), labels.rescaled(v.dims[axis], "sign")
    labels.tie(v.dims[axis], labels.product(magnitude, sign, call.name), call.name)
    for dim, size in zip(without(g.dims, axis), (*g.shape[:axis], *g.shape[axis + 1 :]), strict=True):
        labels.tie(dim, fixed(size, "position"), call.name)
    out = labels.product(g.dims[axis], sign, call.name)
    return Result(replaced(v.dims, axis, out), call.name, (("dim", str(axis)),))
