"""What a table of a symmetry consists of: neuron groups, axes, blocks, operations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Literal, TypeAlias, get_args

ScaleKind: TypeAlias = Literal["positive", "sign", "free", "none"]

SCALE_KINDS: tuple[ScaleKind, ...] = get_args(ScaleKind)

# The kinds as sets of generators of the nonzero reals: meeting kinds means intersecting sets.
_GENERATORS: dict[ScaleKind, frozenset[str]] = {
    "free": frozenset({"positive", "negative"}),
    "positive": frozenset({"positive"}),
    "sign": frozenset({"negative"}),
    "none": frozenset(),
}


def meet(*kinds: ScaleKind) -> ScaleKind:
    """The largest scale kind that all kinds allow.

    Args:
        *kinds: Scale kinds; none at all gives ``"free"``.

    Returns:
        Their meet in the lattice free > positive, sign > none.

    Examples:
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
        permutable: Whether the units may be permuted; False for the network's inputs and outputs. With an
            owner, whether units may be permuted inside each run.
        origin: Where the group comes from, for a person: a module path, or "input" / "output".
        within: Owner, an earlier group whose every unit owns an equal run of this group's units, in order
            (a head and its channels); runs move with their owners. Runs of one unit are a further scaling of
            the owner's units.
    """

    name: str
    size: int
    kind: ScaleKind
    permutable: bool
    origin: str
    within: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in SCALE_KINDS:
            raise ValueError(f"kind of group {self.name!r}: got {self.kind!r}, expected one of {SCALE_KINDS}")
        if self.size < 1:
            raise ValueError(f"size of group {self.name!r}: got {self.size}, expected at least 1")

    @property
    def trivial(self) -> bool:
        """Whether nothing may be done to this group, apart from moving with its owner."""
        return not self.permutable and self.kind == "none"


@dataclass(frozen=True)
class Axis:
    """One axis of a block.

    Attributes:
        group: The neuron group along this axis; None for a fixed axis (kernel position, flattened position).
        exponent: Power of a unit's scale q that entries are multiplied by: +1 for a weight that writes to the
            units, -1 for one that reads them, 0 if only permuted; 2 if the units enter squared.
        size: Length of the axis: the group's size, or the length of one run of it if another axis of the
            block is along the owner (a grouped convolution reads one run for every unit that it writes).
        role: What a fixed axis is: "kernel", "position", ...; empty for a group axis.
        also: Further groups that scale the same units, with their exponents: the group's owners or groups
            whose owner it is. A norm's gain undoes the sign of what it reads and has the scale of what it
            writes.
    """

    group: str | None
    exponent: int
    size: int
    role: str = ""
    also: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if self.group is None and (self.exponent or self.also):
            raise ValueError(f"exponent of a fixed axis ({self.role}): got {self.exponent}, expected 0")

    @property
    def scales(self) -> tuple[tuple[str, int], ...]:
        """Every group that scales along this axis, with its exponent other than 0."""
        first = ((self.group, self.exponent),) if self.group is not None and self.exponent else ()
        return (*first, *self.also)

    def __str__(self) -> str:
        if self.group is None:
            return f"{self.size} {self.role}".rstrip()
        factors = ((self.group, self.exponent), *self.also)
        return "\N{MIDDLE DOT}".join(f"{group}^{e:+d}" if e else group for group, e in factors)


@dataclass(frozen=True)
class Block:
    """A parameter or buffer, or a slice of it, with a neuron group or a fixed role per axis.

    Attributes:
        param: Qualified name.
        axes: Axes of the slice viewed with shape ``tuple(axis.size for axis in axes)``.
        slices: (start, stop) along every dimension of the parameter; empty for the whole parameter.
        buffer: Whether it is a buffer that moves with the parameters: a norm's running statistics.
        view: Shape that the parameter is viewed with before it is sliced, if it is another one than its own;
            the same for all blocks of a parameter. Queries, keys and values may alternate head by head.
    """

    param: str
    axes: tuple[Axis, ...]
    slices: tuple[tuple[int, int], ...] = ()
    buffer: bool = False
    view: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the block's view."""
        return tuple(axis.size for axis in self.axes)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups along the axes, fixed axes left out, in the order of the axes."""
        return tuple(axis.group for axis in self.axes if axis.group is not None)

    @property
    def index(self) -> tuple[slice, ...]:
        """What to index the parameter, as ``view``, with: ``param[block.index].reshape(block.shape)``."""
        return tuple(slice(start, stop) for start, stop in self.slices)

    @property
    def label(self) -> str:
        """The parameter's name, with the slices if it is not the whole parameter."""
        if not self.slices:
            return self.param
        view = f".view({', '.join(map(str, self.view))})" if self.view else ""
        return f"{self.param}{view}[{', '.join(f'{start}:{stop}' for start, stop in self.slices)}]"


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
