"""Operations that sum products over an axis: dense layers, matrix products, attention, convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from amortopt.symmetry.rules.arithmetic import multiplied, together
from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, rule, settings
from amortopt.symmetry.rules.dimensions import held, inverse, per_axis, places
from amortopt.symmetry.rules.positions import copies
from amortopt.symmetry.rules.shape import taken_apart
from amortopt.symmetry.solve.dims import Atom, Dim, Dims, fixed, size_of, with_exponent
from amortopt.symmetry.solve.labels import Labels

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of dimensions, as in an einsum."""


@rule("linear")
def linear(labels: Labels, call: Call) -> Result:
    """y[..., o] = sum_i x[..., i] W[o, i] + b[o]: W reads with the inverse of x's scales."""
    x, weight, bias = call.value("input"), call.value("weight"), call.optional("bias")
    if weight.ndim != 2:
        raise NoRule("its weight is not a matrix")
    letters = LETTERS[: x.ndim + 1]
    terms = [(letters[: x.ndim], x), (letters[x.ndim] + letters[x.ndim - 1], weight)]
    dims = contract(labels, terms, letters[: x.ndim - 1] + letters[x.ndim], call.name)
    add_bias(labels, bias, dims[-1], dims[:-1], call.name)
    return Result(dims, "linear")


@rule("matmul", "mm", "bmm", "mv", "dot", "vdot", "_sparse_mm")
def matmul(labels: Labels, call: Call) -> Result:
    """y[..., n, o] = sum_i x[..., n, i] y[..., i, o], batch dimensions broadcast."""
    keys = {"matmul": "other", "mv": "vec", "dot": "tensor", "vdot": "other", "_sparse_mm": "dense"}
    x = call.value("sparse" if call.name == "_sparse_mm" else "self")
    y = call.value(keys.get(call.name, "mat2"))
    dims = _matmul(labels, x, y, call.name)
    # x[..., i] W[i, o], or W[o, i] x[..., i, 1]
    column = x.param is not None and x.ndim == 2 and y.param is None and y.ndim > 2 and y.shape[-1] == 1
    return Result(dims, "linear" if column or (x.ndim >= 2 and y.ndim == 2) else call.name)


def _matmul(labels: Labels, x: Value, y: Value, reason: str) -> Dims:
    if not x.ndim or not y.ndim:
        raise NoRule("a factor is a scalar")
    letters = LETTERS[: max(x.ndim, y.ndim, 2) + 1]
    batch, row, inner, column = letters[:-3], letters[-3], letters[-2], letters[-1]
    left = inner if x.ndim == 1 else batch[len(batch) - (x.ndim - 2) :] + row + inner
    right = inner if y.ndim == 1 else batch[len(batch) - (y.ndim - 2) :] + inner + column
    wide = batch[len(batch) - max(x.ndim - 2, y.ndim - 2, 0) :] if max(x.ndim, y.ndim) > 2 else ""
    out = wide + (row if x.ndim > 1 else "") + (column if y.ndim > 1 else "")
    return contract(labels, [(left, x), (right, y)], out, reason)


@rule("addmm", "baddbmm", "addmv")
def addmm(labels: Labels, call: Call) -> Result:
    """y[..., n, o] = b[..., n, o] + sum_i x[..., n, i] M[..., i, o]: b is a bias, or a mask on scores."""
    added = call.value("self")
    keys = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"), "addmv": ("mat", "vec")}[call.name]
    dims = _matmul(labels, call.value(keys[0]), call.value(keys[1]), call.name)
    if added.ndim == 1 and call.name == "addmm" and added.shape[0] == call.shape[-1]:
        add_bias(labels, added, dims[-1], dims[:-1], call.name)
        return Result(dims, "linear")
    row = call.name == "addmm" and added.param is not None and added.shape == (1, call.shape[-1])
    dims = together(labels, added, Value(dims, call.shape), len(dims), call.name)
    return Result(dims, "linear" if row else call.name)


