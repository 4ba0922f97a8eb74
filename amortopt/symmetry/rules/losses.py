"""Losses that a network computes itself: how far two tensors, or scores and labels, are apart."""

from __future__ import annotations

from amortopt.symmetry.axes import ScaleKind
from amortopt.symmetry.rules.arithmetic import multiplied, together
from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, rule, settings
from amortopt.symmetry.rules.dimensions import by_axis, to_power, without
from amortopt.symmetry.solve.dims import Dims
from amortopt.symmetry.solve.labels import Labels

_ODD = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")


def _averaged(call: Call, dims: Dims) -> Result:
    """One number under reduction "mean" (1) or "sum" (2), else a loss per entry."""
    return Result(() if call.args.get("reduction", 1) else dims, call.name, settings(call, "reduction"))


@rule(
    *(*_ODD, "kl_div", "binary_cross_entropy", "binary_cross_entropy_with_logits", "soft_margin_loss"),
    *("hinge_embedding_loss", "poisson_nll_loss"),
)
def entrywise_loss(labels: Labels, call: Call) -> Result:
    """Units are permuted alike in both tensors; of differences, the sign does not matter."""
    x, y = call.value("self" if "self" in call.args else "input"), call.value("target")
    if x.shape != y.shape and x.param is None:
        raise NoRule("it broadcasts")
    dims = together(labels, y, x, x.ndim, call.name)
    kind: ScaleKind = "sign" if call.name in _ODD else "none"
    labels.limit(dims, kind, call.name)
    for key in ("weight", "pos_weight"):
        if (weight := call.optional(key)) is not None:
            labels.limit((*dims, *weight.dims), "none", call.name)
            dims = together(labels, weight, Value(dims, x.shape), x.ndim, call.name)
    return _averaged(call, to_power(labels, dims, 0))


@rule("cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d")
def class_loss(labels: Labels, call: Call) -> Result:
    """scores [N, C, ...] against labels [N, ...], or against probabilities [N, C, ...]."""
    x, target = call.value("self"), call.value("target")
    axis = min(1, x.ndim - 1)
    labels.limit((*x.dims, *target.dims), "none", call.name)
    labels.mix(without(x.dims, axis), (x.dims[axis],))
    if target.ndim == x.ndim and target.shape == x.shape and not call.name.startswith("nll"):
        dims = without(together(labels, target, x, x.ndim, call.name), axis)
    else:
        labels.pin((x.dims[axis],), call.name)
        rest = without(x.dims, axis)
        dims = tuple(multiplied(labels, a, b, call.name) for a, b in zip(target.dims, rest, strict=True))
        labels.align(by_axis(target.dims), by_axis(rest))
    if (weight := call.optional("weight")) is not None:
        labels.pin((x.dims[axis], *weight.dims), call.name)
    return _averaged(call, dims)


@rule("triplet_margin_loss", "cosine_embedding_loss", "margin_ranking_loss")
def compared_loss(labels: Labels, call: Call) -> Result:
    """Of rows [N, D]: coordinates are permuted alike in all; the loss is one number, or one per row."""
    keys = ("anchor", "positive", "negative") if "anchor" in call.args else ("input1", "input2")
    x, *others = (call.value(key) for key in keys)
    if any(other.shape != x.shape for other in others):
        raise NoRule("it broadcasts")
    dims = x.dims
    for other in others:
        dims = together(labels, other, Value(dims, x.shape), x.ndim, call.name)
    labels.limit(dims, "none", call.name)
    if call.name != "margin_ranking_loss":
        labels.mix(dims[:-1], dims[-1:])
        dims = dims[:-1]
    if (target := call.optional("target")) is not None:
        dims = together(labels, target, Value(dims, x.shape[: len(dims)]), len(dims), call.name)
    return _averaged(call, dims)


@rule("ctc_loss", "multi_margin_loss", "multilabel_margin_loss")
def ordered_loss(labels: Labels, call: Call) -> Result:
    """Scores of classes in their order: nothing may be permuted or rescaled."""
    for value in call.args.values():
        if isinstance(value, Value):
            labels.pin(value.dims, call.name)
    if call.args.get("reduction", 1) == 0:
        raise NoRule("it is a loss per row")
    return Result((), call.name)
