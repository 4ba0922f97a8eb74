"""Operations that sum over an axis together with a weight: dense layers, matrix products, convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, held, per_axis, rule
from amortopt.symmetry.rules.shape import taken_apart
from amortopt.symmetry.solve.dims import Atom, Dim, Dims, fixed, size_of, with_exponent
from amortopt.symmetry.solve.labels import Labels


@rule("linear")
def linear(labels: Labels, call: Call) -> Result:
    """y[..., o] = sum_i x[..., i] W[o, i] + b[o]: W reads with the inverse of x's scales."""
    x, weight, bias = call.value("input"), call.value("weight"), call.optional("bias")
    if weight.ndim != 2:
        raise NoRule("its weight is not a matrix")
    letters = _letters(x.ndim + 1)
    terms = [(letters[: x.ndim], x), (letters[x.ndim] + letters[x.ndim - 1], weight)]
    dims = contract(labels, terms, letters[: x.ndim - 1] + letters[x.ndim], call.name)
    add_bias(labels, bias, dims[-1], dims[:-1], call.name)
    return Result(dims, "linear")


@rule("matmul", "mm", "bmm")
def matmul(labels: Labels, call: Call) -> Result:
    """y[..., n, o] = sum_i x[..., n, i] y[..., i, o], batch dimensions broadcast."""
    x, y = call.value("self"), call.value("mat2" if "mat2" in call.args else "other")
    dims = _matmul(labels, x, y, call.name)
    plain = min(x.ndim, y.ndim) >= 1 and max(len(x.dims), 2) >= 2 and y.ndim == 2
    return Result(dims, "linear" if plain and x.ndim >= 2 else call.name)


def _matmul(labels: Labels, x: Value, y: Value, reason: str) -> Dims:
    if not x.ndim or not y.ndim:
        raise NoRule("a factor is a scalar")
    letters = _letters(max(x.ndim, y.ndim, 2) + 1)
    batch, row, inner, column = letters[:-3], letters[-3], letters[-2], letters[-1]
    left = inner if x.ndim == 1 else batch[len(batch) - (x.ndim - 2) :] + row + inner
    right = inner if y.ndim == 1 else batch[len(batch) - (y.ndim - 2) :] + inner + column
    wide = batch[len(batch) - max(x.ndim - 2, y.ndim - 2, 0) :] if max(x.ndim, y.ndim) > 2 else ""
    out = wide + (row if x.ndim > 1 else "") + (column if y.ndim > 1 else "")
    return contract(labels, [(left, x), (right, y)], out, reason)


@rule("addmm", "baddbmm", "addbmm")
def addmm(labels: Labels, call: Call) -> Result:
    """y[..., n, o] = b[o] + sum_i x[..., n, i] M[..., i, o]."""
    bias = call.value("self")
    keys = ("mat1", "mat2") if call.name == "addmm" else ("batch1", "batch2")
    dims = _matmul(labels, call.value(keys[0]), call.value(keys[1]), call.name)
    if bias.ndim != 1 or bias.shape[0] != call.shape[-1] or call.name == "addbmm":
        raise NoRule("its bias is not a vector over the outputs")
    add_bias(labels, bias, dims[-1], dims[:-1], call.name)
    return Result(dims, "linear")


@rule("bilinear")
def bilinear(labels: Labels, call: Call) -> Result:
    """y[..., o] = sum_ij x[..., i] W[o, i, j] z[..., j] + b[o]."""
    x, z, weight = call.value("input1"), call.value("input2"), call.value("weight")
    letters = _letters(x.ndim + 2)
    batch, (out, i, j) = letters[: x.ndim - 1], letters[x.ndim - 1 :]
    dims = contract(labels, [(batch + i, x), (batch + j, z), (out + i + j, weight)], batch + out, call.name)
    add_bias(labels, call.optional("bias"), dims[-1], dims[:-1], call.name)
    return Result(dims, call.name)