@rule("tensordot", "inner", "outer")
def tensordot(labels: Labels, call: Call) -> Result:
    """Sums over pairs of dimensions: those of the call, the last ones (inner), or none (outer)."""
    x, y = call.value("self"), call.value("vec2" if call.name == "outer" else "other")
    pairs, config = {"inner": ([-1], [-1])}.get(call.name, ([], [])), ()
    if call.name == "tensordot":
        pairs = call.setting("dims_self"), call.setting("dims_other")
        config = (("dims", str(pairs)),)
    elif not x.ndim or not y.ndim:
        raise NoRule("a factor is a scalar")
    left, right = list(LETTERS[: x.ndim]), list(LETTERS[x.ndim : x.ndim + y.ndim])
    for i, j in zip(*pairs, strict=True):
        right[j] = left[i]
    out = "".join(letter for letter in (*left, *right) if (letter in left) != (letter in right))
    terms = [("".join(left), x), ("".join(right), y)]
    dims = contract(labels, terms, out, call.name)
    return Result(dims, "linear") if _is_dense(terms, out) else Result(dims, call.name, config)


@rule("_grouped_mm")
@rule("grouped_mm_fallback", space="transformers")
def grouped_mm(labels: Labels, call: Call) -> Result:
    """y[t, o] = sum_i x[t, i] M[e(t), i, o] + b[e(t), o]: rows are dealt to experts by position.

    Hidden units are permuted alike in all experts, as one tensor holds those of all.
    """
    first, second = ("self", "mat2") if "mat2" in call.args else ("input", "weight")
    x, weight, bias = call.value(first), call.value(second), call.optional("bias")
    if x.ndim == weight.ndim == 3 and bias is None:
        return Result(_matmul(labels, x, weight, call.name), "bmm")
    if (x.ndim, weight.ndim) != (2, 3):
        raise NoRule("it sums over the rows of experts")
    labels.mix((*x.dims, *weight.dims[1:]), (weight.dims[0],))
    labels.pin((weight.dims[0],), call.name)
    labels.freeze((x.dims[0],))
    labels.pin(call.value("offs").dims, call.name)
    labels.tie(weight.dims[1], inverse(labels, x.dims[1]), call.name)
    labels.mix((x.dims[0],), (x.dims[1],))
    if bias is not None:
        labels.mix((bias.dims[1],), (bias.dims[0],))
        labels.pin((bias.dims[0],), call.name)
        add_bias(labels, Value(bias.dims[1:], bias.shape[1:]), weight.dims[2], (x.dims[0],), call.name)
    return Result((x.dims[0], weight.dims[2]), call.name)


@rule("cdist")
def distances(labels: Labels, call: Call) -> Result:
    """d[..., n, m] = |x[..., n, :] - y[..., m, :]|: coordinates may be permuted and change their signs."""
    x, y = call.value("x1"), call.value("x2")
    letters = LETTERS[: max(x.ndim, y.ndim) + 1]
    batch, (row, column, inner) = letters[:-3], letters[-3:]
    left = batch[len(batch) - (x.ndim - 2) :] + row + inner
    right = batch[len(batch) - (y.ndim - 2) :] + column + inner
    labels.limit((*x.dims, *y.dims), "sign", call.name)
    labels.limit((*x.dims[:-1], *y.dims[:-1]), "none", call.name)
    out = batch + row + column
    return Result(contract(labels, [(left, x), (right, y)], out, call.name), call.name)


@rule("bilinear")
def bilinear(labels: Labels, call: Call) -> Result:
    """y[..., o] = sum_ij x[..., i] W[o, i, j] z[..., j] + b[o]."""
    x, z, weight = call.value("input1"), call.value("input2"), call.value("weight")
    letters = LETTERS[: x.ndim + 2]
    batch, (out, i, j) = letters[: x.ndim - 1], letters[x.ndim - 1 :]
    dims = contract(labels, [(batch + i, x), (batch + j, z), (out + i + j, weight)], batch + out, call.name)
    add_bias(labels, call.optional("bias"), dims[-1], dims[:-1], call.name)
    return Result(dims, call.name)


