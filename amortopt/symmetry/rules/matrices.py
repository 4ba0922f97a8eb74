"""Diagonals, inverses and products of matrices and vectors other than those of layers."""

from __future__ import annotations

from amortopt.symmetry.rules.arithmetic import multiplied, times, together
from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, rule, settings
from amortopt.symmetry.rules.contraction import LETTERS, contract
from amortopt.symmetry.rules.dimensions import inverse, places, replaced, to_power, without
from amortopt.symmetry.rules.normalization import vector_norm
from amortopt.symmetry.solve.labels import Labels


@rule("diagonal", "linalg_diagonal", "diag", "trace")
def diagonal(labels: Labels, call: Call) -> Result:
    """d[..., i] = x[..., i, i]: both axes have the same units, and their scales multiply."""
    x = call.value("A" if "A" in call.args else "self")
    if call.name == "diag" and x.ndim == 1:
        return matrix_of(labels, call)
    named = "dim1" in call.args
    first, second = (call.axis(f"dim{k}", x.ndim) for k in (1, 2)) if named else (x.ndim - 2, x.ndim - 1)
    rest = without(x.dims, first, second)
    if x.shape[first] != x.shape[second] or call.args.get("offset", call.args.get("diagonal", 0)) != 0:
        labels.mix(rest, (x.dims[first], x.dims[second]))
        labels.pin((x.dims[first], x.dims[second]), call.name)
        (dim,) = places(call.shape[-1:]) if call.shape else ((),)
    else:
        for a, b in ((first, second), (second, first)):
            labels.mix((x.dims[a],), (x.dims[b],))
        dim = multiplied(labels, x.dims[first], x.dims[second], call.name)
    if call.name == "trace":
        labels.limit((dim,), "none", call.name)
        return Result((), call.name)
    return Result((*rest, dim), call.name, settings(call, "offset", "dim1", "dim2"))


@rule("diag_embed", "diagflat")
def matrix_of(labels: Labels, call: Call) -> Result:
    """A matrix with zeros beside its diagonal: rows have the scales, columns are only permuted."""
    x = call.value("self")
    shift = call.args.get("offset", call.args.get("diagonal", 0))
    ordered = tuple(call.args.get(f"dim{k}", k - 3) for k in (1, 2)) == (-2, -1)
    if shift != 0 or not ordered or (call.name == "diagflat" and x.ndim != 1):
        raise NoRule("its diagonal is not the main one of the last two dimensions")
    return Result((*x.dims, labels.unscaled(labels.resolve(x.dims[-1]))), call.name)


@rule("inverse", "linalg_inv")
def inverted(labels: Labels, call: Call) -> Result:
    """(D P A Q E)^-1 = E^-1 Q^-1 A^-1 P^-1 D^-1: rows of the inverse are the columns of the matrix."""
    x = call.value("A" if "A" in call.args else "self")
    *batch, rows, columns = x.dims
    labels.mix((*batch, rows), (columns,))
    labels.mix((*batch, columns), (rows,))
    dims = (*to_power(labels, tuple(batch), -1), inverse(labels, columns), inverse(labels, rows))
    return Result(dims, call.name)


@rule("linalg_matrix_exp", "matrix_exp", "linalg_matrix_power", "matrix_power")
def matrix_function(labels: Labels, call: Call) -> Result:
    """f(D A D^-1) = D f(A) D^-1: columns have the units of rows, and the inverse scales."""
    x = call.value("self" if "self" in call.args else "A")
    *batch, rows, columns = x.dims
    labels.limit(tuple(batch), "none", call.name)
    labels.mix((*batch, rows), (columns,))
    labels.mix((*batch, columns), (rows,))
    labels.tie(columns, inverse(labels, rows), call.name)
    return Result(x.dims, call.name, settings(call, "n"))


@rule("cross", "linalg_cross")
def cross(labels: Labels, call: Call) -> Result:
    """Of the three entries along an axis; products along the others."""
    x, y = call.value("self"), call.value("other")
    if call.args.get("dim") is None:
        raise NoRule("its axis is not named")
    axis = call.axis("dim", len(call.shape))
    dims = times(labels, x, y, len(call.shape), call.name)
    labels.mix(without(dims, axis), (dims[axis],))
    labels.pin(tuple(v.dims[axis - len(call.shape)] for v in (x, y)), call.name)
    return Result(replaced(dims, axis, *places((3,))), call.name, (("dim", str(axis)),))


@rule("linalg_vecdot")
def vector_products(labels: Labels, call: Call) -> Result:
    """s[...] = sum_i x[..., i] y[..., i]."""
    x, y = call.value("x"), call.value("y")
    if x.ndim != y.ndim:
        raise NoRule("its factors have different numbers of dimensions")
    letters, axis = LETTERS[: x.ndim], call.axis("dim", x.ndim)
    out = letters[:axis] + letters[axis + 1 :]
    return Result(contract(labels, [(letters, x), (letters, y)], out, call.name), call.name)


@rule("addbmm", "addr")
def added_product(labels: Labels, call: Call) -> Result:
    """b[n, m] + sum_k A[k, n, :] B[k, :, m], or b[n, m] + u[n] v[m]."""
    if call.name == "addr":
        terms = [("n", call.value("vec1")), ("m", call.value("vec2"))]
    else:
        terms = [("kni", call.value("batch1")), ("kim", call.value("batch2"))]
    product = Value(contract(labels, terms, "nm", call.name), call.shape)
    return Result(together(labels, call.value("self"), product, 2, call.name), call.name)


@rule("linalg_norm", "frobenius_norm", "linalg_matrix_norm")
def norm(labels: Labels, call: Call) -> Result:
    """The norm of all entries, or of those along some axes; other norms of matrices have no rule."""
    dim, order = call.args.get("dim"), call.args.get("ord")
    vector = order is None or order == "fro" or isinstance(dim, int) or (dim is not None and len(dim) == 1)
    if not vector:
        raise NoRule(f"it is the norm {order} of a matrix")
    args = {"self": call.value("A" if "A" in call.args else "self"), "dim": dim}
    if not isinstance(order, str) and order is not None:
        args["ord"] = order
    args["keepdim"] = call.args.get("keepdim", False)
    return vector_norm(labels, Call(call.op, args, call.shape, call.path, call.shapes))
