"""Parameters of a model against the flat vectors of an update layout.

Legend: N elements of all parameters, ``*lead`` leading axes of a flat tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.symmetry import Block


@dataclass(frozen=True)
class Place:
    """Where a block of a parameter lies.

    Attributes:
        name: The parameter.
        block: What part of it; None for all of it.
        start: Its first element in the flat vector.
        stop: The one after its last.
    """

    name: str
    block: Block | None
    start: int
    stop: int

    def part(self, value: Tensor, lead: int = 0) -> Tensor:
        """This block of the parameter's tensor [*lead, *shape]; a view where the memory allows one."""
        if self.block is None:
            return value
        if self.block.view:
            value = value.reshape(*value.shape[:lead], *self.block.view)
        return value[(*[slice(None)] * lead, *self.block.index)]


class Places:
    """All blocks of all parameters, in the order of the flat vector.

    Args:
        layout: Of the base network.
    """

    def __init__(self, layout: UpdateLayout) -> None:
        self.shapes = layout.shapes
        positions = layout.unpack(torch.arange(layout.size, device=layout.device))
        found: list[Place] = []
        for name in layout.names:
            blocks = layout.spec.blocks_of(name) if name in layout.spec.params else ()
            for block in blocks if len(blocks) > 1 or any(b.slices for b in blocks) else (None,):
                place = Place(name, block, 0, 0)
                part = place.part(positions[name])
                start = int(part.flatten()[0])
                found.append(Place(name, block, start, start + part.numel()))
        self.all = sorted(found, key=lambda place: place.start)
        longest = max(place.stop - place.start for place in self.all)
        self._zeros = torch.zeros(longest, device=layout.device, dtype=torch.float32)

    def gather(self, values: Mapping[str, Tensor], out: Tensor) -> None:
        """Write parameters, or their gradients, into a flat vector.

        Args:
            values: Name -> tensor of any floating dtype; zeros where a name is missing.
            out: float32 [N].
        """
        parts = []
        for place in self.all:
            value = values.get(place.name)
            if value is None:
                parts.append(self._zeros[: place.stop - place.start])
            else:
                parts.append(place.part(value).reshape(-1))
        torch.cat(parts, out=out)


class Spread:
    """A flat tensor as one tensor per parameter.

    A parameter that is one block is a view of the flat tensor; one of several blocks (gates, heads) is a
    copy.

    Args:
        places: Of the layout.
        flat: [*lead, N].
    """

    def __init__(self, places: Places, flat: Tensor) -> None:
        lead = flat.shape[:-1]
        self.tensors: dict[str, Tensor] = {}
        self._copies: list[Tensor] = []
        self._sources: list[Tensor] = []
        for place in places.all:
            source = flat[..., place.start : place.stop]
            if place.block is None:
                self.tensors[place.name] = source.unflatten(-1, places.shapes[place.name] or (1,)).view(
                    (*lead, *places.shapes[place.name])
                )
                continue
            if place.name not in self.tensors:
                self.tensors[place.name] = flat.new_empty((*lead, *places.shapes[place.name]))
            part = place.part(self.tensors[place.name], len(lead))
            self._copies.append(part)
            self._sources.append(source.unflatten(-1, part.shape[len(lead) :]))
        self.refresh()

    def refresh(self) -> None:
        """Bring the copies up to date after the flat tensor was written to."""
        if self._copies:
            torch._foreach_copy_(self._copies, self._sources)  # pyright: ignore[reportPrivateImportUsage]

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Write tensors of parameters, [*lead, *shape], into the flat tensor; the rest stays."""
        for name, value in values.items():
            self.tensors[name].copy_(value)
        if self._copies:
            torch._foreach_copy_(self._sources, self._copies)  # pyright: ignore[reportPrivateImportUsage]