@rule("einsum")
def einsum(labels: Labels, call: Call) -> Result:
    """Sums of products by letters."""
    equation, values = str(call.setting("equation")).replace(" ", ""), call.setting("tensors")
    if not all(isinstance(value, Value) for value in values):
        raise NoRule("an operand is not one tensor")
    inputs, arrow, out = equation.partition("->")
    terms = inputs.split(",")
    free = [letter for letter in LETTERS if letter not in equation]
    # How many dimensions each operand's "..." stands for.
    hidden = [value.ndim - len(term.replace("...", "")) for term, value in zip(terms, values, strict=True)]
    wide = max(hidden, default=0)
    dots = "".join(free[:wide]) if "..." in equation else ""
    spelled = [
        term.replace("...", dots[len(dots) - count :] if count else "")
        for term, count in zip(terms, hidden, strict=True)
    ]
    if not arrow:
        every = "".join(spelled)
        out = dots + "".join(sorted(letter for letter in set(every) - set(dots) if every.count(letter) == 1))
    if any(len(set(term)) != len(term) for term in spelled):
        raise NoRule("it takes a diagonal")
    pairs = list(zip(spelled, values, strict=True))
    out = out.replace("...", dots)
    dims = contract(labels, pairs, out, call.name)
    if _is_dense(pairs, out):
        return Result(dims, "linear")
    return Result(dims, "einsum", (("equation", equation),))


def _is_dense(terms: Sequence[tuple[str, Value]], out: str) -> bool:
    """Whether it is a dense layer: x[..., i] and a matrix W[o, i] or W[i, o] give y[..., o]."""
    if len(terms) != 2:
        return False
    for (x, values), (weight, matrix) in (terms, terms[::-1]):
        if len(x) >= 2 and len(weight) == 2 and matrix.param is not None and values.param is None:
            read = weight.replace(out[-1:], "", 1)
            return len(read) == 1 and x[-1] == read and out == x[:-1] + weight.replace(read, "", 1)
    return False


def contract(labels: Labels, terms: Sequence[tuple[str, Value]], out: str, reason: str) -> Dims:
    """Labels of a sum of products.

    Args:
        labels: The constraints.
        terms: Per factor one letter for each dimension, as in an einsum, and the factor; dimensions of size
            one are broadcast.
        out: Letters of the result: along these the scales of the factors multiply. Over the others is
            summed, and the factors' scales have to cancel.
        reason: Name of the operation.
    """
    # Values first: a parameter takes over the units of the values that it is multiplied by.
    terms = sorted(terms, key=lambda term: term[1].param is not None)
    for term, value in terms:
        if value.param is not None:
            _nest(labels, term, value, [other for other in terms if other[1] is not value], out)
    joined: dict[str, Dim] = {}
    for letter in dict.fromkeys([*out, *(letter for term, _ in terms for letter in term)]):
        axes = [(value, term.index(letter)) for term, value in terms if letter in term]
        size = max(value.shape[axis] for value, axis in axes)
        for value, axis in axes:
            if value.shape[axis] != size:
                labels.tie(value.dims[axis], fixed(1, "broadcast"), reason)
        first, *rest = (value.dims[axis] for value, axis in axes if value.shape[axis] == size)
        if letter not in out and len(rest) == 1 and len(axes) == 2:
            # Summed over: the second factor has the inverse scales of the first one.
            labels.tie(rest[0], inverse(labels, first), reason)
            joined[letter] = labels.unscaled(labels.resolve(first))
            continue
        for dim in rest:
            first = multiplied(labels, dim, first, reason)
        joined[letter] = first
    labels.align(*(dict(zip(term, value.dims, strict=True)) for term, value in terms))
    kept, summed = tuple(joined[letter] for letter in out), tuple(joined[c] for c in joined if c not in out)
    labels.use(summed)
    for dim in summed:
        labels.limit((dim,), "none", reason)
    labels.mix(kept, summed)
    return kept


