"""Which parameter of a user's network is which parameter of the family's, by structure and not by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from torch import Tensor

from amortopt._types import Params
from amortopt.symmetry.axes import Block, Operation
from amortopt.symmetry.spec import SymmetrySpec


class FamilyMismatchError(ValueError):
    """A network is not of the family; the message names the first difference."""


@dataclass(frozen=True)
class Match:
    """How a network corresponds to a family.

    Attributes:
        params: The family's parameter name -> the network's.
        width_changes: A line for every hidden group whose number of units differs; empty if none does.
        transposed: The family's names of matrices that the network stores transposed, as ``x @ W`` has them.
        ones: The family's names of tensors that the network stores with further axes of size one, as a vector
            [1, n] or a convolution's matrix [m, n, 1] -> places of these axes, from the end.
    """

    params: dict[str, str]
    width_changes: tuple[str, ...]
    transposed: frozenset[str] = frozenset()
    ones: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])

    def of_family(self, tensors: Params) -> Params:
        """The network's tensors [..., *shape] by the family's names and with its axes."""

        def read(name: str, value: Tensor) -> Tensor:
            for place in self.ones.get(name, ()):
                value = value.squeeze(place)
            return value.mT if name in self.transposed else value

        return {name: read(name, tensors[key]) for name, key in self.params.items()}

    def of_network(self, params: Params) -> Params:
        """The family's tensors [..., *shape] by the network's names and with its axes."""

        def written(name: str, value: Tensor) -> Tensor:
            value = value.mT if name in self.transposed else value
            for place in reversed(self.ones.get(name, ())):
                value = value.unsqueeze(place)
            return value

        return {key: written(name, params[name]) for name, key in self.params.items()}


def match(family: SymmetrySpec, spec: SymmetrySpec) -> Match:
    """Compare two networks operation by operation, in execution order.

    Args:
        family: Spec of the family that a metanet was trained on.
        spec: Spec of a user's network; names and registration order do not matter.

    Returns:
        The correspondence of parameters. Hidden widths may differ and are listed, and so are matrices that
        are stored transposed and vectors that are stored as rows.

    Raises:
        FamilyMismatchError: Depth, activation, another operation or its settings, a missing or additional
            parameter, kernel, input or output size, or scale kind differ.
    """
    layers, layers_got = ([op.kind for op in s.operations if op.params] for s in (family, spec))
    for kind in dict.fromkeys(layers):
        if set(layers_got) <= set(layers) and layers_got.count(kind) != layers.count(kind):
            raise _fail("depth", f"{layers.count(kind)} {kind} layers", layers_got.count(kind))
    params: dict[str, str] = {}
    activations = 0
    for index, (expected, got) in enumerate(zip_longest(family.operations, spec.operations), start=1):
        simple = all(op is not None and not op.params for op in (expected, got))
        activations += simple
        position = f"activation {activations}" if simple else f"operation {index}"
        for name, other in _compare_operation(expected, got, position).items():
            if params.setdefault(name, other) != other:
                raise _fail(f"parameter {other!r}", f"{params[name]!r} a second time", "another one")
    # Parameters that no operation uses
    if left := [name for name in spec.params if name not in params.values()]:
        raise _fail("parameters", "none that forward does not use", left, "remove it")
    if left := [name for name in family.params if name not in params]:
        raise _fail("parameters", left, "none like that")
    groups: dict[str, str] = {}
    transposed, ones = set[str](), dict[str, tuple[int, ...]]()
    for name, other in params.items():
        expected, got = family.blocks_of(name), spec.blocks_of(other)
        if len(expected) == len(got) == 1:
            further = _further_ones(expected[0], got[0])
            if further:
                kept = [axis for k, axis in enumerate(got[0].axes) if k - len(got[0].axes) not in further]
                ones[name], got = further, (replace(got[0], axes=tuple(kept)),)
        try:
            groups |= _compare_blocks(expected, got, groups)
        except FamilyMismatchError:
            if [len(block.axes) for block in (*expected, *got)] != [2, 2]:
                raise
            # [out, in] or [in, out]: exponents +1 and -1 tell them apart, in square matrices too.
            turned = replace(got[0], axes=got[0].axes[::-1])
            try:
                groups |= _compare_blocks(expected, (turned,), groups)
            except FamilyMismatchError:
                turned = None
            if turned is None:
                raise
            transposed.add(name)
    return Match(params, _compare_groups(family, spec, groups), frozenset(transposed), ones)


def _further_ones(expected: Block, got: Block) -> tuple[int, ...]:
    """Places, from the end and the first one first, of as many axes of size one as ``got`` has too many."""
    places = [k for k in range(-1, -len(got.axes) - 1, -1) if got.axes[k].size == 1]
    count = len(got.axes) - len(expected.axes)
    # [1, n] of a vector [n], [m, n, 1] of a matrix: what a group moves stays, unless nothing else is left.
    places.sort(key=lambda k: got.axes[k].group is not None)
    return tuple(sorted(places[: max(count, 0)])) if len(places) >= count else ()


def _fail(what: str, expected: object, got: object, advice: str = "") -> FamilyMismatchError:
    text = f"the network is not of this family: {what}: {expected} expected, got {got}"
    return FamilyMismatchError(f"{text}; {advice}" if advice else text)


_OTHER_WAYS = ("permute", "expand", "baddbmm", "bmm", "matmul", "mul", "slice", "split", "select", "reshape")
_DENSE = (
    "a dense layer is known as nn.Linear, F.linear, x @ W, addmm, einsum, tensordot, W @ x[..., None] and "
    "as a convolution of one position"
)


def _compare_operation(expected: Operation | None, got: Operation | None, position: str) -> dict[str, str]:
    """Check kind, parameters and settings; returns the correspondence of parameters."""
    if expected is None or got is None or expected.kind != got.kind:
        where = f" (parameters {list(got.params)})" if got is not None and got.params else ""
        kinds = ["nothing more" if op is None else op.kind for op in (expected, got)]
        dense = kinds[0] == "linear" and kinds[1] in _OTHER_WAYS
        raise _fail(position, kinds[0], f"{kinds[1]}{where}", _DENSE if dense else "")
    name = f"{got.kind} {got.params[0]!r}" if got.params else got.kind
    if len(expected.params) != len(got.params):
        counts = len(expected.params), len(got.params)
        if sorted(counts) == [1, 2]:
            raise _fail(f"bias of {name}", *(("none", "one") if counts[0] == 1 else ("one", "none")))
        raise _fail(f"parameters of {name}", list(expected.params), list(got.params))
    wanted, settings = dict(expected.config), dict(got.config)
    for key in {**wanted, **settings}:
        default = "the previous operation" if key == "reads" else "none"
        if wanted.get(key) != settings.get(key):
            raise _fail(f"{key} of {name}", wanted.get(key, default), settings.get(key, default))
    return dict(zip(expected.params, got.params, strict=True))


def _compare_blocks(
    expected: tuple[Block, ...], got: tuple[Block, ...], groups: dict[str, str]
) -> dict[str, str]:
    """Check that axes agree; returns which group of the family is which, beside ``groups``."""
    name, groups = got[0].param, dict(groups)
    if len(expected) != len(got):
        raise _fail(f"blocks of {name!r}", len(expected), len(got))
    for block, other_block in zip(expected, got, strict=True):
        for axis, other in zip_longest(block.axes, other_block.axes):
            if axis is None or other is None or (axis.group is None) != (other.group is None):
                shown = [", ".join(map(str, b.axes)) for b in (block, other_block)]
                raise _fail(f"axes of {name!r}", shown[0], shown[1])
            if axis.group is None and (axis.size, axis.role) != (other.size, other.role):
                raise _fail(f"{axis.role or 'fixed axis'} of {name!r}", axis, other)
            if [e for _, e in axis.also] != [e for _, e in other.also]:
                raise _fail(f"scales of {name!r}", axis, other)
            if axis.exponent != other.exponent:
                raise _fail(f"axes of {name!r}", axis, other)
            pairs = [
                (axis.group, other.group),
                *((a, b) for (a, _), (b, _) in zip(axis.also, other.also, strict=True)),
            ]
            for group, partner in pairs:
                if group is not None and partner is not None and groups.setdefault(group, partner) != partner:
                    raise _fail(f"group along {name!r}", f"the same as {groups[group]}", partner)
    return groups


def _compare_groups(family: SymmetrySpec, spec: SymmetrySpec, groups: dict[str, str]) -> tuple[str, ...]:
    """Check that groups correspond one to one, their kinds and fixed sizes; list other hidden widths."""
    changes: list[str] = []
    taken: dict[str, str] = {}
    for name, other in groups.items():
        if taken.setdefault(other, name) != name:
            raise _fail(f"group {other!r}", f"two groups {taken[other]!r} and {name!r}", "one")
        expected, got = family.group(name), spec.group(other)
        if expected.size != got.size and not expected.permutable:
            what = {"input": "input size", "output": "output size"}.get(
                expected.origin, f"size of group {other!r}"
            )
            raise _fail(what, expected.size, got.size)
        if (groups.get(expected.within or ""), expected.within is None) != (got.within, got.within is None):
            raise _fail(f"owner of group {other!r}", groups.get(expected.within or ""), got.within)
        for what, key in (("scale kind", "kind"), ("permutable", "permutable")):
            if getattr(expected, key) != getattr(got, key):
                origin = f"of group {other!r} ({got.origin})"
                raise _fail(f"{what} {origin}", getattr(expected, key), getattr(got, key))
        if expected.size != got.size:
            changes.append(f"group {other!r} ({got.origin}) has {got.size} units, the family {expected.size}")
    return tuple(changes)
