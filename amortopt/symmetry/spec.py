"""The symmetry of a base network as an immutable, printable table that holds no tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any, Literal, TypeAlias, cast, get_args

ScaleKind: TypeAlias = Literal["positive", "sign", "free", "none"]

SCALE_KINDS: tuple[ScaleKind, ...] = get_args(ScaleKind)

# The kinds as sets of generators of the nonzero reals: meeting kinds means intersecting sets.
_GENERATORS: dict[ScaleKind, frozenset[str]] = {
    "free": frozenset({"positive", "negative"}),
    "positive": frozenset({"positive"}),
    "sign": frozenset({"negative"}),
    "none": frozenset(),
}
_FORMAT = 1


def meet(*kinds: ScaleKind) -> ScaleKind:
    """The largest scale kind that every given kind allows.

    Args:
        *kinds: Scale kinds; none at all gives ``"free"``.

    Returns:
        Their meet in the lattice free > positive, sign > none.

    Example:
        >>> meet("free", "sign"), meet("positive", "sign")
        ('sign', 'none')
    """
    common = reduce(frozenset.__and__, (_GENERATORS[kind] for kind in kinds), _GENERATORS["free"])
    return next(kind for kind, generators in _GENERATORS.items() if generators == common)


@dataclass(frozen=True)
class NeuronGroup:
    """Units that are permuted and rescaled together.

    Attributes:
        name: Unique name within the spec.
        size: Number of units.
        kind: Which scales q a unit may have: ``positive`` (q > 0), ``sign`` (q = +-1), ``free`` (q != 0) or
            ``none`` (q = 1).
        permutable: Whether the units may be permuted; False for the network's inputs and outputs.
        origin: Where the group comes from, for a person: a module path, or "input" / "output".
    """

    name: str
    size: int
    kind: ScaleKind
    permutable: bool
    origin: str

    def __post_init__(self) -> None:
        if self.kind not in SCALE_KINDS:
            raise ValueError(f"kind of group {self.name!r}: got {self.kind!r}, expected one of {SCALE_KINDS}")
        if self.size < 1:
            raise ValueError(f"size of group {self.name!r}: got {self.size}, expected at least 1")

    @property
    def trivial(self) -> bool:
        """Whether nothing may be done to this group."""
        return not self.permutable and self.kind == "none"


@dataclass(frozen=True)
class Axis:
    """One axis of a block.

    Attributes:
        group: The neuron group along this axis; None for a fixed axis (kernel position, flattened position).
        exponent: How the block scales with the group: +1 writes to it, -1 reads from it, 0 only follows its
            permutation.
        size: Length of the axis.
        role: What a fixed axis is: "kernel", "position", ...; empty for a group axis.
    """

    group: str | None
    exponent: int
    size: int
    role: str = ""

    def __post_init__(self) -> None:
        allowed = (0,) if self.group is None else (-1, 0, 1)
        if self.exponent not in allowed:
            raise ValueError(f"exponent of axis {self.group!r}: got {self.exponent}, expected {allowed}")

    def __str__(self) -> str:
        if self.group is None:
            return f"{self.size} {self.role}".rstrip()
        return f"{self.group}^{self.exponent:+d}"


@dataclass(frozen=True)
class Block:
    """A parameter, or a slice of it, with a neuron group or a fixed role per axis.

    Attributes:
        param: Qualified parameter name.
        axes: Axes of ``parameter[start:stop]`` viewed with shape ``tuple(axis.size for axis in axes)``.
        start: First index of the slice along the parameter's first axis.
        stop: End of the slice (exclusive); None for the whole rest.
    """

    param: str
    axes: tuple[Axis, ...]
    start: int = 0
    stop: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the block's view."""
        return tuple(axis.size for axis in self.axes)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups along the axes, fixed axes left out, in the order of the axes."""
        return tuple(axis.group for axis in self.axes if axis.group is not None)

    @property
    def label(self) -> str:
        """The parameter's name, with the slice if it is not the whole parameter."""
        if self.start == 0 and self.stop is None:
            return self.param
        return f"{self.param}[{self.start}:{'' if self.stop is None else self.stop}]"


@dataclass(frozen=True)
class Operation:
    """One operation that the network computes, as needed to compare two networks.

    Attributes:
        kind: Canonical name: "linear", "conv2d", "tanh", "max_pool1d", ...
        params: Qualified names of the parameters it reads, by slot (weight, bias).
        config: Setting -> value as text, for example ``("stride", "2")``.
    """

    kind: str
    params: tuple[str, ...] = ()
    config: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        inside = [*self.params, *(f"{key}={value}" for key, value in self.config)]
        return f"{self.kind}({', '.join(inside)})"


