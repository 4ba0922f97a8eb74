"""Attention as one operation."""

from __future__ import annotations

from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, rule
from amortopt.symmetry.rules.broadcasting import multiplied, together
from amortopt.symmetry.rules.positions import copies
from amortopt.symmetry.solve.dims import Dim, with_exponent
from amortopt.symmetry.solve.labels import Labels


@rule("scaled_dot_product_attention")
def attention(labels: Labels, call: Call) -> Result:
    """softmax(Q K^T) V: the scales of queries and keys cancel, those of the values are passed on."""
    query, key, value = call.value("query"), call.value("key"), call.value("value")
    if not query.ndim == key.ndim == value.ndim >= 2:
        raise NoRule("queries, keys and values have different numbers of dimensions")
    if call.args.get("enable_gqa"):
        key, value = (_repeated(labels, x, query.shape[-3]) for x in (key, value))
    heads = [_shared(labels, query, key, axis, call.name) for axis in range(query.ndim - 2)]
    scores = (*heads, query.dims[-2], key.dims[-2])
    labels.limit(scores, "none", call.name)
    labels.mix(scores, (query.dims[-1],))
    labels.tie(key.dims[-1], with_exponent(labels.resolve(query.dims[-1]), -1), call.name)
    labels.tie(value.dims[-2], key.dims[-2], call.name)
    labels.mix((*heads, query.dims[-2], value.dims[-1]), (key.dims[-2],))
    if call.args.get("is_causal"):
        labels.pin((query.dims[-2], key.dims[-2]), call.name)
    _align(labels, query, key, value)
    mask = call.optional("attn_mask")
    if mask is not None:
        shape = (
            *(max(q, k) for q, k in zip(query.shape[:-2], key.shape[:-2], strict=True)),
            query.shape[-2],
            key.shape[-2],
        )
        together(labels, mask, Value(tuple(scores), shape), len(shape), call.name)
    sizes = tuple(max(q, k) for q, k in zip(query.shape[:-2], key.shape[:-2], strict=True))
    weights = Value(tuple(scores), (*sizes, query.shape[-2], key.shape[-2]))
    out = [_shared(labels, weights, value, axis, call.name) for axis in range(len(heads))]
    config = (("is_causal", str(call.args.get("is_causal"))), ("scale", str(call.args.get("scale"))))
    return Result((*out, query.dims[-2], value.dims[-1]), call.name, config)


def _align(labels: Labels, query: Value, key: Value, value: Value) -> None:
    batch = range(query.ndim - 2)
    names = ([*batch, "query", "inner"], [*batch, "key", "inner"], [*batch, "key", "value"])
    pairs = zip(names, (query.dims, key.dims, value.dims), strict=True)
    labels.align(*(dict(zip(own, dims, strict=True)) for own, dims in pairs))


def _repeated(labels: Labels, x: Value, count: int) -> Value:
    """Heads of keys and values that several heads of queries share, each given to all of them."""
    own = labels.resolve(x.dims[-3])
    times = count // x.shape[-3]
    heads = own if times == 1 else (*own, *copies(labels, times, own))
    return Value((*x.dims[:-3], heads, *x.dims[-2:]), (*x.shape[:-3], count, *x.shape[-2:]))


def _shared(labels: Labels, x: Value, y: Value, axis: int, reason: str) -> Dim:
    """A batch dimension of two factors."""
    if x.shape[axis] == y.shape[axis]:
        return multiplied(labels, x.dims[axis], y.dims[axis], reason)
    short, long = (x, y) if x.shape[axis] == 1 else (y, x)
    labels.limit((short.dims[axis],), "none", reason)
    return long.dims[axis]