def _nest(labels: Labels, term: str, param: Value, others: list[tuple[str, Value]], out: str) -> None:
    """Nest units of a stack of matrices in its index; ties with units outside the stack undo that."""
    dims = dict(zip(term, param.dims, strict=True))
    for letters, value in others:
        units = {c: labels.unit_of(dim) for c, dim in zip(letters, value.dims, strict=True) if c in dims}
        for inner, unit in units.items():
            owner = None if unit is None else labels.owner(unit)
            outer = next((c for c in units if owner is not None and units[c] == owner), None)
            if outer is not None:
                labels.nest((dims[outer], dims[inner]))
    kept = [letter for letter in term if letter in out]
    if kept:
        labels.nest((dims[kept[0]], *(dim for letter, dim in dims.items() if letter != kept[0])))


def add_bias(labels: Labels, bias: Value | None, out: Dim, others: Dims, reason: str) -> None:
    """A bias moves with the outputs and is constant along everything else, which then cannot scale."""
    if bias is not None:
        if bias.ndim != 1 or bias.shape[0] != size_of(out):
            raise NoRule("its bias is not one number per output")
        labels.tie(bias.dims[0], out, reason)
        labels.limit(others, "none", f"bias of {reason}")


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(labels: Labels, call: Call) -> Result:
    """W[o, i, *kernel], transposed W[i, o, *kernel]: channels are units as in a dense layer, positions stay.

    Grouped: runs of input channels are read by runs of output channels; depthwise, a weight is multiplied by
    what its channel's output has and the input has not.
    """
    x, weight, bias = call.value("input"), call.value("weight"), call.optional("bias")
    transposed, rank, groups = "transpose" in call.name, weight.ndim - 2, call.setting("groups")
    for dim, size in zip(weight.dims[2:], weight.shape[2:], strict=True):
        labels.tie(dim, fixed(size, "kernel"), call.name)
    plain = (("stride", 1), ("padding", 0), ("output_padding", 0))
    if set(weight.shape[2:]) == {1} and all(
        per_axis(call.args[key], rank) == per_axis(n, rank) for key, n in plain if key in call.args
    ):
        # A kernel of size one treats every position by itself.
        before, positions = x.dims[:-rank], x.dims[-rank:]
        meeting = () if groups == x.shape[-rank - 1] else positions
    else:
        before, positions = held(labels, x.dims, rank, call.name), places(call.shape[-rank:])
        meeting = ()
    labels.mix((*before[:-1], *meeting), before[-1:])
    channels = before[-1]
    if groups == 1:
        labels.tie(weight.dims[0 if transposed else 1], inverse(labels, channels), call.name)
        out = weight.dims[1 if transposed else 0]
    elif groups == x.shape[-rank - 1] and weight.shape[1] == 1:
        labels.tie(weight.dims[1], fixed(1, "channel"), call.name)
        out = _depthwise(labels, channels, weight, call)
    elif transposed:
        raise NoRule(f"groups={groups}")
    else:
        out = _grouped(labels, channels, weight, groups, call.name)
    add_bias(labels, bias, out, (*before[:-1], *positions), call.name)
    keys = [key for key in ("stride", "padding", "output_padding", "dilation") if key in call.args]
    config = [(key, per_axis(call.args[key], rank)) for key in keys]
    if groups != 1:
        config.append(("groups", str(groups)))
    elif meeting and not transposed and {*x.shape[-rank:], *call.shape[-rank:]} == {1}:
        return Result((*before[:-1], out, *positions), "linear")  # of one position
    return Result((*before[:-1], out, *positions), call.name, tuple(config))


def _depthwise(labels: Labels, channels: Dim, weight: Value, call: Call) -> Dim:
    """The output channels, ``multiple`` of them for every input channel."""
    channels = labels.resolve(channels)
    multiple = weight.shape[0] // call.setting("groups")
    if multiple == 1:
        out = labels.rescaled(channels)
        labels.tie(weight.dims[0], labels.product(out, with_exponent(channels, -1)), call.name)
        return out
    atom = channels[0] if len(channels) == 1 else None
    if not isinstance(atom, Atom) or atom.unit is None:
        return _grouped(labels, channels, weight, call.setting("groups"), call.name)
    run = labels.fresh(multiple, weight.param or call.path, owner=atom.unit)
    labels.tie(weight.dims[0], (*with_exponent(channels, -1), *run), call.name)
    return (*labels.unscaled(channels), *run)