@dataclass(frozen=True, repr=False)
class SymmetrySpec:
    """What may be permuted and rescaled in a network without changing its function.

    The repr is the table. Compare with :meth:`same_symmetry` for equality up to the names of groups.

    Attributes:
        groups: Neuron groups, in execution order; inputs and outputs are among them, with nothing allowed.
        blocks: The axes of every parameter.
        operations: What the network computes, in execution order, without no-ops.
    """

    groups: tuple[NeuronGroup, ...]
    blocks: tuple[Block, ...]
    operations: tuple[Operation, ...] = ()

    def __post_init__(self) -> None:
        sizes = {group.name: group.size for group in self.groups}
        if len(sizes) != len(self.groups):
            raise ValueError(f"groups: got names {[g.name for g in self.groups]}, expected every name once")
        for block in self.blocks:
            for axis in block.axes:
                if axis.group is not None and sizes.get(axis.group) != axis.size:
                    known = sizes.get(axis.group, "no such group")
                    raise ValueError(
                        f"block {block.label!r}: its axis {axis} has size {axis.size}, expected the size of "
                        f"group {axis.group!r} ({known}); make axis and group agree"
                    )

    def group(self, name: str) -> NeuronGroup:
        """The group of that name.

        Raises:
            KeyError: No such group; the message lists those there are.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(f"group {name!r} is not in this spec; it has {[group.name for group in self.groups]}")

    def blocks_of(self, param: str) -> tuple[Block, ...]:
        """The blocks of one parameter, in order of their slices.

        Raises:
            KeyError: No such parameter; the message lists those there are.
        """
        found = tuple(block for block in self.blocks if block.param == param)
        if not found:
            raise KeyError(f"parameter {param!r} is not in this spec; it has {list(self.params)}")
        return tuple(sorted(found, key=lambda block: block.start))

    @property
    def params(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the blocks."""
        return tuple(dict.fromkeys(block.param for block in self.blocks))

    def same_symmetry(self, other: SymmetrySpec) -> bool:
        """Whether both say the same about the same parameters, up to the names and origins of groups."""
        return self._canonical() == other._canonical()

    def _canonical(self) -> tuple[Any, ...]:
        """Blocks in a fixed order with groups numbered by first appearance; unused groups as a multiset."""
        number: dict[str, int] = {}
        blocks = []
        for block in sorted(self.blocks, key=lambda b: (b.param, b.start, b.stop or math.inf)):
            axes = [
                (a.role if a.group is None else number.setdefault(a.group, len(number)), a.exponent, a.size)
                for a in block.axes
            ]
            blocks.append((block.param, block.start, block.stop, tuple(axes)))
        facts = {group.name: (group.size, group.kind, group.permutable) for group in self.groups}
        used = [facts[name] for name in number]
        unused = sorted(facts[name] for name in facts.keys() - number.keys())
        return tuple(blocks), tuple(used), tuple(unused)

    def to_json(self) -> str:
        """The spec as JSON text; :meth:`from_json` reads it back to an equal spec."""
        return json.dumps({"format": _FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> SymmetrySpec:
        """Read what :meth:`to_json` wrote.

        Args:
            text: JSON text, or the same already parsed.

        Raises:
            ValueError: Not JSON, another format version, or a field missing, unknown or out of range.
        """
        try:
            data = json.loads(text) if isinstance(text, str) else text
        except json.JSONDecodeError as error:
            raise ValueError(f"text: got no JSON ({error}), expected to_json()'s output") from error
        version = data.get("format") if isinstance(data, Mapping) else None
        if version != _FORMAT:
            raise ValueError(f"text: got format {version!r}, expected {_FORMAT}; extract the spec again")
        try:
            return cls(
                tuple(NeuronGroup(**group) for group in data["groups"]),
                tuple(
                    Block(**{**block, "axes": tuple(Axis(**axis) for axis in block["axes"])})
                    for block in data["blocks"]
                ),
                tuple(_operation_from(op) for op in data["operations"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"text: got wrong fields ({error}), expected to_json()'s output") from error

    def __repr__(self) -> str:
        groups = [("group", "size", "scale", "permute", "origin")] + [
            (g.name, str(g.size), g.kind, "yes" if g.permutable else "no", g.origin) for g in self.groups
        ]
        blocks = [("parameter", "shape", "axes")] + [
            (b.label, "x".join(map(str, b.shape)), ", ".join(map(str, b.axes))) for b in self.blocks
        ]
        parts = [_table(groups), _table(blocks)]
        if self.operations:
            parts.append("computes  " + "\n          ".join(map(str, self.operations)))
        return "\n\n".join(parts)


def _operation_from(data: Mapping[str, Any]) -> Operation:
    config = tuple(cast("tuple[str, str]", tuple(pair)) for pair in data["config"])
    return Operation(data["kind"], tuple(data["params"]), config)


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
