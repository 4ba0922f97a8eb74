"""The symmetry of a base network as an immutable, printable table that holds no tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, cast

from torch import nn

from amortopt.symmetry.axes import Axis, Block, NeuronGroup, Operation
from amortopt.symmetry.gauge import GaugeDimension, gauge_dimension
from amortopt.symmetry.proof.verify import Proof, verify

_FORMAT = 2


@dataclass(frozen=True, repr=False)
class SymmetrySpec:
    """What may be permuted and rescaled in a network without changing its function.

    The repr is the table. Compare with `same_symmetry` for equality up to the names of groups.

    Attributes:
        groups: Neuron groups, in execution order; inputs and outputs are among them, with nothing allowed.
        blocks: The axes of every parameter.
        operations: What the network computes, in execution order, without no-ops.
    """

    groups: tuple[NeuronGroup, ...]
    blocks: tuple[Block, ...]
    operations: tuple[Operation, ...] = ()

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise ValueError(f"groups: got names {names}, expected every name once")
        for position, group in enumerate(self.groups):
            if group.within is None:
                continue
            if group.within not in names[:position]:
                raise ValueError(
                    f"group {group.name!r}: its owner {group.within!r} is not among the groups before it, "
                    f"{names[:position]}; list owners first"
                )
            if group.size % (size := self.group(group.within).size):
                raise ValueError(
                    f"group {group.name!r}: got {group.size} units within the {size} of {group.within!r}, "
                    "expected a multiple: runs are equally long"
                )
        for block in self.blocks:
            for position, axis in enumerate(block.axes):
                if axis.group is not None:
                    self._check_axis(block, position, axis, axis.group)

    def _check_axis(self, block: Block, position: int, axis: Axis, name: str) -> None:
        group = self._groups.get(name)
        size = None if group is None else group.size
        whole = size == axis.size or (group is not None and self.owner_axis(block, position) is not None)
        if not whole:
            raise ValueError(
                f"block {block.label!r}: its axis {axis} has size {axis.size}, expected the size of "
                f"group {name!r} ({'no such group' if size is None else size}); make axis and group agree"
            )
        for other, _ in axis.also:
            if other not in self._groups or self.units_of(other) not in self.owners(name):
                raise ValueError(
                    f"block {block.label!r}: its axis {axis} is scaled by {other!r}, expected a group of the "
                    f"same units or of their owners {self.owners(name)}"
                )

    @cached_property
    def _groups(self) -> dict[str, NeuronGroup]:
        return {group.name: group for group in self.groups}

    @cached_property
    def _blocks(self) -> dict[str, tuple[Block, ...]]:
        by_param: dict[str, list[Block]] = {}
        for block in self.blocks:
            by_param.setdefault(block.param, []).append(block)
        return {name: tuple(sorted(blocks, key=lambda b: b.slices)) for name, blocks in by_param.items()}

    def group(self, name: str) -> NeuronGroup:
        """The group of that name.

        Raises:
            KeyError: No such group; the message lists the groups.
        """
        if name not in self._groups:
            raise KeyError(f"group {name!r} is not in this spec; it has {list(self._groups)}")
        return self._groups[name]

    def run(self, name: str) -> int:
        """How many of a group's units each unit of its owner owns; without an owner, all of them."""
        group = self.group(name)
        return group.size if group.within is None else group.size // self.group(group.within).size

    def owners(self, name: str) -> tuple[str, ...]:
        """The group, its owner, the owner's owner and so on."""
        owner = self.group(name).within
        return (name,) if owner is None else (name, *self.owners(owner))

    def units_of(self, name: str) -> str:
        """The group whose units a group scales: itself, or what owns runs of one unit of it, up to the end.

        A group within another one that has runs of one unit is a further scaling of the owner's units; such
        groups may follow each other. Code that counts or compares units uses this, never ``within`` alone.

        Examples:
            >>> h = NeuronGroup("h", 3, "positive", True, "layer")
            >>> signs = NeuronGroup("s", 3, "sign", False, "layer", within="h")
            >>> SymmetrySpec((h, signs), ()).units_of("s")
            'h'
        """
        owner = self.group(name).within
        return name if owner is None or self.run(name) > 1 else self.units_of(owner)

    def owner_axis(self, block: Block, position: int) -> int | None:
        """The axis along the owner of an axis' run; None if the axis is along its whole group.

        Args:
            block: A block of this spec.
            position: Which of its axes.

        Returns:
            Position of another, whole axis along the group's owner, or along a group within that owner.
        """
        axis = block.axes[position]
        group = None if axis.group is None else self._groups.get(axis.group)
        if (
            group is None
            or group.size == axis.size
            or group.within is None
            or self.run(group.name) != axis.size
        ):
            return None
        for other, candidate in enumerate(block.axes):
            if candidate.group is not None and candidate.group in self._groups and other != position:
                along = self._groups[candidate.group]
                if along.size == candidate.size and self.units_of(group.within) in self.owners(along.name):
                    return other
        return None

    def blocks_of(self, param: str) -> tuple[Block, ...]:
        """The blocks of one parameter or moved buffer, in order of their slices.

        Raises:
            KeyError: No such parameter; the message lists the parameters.
        """
        if param not in self._blocks:
            raise KeyError(f"parameter {param!r} is not in this spec; it has {list(self._blocks)}")
        return self._blocks[param]

    @cached_property
    def params(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the blocks."""
        return tuple(dict.fromkeys(block.param for block in self.blocks if not block.buffer))

    @cached_property
    def buffers(self) -> tuple[str, ...]:
        """Names of the buffers that move with the parameters, in the order of the blocks."""
        return tuple(dict.fromkeys(block.param for block in self.blocks if block.buffer))

    def verify(self, model: nn.Module, example_input: Any, **options: Any) -> Proof:
        """Prove by running a network that it computes the same under this symmetry, and not under more.

        Args:
            model: The network; left as it was.
            example_input: What its forward takes, as for [extract][amortopt.symmetry.extract].
            **options: See [verify][amortopt.symmetry.verify].

        Returns:
            The proof, which a person can print; ``proof.holds`` says whether it is one.
        """
        return verify(self, model, example_input, **options)

    def gauge_dimension(self) -> GaugeDimension:
        """How large the symmetry is."""
        return gauge_dimension(self)

    def same_symmetry(self, other: SymmetrySpec) -> bool:
        """Whether both are equal up to the names and origins of groups and the order of parameters."""
        return self._canonical() == other._canonical()

    def _canonical(self) -> tuple[Any, ...]:
        """Blocks in a fixed order with groups numbered by first appearance; unused groups as a multiset."""
        number: dict[str, int] = {}

        def number_of(name: str) -> int:
            return number.setdefault(name, len(number))

        def numbered(axis: Axis) -> tuple[Any, ...]:
            also = tuple(sorted((number_of(name), exponent) for name, exponent in axis.also))
            return axis.role if axis.group is None else number_of(axis.group), axis.exponent, axis.size, also

        blocks = [
            (block.param, block.view, block.slices, tuple(map(numbered, block.axes)))
            for param in sorted(self._blocks)
            for block in self._blocks[param]
        ]
        for name in list(number):
            for owner in self.owners(name):
                number_of(owner)
        facts = {g.name: (g.size, g.kind, g.permutable, number.get(g.within or "")) for g in self.groups}
        used = [facts[name] for name in number]
        unused = sorted(facts[name][:3] for name in facts.keys() - number.keys())
        return tuple(blocks), tuple(used), tuple(unused)

    def to_json(self) -> str:
        """The spec as JSON text; `from_json` reads it back to an equal spec."""
        return json.dumps({"format": _FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> SymmetrySpec:
        """Read what `to_json` wrote.

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
        if version not in (1, _FORMAT):
            raise ValueError(f"text: got format {version!r}, expected {_FORMAT}; extract the spec again")
        try:
            _check_types(data)
            operations = [
                Operation(
                    op["kind"],
                    tuple(op["params"]),
                    tuple(cast("tuple[str, str]", tuple(pair)) for pair in op["config"]),
                )
                for op in data["operations"]
            ]
            groups = tuple(NeuronGroup(**group) for group in data["groups"])
            return cls(groups, tuple(map(_block_from, data["blocks"])), tuple(operations))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"text: got wrong fields ({error}), expected to_json()'s output") from error

    def __repr__(self) -> str:
        groups = [("group", "size", "scale", "permute", "origin")]
        for g in self.groups:
            permute, run = "yes" if g.permutable else "no", self.run(g.name)
            if g.within is not None:
                inside = f", {run} inside" if g.permutable else f", {run} each" if run > 1 else ""
                permute = f"with {g.within}{inside}"
            groups.append((g.name, str(g.size), g.kind, permute, g.origin))
        blocks = [("parameter", "shape", "axes")] + [
            (b.label, "x".join(map(str, b.shape)), ", ".join(map(str, b.axes)) + " (buffer)" * b.buffer)
            for b in self.blocks
        ]
        parts = [_table(groups), _table(blocks)]
        if self.operations:
            parts.append("computes  " + "\n          ".join(map(str, self.operations)))
        return "\n\n".join(parts)


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "kind", "origin", "param", "role"), (str,)),
    **dict.fromkeys(("size", "exponent"), (int,)),
    **dict.fromkeys(("permutable", "buffer"), (bool,)),
    **dict.fromkeys(("within", "group"), (str, type(None))),
}