def _grouped(labels: Labels, channels: Dim, weight: Value, groups: int, reason: str) -> Dim:
    """Runs of input channels are read by runs of output channels."""
    owners, read = taken_apart(labels, channels, (groups, weight.shape[1]))
    writers, written = taken_apart(labels, weight.dims[0], (groups, weight.shape[0] // groups))
    labels.nest((writers, weight.dims[1]))
    # What a run of inputs is multiplied by as a whole is passed on.
    out = labels.product(writers, owners, reason)
    labels.tie(weight.dims[1], inverse(labels, read), reason)
    return (*labels.resolve(out), *labels.resolve(written))


@rule("scaled_dot_product_attention")
def attention(labels: Labels, call: Call) -> Result:
    """softmax(Q K^T) V: the scales of queries and keys cancel, those of the values are passed on."""
    query, key, value = call.value("query"), call.value("key"), call.value("value")
    if not query.ndim == key.ndim == value.ndim >= 2:
        raise NoRule("queries, keys and values have different numbers of dimensions")
    if call.args.get("enable_gqa"):
        key, value = (_repeated_heads(labels, x, query.shape[-3]) for x in (key, value))
    # scores[*batch, query, key] = sum_inner Q[*batch, query, inner] K[*batch, key, inner]
    batch = [_batch_dim(labels, query, key, axis, call.name) for axis in range(query.ndim - 2)]
    scores = (*batch, query.dims[-2], key.dims[-2])
    labels.limit(scores, "none", call.name)
    if call.args.get("dropout_p") and not call.training:
        labels.freeze(scores)  # weights are left out by place
    labels.mix(scores, (query.dims[-1],))
    labels.tie(key.dims[-1], inverse(labels, query.dims[-1]), call.name)
    # out[*batch, query, value] = sum_key softmax(scores)[*batch, query, key] V[*batch, key, value]
    labels.tie(value.dims[-2], key.dims[-2], call.name)
    labels.mix((*batch, query.dims[-2], value.dims[-1]), (key.dims[-2],))
    if call.args.get("is_causal"):
        labels.pin((query.dims[-2], key.dims[-2]), call.name)
    names = (("query", "inner"), ("key", "inner"), ("key", "value"))
    labels.align(
        *(
            dict(zip((*range(query.ndim - 2), *last), x.dims, strict=True))
            for last, x in zip(names, (query, key, value), strict=True)
        )
    )
    sizes = tuple(max(q, k) for q, k in zip(query.shape[:-2], key.shape[:-2], strict=True))
    weights = Value(scores, (*sizes, query.shape[-2], key.shape[-2]))
    if (mask := call.optional("attn_mask")) is not None:
        together(labels, mask, weights, weights.ndim, call.name)
    out = [_batch_dim(labels, weights, value, axis, call.name) for axis in range(len(batch))]
    return Result((*out, query.dims[-2], value.dims[-1]), call.name, settings(call, "is_causal", "scale"))


def _repeated_heads(labels: Labels, x: Value, count: int) -> Value:
    """Heads of keys or values, each repeated for all the heads of queries that share it."""
    heads = labels.resolve(x.dims[-3])
    if (times := count // x.shape[-3]) != 1:
        heads = (*heads, *copies(labels, times, heads))
    return Value((*x.dims[:-3], heads, *x.dims[-2:]), (*x.shape[:-3], count, *x.shape[-2:]))


def _batch_dim(labels: Labels, x: Value, y: Value, axis: int, reason: str) -> Dim:
    """A batch dimension of two factors; one of size one is broadcast."""
    if x.shape[axis] == y.shape[axis]:
        return multiplied(labels, x.dims[axis], y.dims[axis], reason)
    short, long = (x, y) if x.shape[axis] == 1 else (y, x)
    labels.limit((short.dims[axis],), "none", reason)
    return long.dims[axis]
