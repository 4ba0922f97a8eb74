"""What an update layer reads from and writes to the rows of a cut; views are made once, in advance.

Legend: C channels in, D channels out, L blocks of a cut, R rows and B blocks of the network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amortopt.metanets.update_rule.layout import Side, UpdateLayout
from amortopt.metanets.update_rule.tiles import Cut


class RowReader:
    """Sums along all axes but one.

    Args:
        cut: What is read.
        rows: Sums of all rows of the network, written to; zero before the first cut, [R, C].
    """

    def __init__(self, cut: Cut, rows: Tensor) -> None:
        self._cut = cut
        channels = rows.shape[1]
        self._targets = [
            (side, rows[cut.rows(side)].view(cut.shape[0], -1, channels).permute(2, 0, 1))
            for side in cut.bucket.sides
        ]

    def __call__(self, part: Tensor) -> None:
        """Read [C, L, *axes]."""
        for side, target in self._targets:
            others = [2 + axis for axis in range(part.ndim - 2) if axis != side.axis]
            if side.axis is None:
                row = _diagonal(part, self._cut)
                target.copy_(row.flatten(3).sum(3) if row.ndim > 3 else row)
            elif not others:
                target.copy_(part)
            elif side.axis == 0:
                torch.sum(part, others, out=target)
            else:  # straight into the target, whose channels are not its first axis, is several times slower
                target.add_(part.sum(others))


class RowWriter:
    """What is said of blocks and rows, for every element.

    Args:
        cut: What is written.
        said: Of all blocks of the network, [D, B].
        rows: Of all rows of the network, [D, R].
        kernel: Of the matrices of this cut, [D, L, *first two axes].
    """

    def __init__(self, cut: Cut, said: Tensor, rows: Tensor | None, kernel: Tensor | None) -> None:
        self._cut = cut
        axes = len(cut.bucket.shape)
        count = cut.shape[0]
        self._terms = [said[:, cut.network_blocks].unflatten(1, (count, *[1] * axes))]
        self._diagonal: Tensor | None = None
        for side in cut.bucket.sides if rows is not None else ():
            assert rows is not None
            part = rows[:, cut.rows(side)].unflatten(1, (count, -1))
            if side.axis is None:
                self._diagonal = part.unflatten(2, (*[1] * (axes - 2), -1))
            else:
                after = axes - 1 - side.axis
                self._terms.append(part[(..., *[None] * after)].unflatten(2, (*[1] * side.axis, -1)))
        if kernel is not None:
            self._terms.insert(min(3, len(self._terms)), kernel[(..., *[None] * (axes - 2))])
        shapes = [term.shape for term in self._terms]
        # Broadcast to what can only be expanded to all elements, a sum has to be copied.
        self._full = len(shapes) > 1 and torch.broadcast_shapes(*shapes)[1:] == cut.shape

    def __call__(self, out: Tensor) -> None:
        """Overwrite [D, L, *axes]."""
        # The small ones first: only the last addition is as large as the elements.
        total, *terms = self._terms
        for term in terms[:-1] if self._full else terms:
            total = total + term
        if self._full:
            torch.add(total, terms[-1], out=out)
        else:
            out.copy_(total.expand_as(out))
        if self._diagonal is not None:
            _diagonal(out, self._cut).movedim(2, -1).add_(self._diagonal)


def row_lengths(layout: UpdateLayout) -> Tensor:
    """Elements in each row, float32 [R, 1]."""
    lengths = torch.zeros(layout.num_rows, 1, dtype=torch.float32)
    for bucket in layout.buckets:
        for side in bucket.sides:
            kept = bucket.shape[side.axis] if side.axis is not None else bucket.shape[0] ** 2
            lengths[slice(*side.rows)] = math.prod(bucket.shape) // kept
    return lengths.to(layout.device)


def kept_axes(sides: tuple[Side, ...]) -> list[Side]:
    """Sides that are no diagonal."""
    return [side for side in sides if side.axis is not None]


def _diagonal(part: Tensor, cut: Cut) -> Tensor:
    """Diagonal of the first two axes, a view: [C, L, *axes] -> [C, L, n, *further axes]."""
    start, stop = (0, part.shape[3]) if cut.whole else cut.span
    return part[:, :, :, start:stop].diagonal(dim1=2, dim2=3).movedim(-1, 2)