@rule("einsum")
def einsum(labels: Labels, call: Call) -> Result:
    """Sums of products by letters."""
    equation, values = str(call.args["equation"]).replace(" ", ""), call.args["tensors"]
    if not all(isinstance(value, Value) for value in values):
        raise NoRule("an operand is not one tensor")
    inputs, arrow, out = equation.partition("->")
    terms = inputs.split(",")
    free = [letter for letter in _letters(52) if letter not in equation]
    wide = max(
        (value.ndim - len(term.replace("...", "")) for term, value in zip(terms, values, strict=True)),
        default=0,
    )
    dots = "".join(free[:wide]) if "..." in equation else ""
    spelled = []
    for term, value in zip(terms, values, strict=True):
        count = value.ndim - len(term.replace("...", ""))
        spelled.append(term.replace("...", dots[len(dots) - count :] if count else ""))
    if not arrow:
        every = "".join(spelled)
        out = dots + "".join(sorted(letter for letter in set(every) - set(dots) if every.count(letter) == 1))
    if any(len(set(term)) != len(term) for term in spelled):
        raise NoRule("it takes a diagonal")
    pairs = list(zip(spelled, values, strict=True))
    dims = contract(labels, pairs, out.replace("...", dots), call.name)
    return Result(dims, "einsum", (("equation", equation),))


def contract(labels: Labels, terms: Sequence[tuple[str, Value]], out: str, reason: str) -> Dims:
    """Labels of a sum of products, by letters as in an einsum; dimensions of size one are broadcast.

    Letters that stay are permuted alike and multiply their scales; over those that are summed the scales have
    to cancel.
    """
    # A value leads, a parameter follows.
    terms = sorted(terms, key=lambda term: term[1].param is not None)
    letters = list(dict.fromkeys([*out, *(letter for term, _ in terms for letter in term)]))
    for term, value in terms:
        if value.param is not None:
            _nest(labels, term, value, [other for other in terms if other[1] is not value], out)
    found: dict[str, Dim] = {}
    for letter in letters:
        dims = [
            (value.dims[term.index(letter)], value.shape[term.index(letter)])
            for term, value in terms
            if letter in term
        ]
        found[letter] = _joined(labels, dims, letter in out, reason)
    labels.align(*(dict(zip(term, value.dims, strict=True)) for term, value in terms))
    summed = tuple(found[letter] for letter in letters if letter not in out)
    kept = tuple(found[letter] for letter in out)
    labels.use(summed)
    for dim in summed:
        labels.limit((dim,), "none", reason)
    labels.mix(kept, summed)
    return tuple(found[letter] for letter in out)


def _nest(labels: Labels, term: str, param: Value, others: list[tuple[str, Value]], out: str) -> None:
    """In a stack of matrices each may have units of its own; ties with other units lift them out of it."""
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


def _joined(labels: Labels, dims: list[tuple[Dim, int]], kept: bool, reason: str) -> Dim:
    """The dimension of one letter from those of the operands that have it."""
    size = max(size for _, size in dims)
    for dim, own in dims:
        if own != size:
            labels.tie(dim, fixed(1, "broadcast"), reason)
    same = [dim for dim, own in dims if own == size]
    if not kept and len(same) == 2 and len(dims) == 2:
        labels.tie(same[1], with_exponent(labels.resolve(same[0]), -1), reason)
        return labels.unscaled(labels.resolve(same[0]))
    joined = same[0]
    for dim in same[1:]:
        joined = multiplied(labels, dim, joined, reason)
    return joined


def multiplied(labels: Labels, x: Dim, y: Dim, reason: str) -> Dim:
    """The dimension of a product along which both factors vary; constants only keep the order."""
    known, other = labels.variables(x), labels.variables(y)
    if bool(known) != bool(other):
        labels.freeze((x, y))
        return x if known else y
    return labels.product(x, y, reason)


def _letters(count: int) -> str:
    return "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count]


def add_bias(labels: Labels, bias: Value | None, out: Dim, others: Dims, reason: str) -> None:
    """A bias moves with the outputs and is constant along everything else, which then cannot scale."""
    if bias is not None:
        if bias.ndim != 1 or bias.shape[0] != size_of(out):
            raise NoRule("its bias is not one number per output")
        labels.tie(bias.dims[0], out, reason)
        labels.limit(others, "none", f"bias of {reason}")