def _check_types(data: Mapping[str, Any]) -> None:
    """Raise a ``TypeError`` if a field of a group, block, axis or operation has not the type of the class."""
    axes = (axis for block in data["blocks"] for axis in block["axes"])
    for table in (*data["groups"], *data["blocks"], *axes, *data["operations"]):
        for key, value in table.items():
            if key in _TYPES and type(value) not in _TYPES[key]:
                raise TypeError(f"{key}: {value!r:.40}")
    for operation in data["operations"]:
        words = [*operation["params"], *(word for pair in operation["config"] for word in pair)]
        if not all(isinstance(word, str) for word in words):
            raise TypeError(f"operation {operation!r:.80}")


def _block_from(data: Mapping[str, Any]) -> Block:
    axes = tuple(
        Axis(**{**axis, "also": tuple((str(g), int(e)) for g, e in axis.get("also", ()))})
        for axis in data["axes"]
    )
    # Blocks of format 1 had first and last index along the first dimension, and were whole parameters.
    rest = {
        key: value for key, value in data.items() if key not in ("axes", "slices", "view", "start", "stop")
    }
    slices = tuple((int(start), int(stop)) for start, stop in data.get("slices", ()))
    return Block(axes=axes, slices=slices, view=tuple(map(int, data.get("view", ()))), **rest)


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
