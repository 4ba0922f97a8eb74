"""All permutation-equivariant linear maps between two tensors, one term per partition of their axes.

A tensor's spec is the group id of every axis; axes of one id are permuted together. Terms follow Zhou et al.
(2024, arXiv 2402.05232), algorithm 1. [FixedUNFLayer][amortopt.metanets.unf.FixedUNFLayer] is the fast sum of
all of them.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

Spec: TypeAlias = tuple[int, ...]
"""Group id of every axis of a tensor."""


@dataclass(frozen=True)
class Term:
    """One partition of the joint axes of an (output, input) pair: axes of one part run together.

    Attributes:
        out: Part of every output axis. Two axes of one part: written onto a diagonal.
        into: Part of every input axis. Two axes of one part: the diagonal is read. A part without an output
            axis: averaged; an output part without an input axis: repeated.
    """

    out: tuple[int, ...]
    into: tuple[int, ...]


def groupings(spec: Spec) -> Iterator[tuple[int, ...]]:
    """Partitions of axes into parts of one group each: the part of every axis, numbered by first axes.

    Examples:
        >>> list(groupings((5, 5))), list(groupings((5, 6)))
        ([(0, 0), (0, 1)], [(0, 1)])
    """

    def extend(parts: tuple[int, ...], group_of: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(parts) == len(spec):
            yield parts
            return
        group = spec[len(parts)]
        for part, other in enumerate(group_of):
            if other == group:
                yield from extend((*parts, part), group_of)
        yield from extend((*parts, len(group_of)), (*group_of, group))

    yield from extend((), ())


def unf_terms(out_spec: Spec, in_spec: Spec) -> tuple[Term, ...]:
    """The terms of one pair, one per partition, in the order of ``unf_basis``."""
    rank = len(out_spec)
    return tuple(Term(parts[:rank], parts[rank:]) for parts in groupings((*out_spec, *in_spec)))


@cache
def _bell(n: int) -> int:
    return 1 if n == 0 else sum(math.comb(n - 1, k) * _bell(k) for k in range(n))


def count_terms(out_spec: Spec, in_spec: Spec) -> int:
    """Number of terms of one pair: the product over groups of the Bell number of the group's axes.

    Examples:
        >>> count_terms((1, 1), (1, 1))  # a recurrent matrix onto itself
        15
    """
    return math.prod(map(_bell, Counter((*out_spec, *in_spec)).values()))


def count_layer_terms(specs: Sequence[Spec]) -> int:
    """Number of terms over all ordered pairs of some tensors.

    Examples:
        >>> count_layer_terms([(1, 0), (1,), (2, 1), (2,), (3, 2), (3,)])  # an MLP of three layers
        62
    """
    return sum(count_terms(out, into) for out in specs for into in specs)


def unf_basis(
    out_spec: Spec, in_spec: Spec, out_shape: Sequence[int], x: Tensor, *, channels: int = 0
) -> list[Tensor]:
    r"""All terms of one pair: means over axes, diagonals, broadcasts, diagonal embeddings.

    With :math:`\sigma` acting on all axes by its group's permutation, every linear map with
    :math:`f(\sigma x) = \sigma f(x)` is a sum of these with one coefficient (or channel matrix) each
    (Zhou et al. 2024, theorem 3.1).

    Args:
        out_spec: Group id of every output axis.
        in_spec: Group id of every input axis.
        out_shape: Size of every output axis.
        x: Input [\*batch, \*in_shape, \*channels].
        channels: How many trailing axes are channels; every axis before ``in_shape`` is a batch axis.

    Returns:
        Terms [\*batch, \*out_shape, \*channels], in the order of ``unf_terms``.

    Raises:
        ValueError: ``out_shape`` does not fit ``out_spec``, x has too few axes, or axes of one group differ
            in size.

    Examples:
        >>> [term.tolist() for term in unf_basis((0,), (0,), (2,), torch.tensor([1.0, 3.0]))]
        [[1.0, 3.0], [2.0, 2.0]]
    """
    shape = tuple(int(n) for n in out_shape)
    batch = x.ndim - channels - len(in_spec)
    if len(shape) != len(out_spec):
        raise ValueError(
            f"out_shape: got {shape}, expected a size for each of the {len(out_spec)} axes of "
            f"out_spec {out_spec}"
        )
    if batch < 0 or channels < 0:
        raise ValueError(
            f"x: got shape {tuple(x.shape)} with {channels} channel axes, expected at least the "
            f"{len(in_spec)} axes of in_spec {in_spec} before them"
        )
    in_shape = tuple(x.shape[batch : batch + len(in_spec)])
    check_sizes((out_spec, in_spec), (shape, in_shape))
    flat = x.reshape(x.shape[:batch].numel(), *in_shape, x.shape[x.ndim - channels :].numel())
    terms = [_term(term, shape, flat) for term in unf_terms(out_spec, in_spec)]
    shaped = (*x.shape[:batch], *shape, *x.shape[batch + len(in_spec) :])
    return [term.reshape(shaped) for term in terms]


def check_sizes(specs: Sequence[Spec], shapes: Sequence[Sequence[int]]) -> None:
    """Raise a ``ValueError`` if axes of one group differ in size."""
    sizes: dict[int, int] = {}
    for spec, shape in zip(specs, shapes, strict=True):
        for group, size in zip(spec, shape, strict=True):
            if sizes.setdefault(group, size) != size:
                raise ValueError(
                    f"shapes: group {group} got axes of sizes {sizes[group]} and {size}, expected one size; "
                    "give axes that are not permuted together different ids"
                )


def _term(term: Term, out_shape: tuple[int, ...], x: Tensor) -> Tensor:
    """One term of x [batch, *in_shape, channels], by one sum over products."""
    letters = iter(string.ascii_lowercase[2:])
    letter = {part: next(letters) for part in sorted({*term.out, *term.into})}
    operands, inputs, outputs = [x], ["a" + "".join(letter[p] for p in term.into) + "b"], []
    seen = set()
    for part, size in zip(term.out, out_shape, strict=True):
        name = letter[part]
        if part in seen:  # a further axis of a diagonal
            name = next(letters)
            operands.append(torch.eye(size, dtype=x.dtype, device=x.device))
            inputs.append(letter[part] + name)
        elif part not in term.into:
            operands.append(torch.ones(size, dtype=x.dtype, device=x.device))
            inputs.append(name)
        seen.add(part)
        outputs.append(name)
    summed = torch.einsum(f"{','.join(inputs)}->a{''.join(outputs)}b", operands)
    averaged = {p: n for p, n in zip(term.into, x.shape[1:-1], strict=True) if p not in term.out}
    return summed / math.prod(averaged.values())