@rule("conv1d", "conv2d", "conv3d")
def convolution(labels: Labels, call: Call) -> Result:
    """One unit per channel: W[o, i, *kernel] as in a dense layer, and positions stay where they are.

    Grouped: runs of input channels are read by runs of output channels; depthwise, a weight is multiplied by
    what its channel's output has and the input has not.
    """
    x, weight, bias = call.value("input"), call.value("weight"), call.optional("bias")
    rank = weight.ndim - 2
    before = _held_positions(labels, x, weight, rank, call)
    channels, groups = before[-1], call.args["groups"]
    if groups == 1:
        labels.tie(weight.dims[1], with_exponent(labels.resolve(channels), -1), call.name)
        out = weight.dims[0]
    elif groups == x.shape[-rank - 1]:
        labels.tie(weight.dims[1], fixed(1, "channel"), call.name)
        out = _depthwise(labels, channels, weight, call)
    else:
        out = _grouped(labels, channels, weight, groups, call.name)
    positions = _positions(x, weight, rank, call)
    add_bias(labels, bias, out, (*before[:-1], *positions), call.name)
    config = [(key, per_axis(call.args[key], rank)) for key in ("stride", "padding", "dilation")]
    if groups != 1:
        config.append(("groups", str(groups)))
    return Result((*before[:-1], out, *positions), call.name, tuple(config))


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(labels: Labels, call: Call) -> Result:
    """W[i, o, *kernel]: reads along its first axis and writes along its second one."""
    x, weight, bias = call.value("input"), call.value("weight"), call.optional("bias")
    rank = weight.ndim - 2
    before = _held_positions(labels, x, weight, rank, call)
    channels, groups = before[-1], call.args["groups"]
    if groups == 1:
        labels.tie(weight.dims[0], with_exponent(labels.resolve(channels), -1), call.name)
        out = weight.dims[1]
    elif groups == x.shape[-rank - 1] and weight.shape[1] == 1:
        labels.tie(weight.dims[1], fixed(1, "channel"), call.name)
        out = _depthwise(labels, channels, weight, call)
    else:
        raise NoRule(f"groups={groups}")
    positions = _positions(x, weight, rank, call)
    add_bias(labels, bias, out, (*before[:-1], *positions), call.name)
    config = [
        (key, per_axis(call.args[key], rank)) for key in ("stride", "padding", "output_padding", "dilation")
    ]
    if groups != 1:
        config.append(("groups", str(groups)))
    return Result((*before[:-1], out, *positions), call.name, tuple(config))


def _held_positions(labels: Labels, x: Value, weight: Value, rank: int, call: Call) -> Dims:
    """Hold positions, of the input and of the kernel; the labels of the input's other dimensions."""
    for dim, size in zip(weight.dims[2:], weight.shape[2:], strict=True):
        labels.tie(dim, fixed(size, "kernel"), call.name)
    if not _is_pointwise(weight, rank, call):
        before = held(labels, x.dims, rank, call.name)
        labels.mix(before[:-1], before[-1:])
        return before
    before, positions = x.dims[:-rank], x.dims[-rank:]
    depthwise = call.args["groups"] == x.shape[-rank - 1]
    labels.mix((*before[:-1], *(() if depthwise else positions)), before[-1:])
    return before


def _is_pointwise(weight: Value, rank: int, call: Call) -> bool:
    """Whether every position is treated by itself."""
    plain = (("stride", 1), ("padding", 0), ("output_padding", 0))
    settings = [per_axis(call.args[key], rank) == per_axis(n, rank) for key, n in plain if key in call.args]
    return all(settings) and set(weight.shape[2:]) == {1}


def _positions(x: Value, weight: Value, rank: int, call: Call) -> Dims:
    if _is_pointwise(weight, rank, call):
        return x.dims[-rank:]
    return tuple(fixed(size, "position") for size in call.shape[-rank:])


def _depthwise(labels: Labels, channels: Dim, weight: Value, call: Call) -> Dim:
    """Every channel has outputs of its own."""
    channels = labels.resolve(channels)
    multiple = weight.shape[0] // call.args["groups"]
    if multiple == 1:
        out = labels.rescaled(channels)
        labels.tie(weight.dims[0], labels.product(out, with_exponent(channels, -1)), call.name)
        return out
    atom = channels[0] if len(channels) == 1 else None
    if not isinstance(atom, Atom) or atom.unit is None:
        return _grouped(labels, channels, weight, call.args["groups"], call.name)
    run = labels.fresh(multiple, weight.param or call.path, owner=atom.unit)
    labels.tie(weight.dims[0], (*with_exponent(channels, -1), *run), call.name)
    return (*labels.unscaled(channels), *run)


def _grouped(labels: Labels, channels: Dim, weight: Value, groups: int, reason: str) -> Dim:
    """Runs of input channels are read by runs of output channels."""
    owners, read = taken_apart(labels, channels, (groups, weight.shape[1]))
    own, written = taken_apart(labels, weight.dims[0], (groups, weight.shape[0] // groups))
    labels.nest((own, weight.dims[1]))
    # What a run of inputs is multiplied by as a whole is passed on.
    out = labels.product(own, owners, reason)
    labels.tie(weight.dims[1], with_exponent(labels.resolve(read), -1), reason)
    return (*labels.resolve(out), *labels.resolve(written))
