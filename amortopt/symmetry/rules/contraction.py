"""Operations that sum over an axis together with a weight: dense layers, matrix products, convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, held, per_axis, rule
from amortopt.symmetry.rules.broadcasting import multiplied, together
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


@rule("matmul", "mm", "bmm", "mv")
def matmul(labels: Labels, call: Call) -> Result:
    """y[..., n, o] = sum_i x[..., n, i] y[..., i, o], batch dimensions broadcast."""
    x, y = call.value("self"), call.value({"matmul": "other", "mv": "vec"}.get(call.name, "mat2"))
    dims = _matmul(labels, x, y, call.name)
    return Result(dims, "linear" if x.ndim >= 2 and y.ndim == 2 else call.name)


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


@rule("addmm", "baddbmm", "addmv")
def addmm(labels: Labels, call: Call) -> Result:
    """y[..., n, o] = b[..., n, o] + sum_i x[..., n, i] M[..., i, o]: b is a bias, or a mask on scores."""
    added = call.value("self")
    keys = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"), "addmv": ("mat", "vec")}[call.name]
    dims = _matmul(labels, call.value(keys[0]), call.value(keys[1]), call.name)
    if added.ndim == 1 and call.name == "addmm" and added.shape[0] == call.shape[-1]:
        add_bias(labels, added, dims[-1], dims[:-1], call.name)
        return Result(dims, "linear")
    return Result(together(labels, added, Value(dims, call.shape), len(dims), call.name), call.name)


@rule("dot", "vdot", "inner", "outer")
def vectors(labels: Labels, call: Call) -> Result:
    """Sums over the last dimensions, or over none."""
    x, y = call.value("self"), call.value({"dot": "tensor", "outer": "vec2"}.get(call.name, "other"))
    if not x.ndim or not y.ndim:
        raise NoRule("a factor is a scalar")
    letters = _letters(x.ndim + y.ndim)
    left, right = letters[: x.ndim], letters[x.ndim :]
    if call.name != "outer":
        right = right[:-1] + left[-1]
    out = letters if call.name == "outer" else left[:-1] + right[:-1]
    return Result(contract(labels, [(left, x), (right, y)], out, call.name), call.name)


@rule("tensordot")
def tensordot(labels: Labels, call: Call) -> Result:
    """Sums over pairs of dimensions."""
    x, y = call.value("self"), call.value("other")
    letters = _letters(x.ndim + y.ndim)
    left, right = list(letters[: x.ndim]), list(letters[x.ndim :])
    summed = zip(call.setting("dims_self"), call.setting("dims_other"), strict=True)
    for mine, other in summed:
        right[other] = left[mine]
    out = "".join(letter for letter in (*left, *right) if (letter in left) != (letter in right))
    dims = contract(labels, [("".join(left), x), ("".join(right), y)], out, call.name)
    return Result(dims, call.name, (("dims", str((call.args["dims_self"], call.args["dims_other"]))),))


@rule("_grouped_mm")
def grouped_mm(labels: Labels, call: Call) -> Result:
    """y[t, o] = sum_i x[t, i] M[e(t), i, o] + b[e(t), o]: experts know their rows by position.

    Hidden units are permuted alike in all experts, as one tensor holds those of all.
    """
    return _by_expert(labels, call, call.value("self"), call.value("mat2"), call.optional("bias"))


@rule("grouped_mm_fallback", space="transformers")
def grouped_mm_fallback(labels: Labels, call: Call) -> Result:
    """The same, as transformers writes it."""
    return _by_expert(labels, call, call.value("input"), call.value("weight"), None)


def _by_expert(labels: Labels, call: Call, x: Value, weight: Value, bias: Value | None) -> Result:
    if x.ndim == weight.ndim == 3 and bias is None:
        return Result(_matmul(labels, x, weight, call.name), "bmm")
    if (x.ndim, weight.ndim) != (2, 3):
        raise NoRule("it sums over the rows of experts")
    labels.mix((*x.dims, *weight.dims[1:]), (weight.dims[0],))
    labels.pin((weight.dims[0],), call.name)
    labels.freeze((x.dims[0],))
    labels.pin(call.value("offs").dims, call.name)
    labels.tie(weight.dims[1], with_exponent(labels.resolve(x.dims[1]), -1), call.name)
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
    letters = _letters(max(x.ndim, y.ndim) + 1)
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
    letters = _letters(x.ndim + 2)
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
    channels, groups = before[-1], call.setting("groups")
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
    channels, groups = before[-1], call.setting("groups")
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
    depthwise = call.setting("groups") == x.shape[-rank - 1]
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
    own, written = taken_apart(labels, weight.dims[0], (groups, weight.shape[0] // groups))
    labels.nest((own, weight.dims[1]))
    # What a run of inputs is multiplied by as a whole is passed on.
    out = labels.product(own, owners, reason)
    labels.tie(weight.dims[1], with_exponent(labels.resolve(read), -1), reason)
    return (*labels.resolve(out), *labels.resolve(written))
