"""Linear layers between weight spaces that are equivariant to permutations of neurons, and invariant pooling.

Legend: *batch networks, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from amortopt.nn.basis import Spec, Term, check_sizes, count_terms, unf_terms
from amortopt.nn.pooling import Multiset, Pooling, Reading, all_readings
from amortopt.nn.tensors import WeightTensors
from amortopt.symmetry import SymmetrySpec


class UNFLayer(nn.Module):
    r"""All permutation-equivariant linear maps from some tensors to tensors of the same axes, channels mixed
    per term.

    .. math:: y_i = b_i + \sum_j \sum_{t \in T(i, j)} \theta_{ijt}\, t(x_j)

    with the terms T of :func:`amortopt.nn.basis.unf_basis` (Zhou et al. 2024, eq. 7). All terms that keep the
    same
    multiset of groups are one matrix product, so time does not grow with the number of pairs of tensors.

    Args:
        specs: Group id of every axis of every tensor.
        in_channels: C of what it reads.
        out_channels: C of what it returns.
        runs: (tensor, axis) -> another axis of that tensor, without which it may not be kept: a run of units
            for every unit of its owner.

    Attributes:
        weight: Matrices of all terms, one behind the other by multiset; see :meth:`term_weights`. Normal with
        variance
            1 / (terms that are added up * in_channels).
        bias: Bias per tensor [tensors, out_channels], zero at first.

    Raises:
        ValueError: No tensors, or no channels.

    Example:
        >>> layer = UNFLayer([(1, 0), (1,)], in_channels=2, out_channels=3)  # a dense layer's weight and bias
        >>> [tuple(y.shape) for y in layer([torch.ones(5, 4, 2), torch.ones(5, 2)])]
        [(5, 4, 3), (5, 3)]
    """

    def __init__(
        self,
        specs: Sequence[Spec],
        in_channels: int,
        out_channels: int,
        *,
        runs: Mapping[tuple[int, int], int] | None = None,
    ) -> None:
        super().__init__()
        if not specs or in_channels < 1 or out_channels < 1:
            raise ValueError(
                f"specs, in_channels, out_channels: got {len(specs)} tensors, {in_channels} and "
                f"{out_channels} "
                "channels, expected at least one of each"
            )
        self.specs = tuple(tuple(spec) for spec in specs)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.readings = all_readings(self.specs, runs or {}, every_order=True)
        self.writings = all_readings(self.specs, runs or {}, every_order=False)
        counts = {m: (len(self.writings[m]), len(self.readings[m])) for m in self.readings}
        self._matrices = tuple((out * out_channels, into * in_channels) for out, into in counts.values())
        *self._offsets, total = accumulate((a * b for a, b in self._matrices), initial=0)
        self.weight = nn.Parameter(torch.empty(total))
        self.bias = nn.Parameter(torch.empty(len(self.specs), out_channels))
        self._pooling = lru_cache(maxsize=64)(self._make_pooling)
        self.reset_parameters()

    @classmethod
    def from_spec(cls, spec: SymmetrySpec, in_channels: int, out_channels: int) -> UNFLayer:
        """A layer for base networks of a symmetry; [WeightTensors][amortopt.nn.WeightTensors] makes its
        input.

        Args:
            spec: Symmetry of the base networks; scalings are ignored.
            in_channels: C of what it reads.
            out_channels: C of what it returns.

        Returns:
            A fresh layer with one tensor per block of the spec.
        """
        tensors = WeightTensors(spec)
        return cls(tensors.specs, in_channels, out_channels, runs=tensors.runs)

    def reset_parameters(self) -> None:
        """Draw new weights from the global random state."""
        fan_in = [0] * len(self.specs)
        for multiset, many in self.writings.items():
            for writing in many:
                fan_in[writing.tensor] += len(self.readings[multiset])
        with torch.no_grad():
            for matrix, many in zip(self.matrices(self.weight), self.writings.values(), strict=True):
                for writing, rows in zip(many, matrix.chunk(len(many)), strict=True):
                    rows.normal_(std=(fan_in[writing.tensor] * self.in_channels) ** -0.5)
            self.bias.zero_()

    @property
    def num_products(self) -> int:
        """Number of matrix products of one pass: of multisets of groups."""
        return len(self._matrices)

    def matrices(self, weight: Tensor) -> list[Tensor]:
        """Views of a contiguous vector like ``weight``: per multiset [writings * C_out, readings * C_in]."""
        start = weight.storage_offset()
        return [
            weight.as_strided((rows, columns), (columns, 1), start + offset)
            for offset, (rows, columns) in zip(self._offsets, self._matrices, strict=True)
        ]

    def term_weights(self, tensor: int) -> list[Tensor]:
        """Matrices of all terms that are added up in one output.

        Args:
            tensor: Position of the output.

        Returns:
            Views of ``weight`` [C_out, C_in], over inputs and, within one, in the order of
            :func:`amortopt.nn.basis.unf_terms`; terms that ``runs`` forbids are left out.
        """
        position = {m: k for k, m in enumerate(self.readings)}
        rows = {(w, m): k for m, many in self.writings.items() for k, w in enumerate(many)}
        columns = {(r, m): k for m, many in self.readings.items() for k, r in enumerate(many)}
        matrices = self.matrices(self.weight)
        found = []
        for other, spec in enumerate(self.specs):
            for term in unf_terms(self.specs[tensor], spec):
                ends = self._ends(tensor, other, term)
                if ends is None:
                    continue
                multiset, writing, reading = ends
                row, column = rows[writing, multiset], columns[reading, multiset]
                c_out, c_in = self.out_channels, self.in_channels
                found.append(
                    matrices[position[multiset]][
                        row * c_out : (row + 1) * c_out, column * c_in : (column + 1) * c_in
                    ]
                )
        return found

    def _ends(self, tensor: int, other: int, term: Term) -> tuple[Multiset, Reading, Reading] | None:
        """What a term writes and reads; None if one of the two is forbidden."""
        grouping, into = _renumbered(term.out), _renumbered(term.into)
        shared = {part for part in term.out if part in term.into}
        to = dict(zip(term.out, grouping, strict=True))
        source = {to[part]: number for part, number in zip(term.into, into, strict=True) if part in shared}
        for multiset, many in self.writings.items():
            for writing in many:
                if (writing.tensor, writing.grouping) == (tensor, grouping) and set(writing.kept) == set(
                    source
                ):
                    reading = Reading(other, into, tuple(source[part] for part in writing.kept))
                    return (multiset, writing, reading) if reading in self.readings[multiset] else None
        return None

    def _make_pooling(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[Pooling, Pooling]:
        check_sizes(self.specs, shapes)
        return Pooling(self.readings, shapes), Pooling(self.writings, shapes)

    def forward(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """Apply the layer to many networks.

        Args:
            xs: Per tensor [*batch, *shape, C_in]; sizes may differ from call to call.

        Returns:
            Per tensor [*batch, *shape, C_out].

        Raises:
            ValueError: Another number of tensors, axes, channels or networks than expected, or axes of one
                group that differ in size.
        """
        batch = self._check(xs)
        shapes = tuple(tuple(x.shape[len(batch) : -1]) for x in xs)
        readings, writings = self._pooling(shapes)
        if len(batch) != 1:
            xs = [x.reshape(batch.numel(), *x.shape[len(batch) :]) for x in xs]
        ys: Any = _Apply.apply(self, readings, writings, self.weight, self.bias, *xs)
        return [*ys] if len(batch) == 1 else [y.view(*batch, *y.shape[1:]) for y in ys]

    def _check(self, xs: Sequence[Tensor]) -> torch.Size:
        if len(xs) != len(self.specs):
            raise ValueError(f"xs: got {len(xs)} tensors, expected {len(self.specs)}, one per spec")
        batch = xs[0].shape[: max(0, xs[0].ndim - 1 - len(self.specs[0]))]
        for position, (x, spec) in enumerate(zip(xs, self.specs, strict=True)):
            fits = x.ndim == len(batch) + len(spec) + 1 and x.shape[: len(batch)] == batch
            if not fits or x.shape[-1] != self.in_channels:
                raise ValueError(
                    f"xs[{position}]: got shape {tuple(x.shape)}, expected {tuple(batch)} networks, an "
                    f"axis for each of "
                    f"{spec}, and {self.in_channels} channels last"
                )
        return batch

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_pooling"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pooling = lru_cache(maxsize=64)(self._make_pooling)

    def extra_repr(self) -> str:
        terms = sum(count_terms(a, b) for a in self.specs for b in self.specs)
        return (
            f"{self.in_channels}, {self.out_channels}, tensors={len(self.specs)}, terms={terms}, "
            f"products={self.num_products}"
        )


class UNFPool(nn.Module):
    """All permutation-invariant means of some tensors, as one vector per network.

    Args:
        specs: Group id of every axis of every tensor.

    Attributes:
        num_features: Means per channel: one per tensor and way to take its diagonals.

    Example:
        >>> pool = UNFPool([(1, 1), (1,)])  # mean and mean diagonal of a square matrix, mean of a vector
        >>> pool([torch.tensor([[[[1.0], [2.0]], [[3.0], [6.0]]]]), torch.tensor([[[1.0], [3.0]]])]).tolist()
        [[3.0, 2.0, 3.5]]
    """

    def __init__(self, specs: Sequence[Spec]) -> None:
        super().__init__()
        self.specs = tuple(tuple(spec) for spec in specs)
        self._readings = {(): all_readings(self.specs, {}, every_order=False)[()]}
        self.num_features = len(self._readings[()])

    def forward(self, xs: Sequence[Tensor]) -> Tensor:
        """Pool.

        Args:
            xs: Per tensor [B, *shape, C].

        Returns:
            [B, num_features * C], the channels of one mean behind each other.
        """
        (features,) = Pooling(self._readings, [tuple(x.shape[1:-1]) for x in xs]).read(xs, mean=True)
        return features


class _Apply(torch.autograd.Function):
    """The layer with its transpose as gradient: reading is the transpose of writing."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: UNFLayer,
        readings: Pooling,
        writings: Pooling,
        weight: Tensor,
        bias: Tensor,
        *xs: Tensor,
    ) -> tuple[Tensor, ...]:
        features = readings.read(xs, mean=True)
        ctx.layer, ctx.readings, ctx.writings = layer, readings, writings
        ctx.features = features if ctx.needs_input_grad[3] else None
        ctx.save_for_backward(weight, *xs)
        factors = [(f, w.t()) for f, w in zip(features, layer.matrices(weight), strict=True)]
        return tuple(writings.write(factors, mean=False, bias=bias))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        weight, *xs = ctx.saved_tensors
        layer, d_weight, d_bias = ctx.layer, None, None
        d_xs: list[Tensor | None] = [None] * len(xs)
        d_products = ctx.writings.read(grads, mean=False)
        if ctx.needs_input_grad[4]:
            # The first multiset is the empty one: its first writings are the tensors' scalars.
            scalars = d_products[0][:, : layer.bias.numel()]
            d_bias = scalars.sum(0).view_as(layer.bias)
        if ctx.needs_input_grad[3]:
            # Read anew where this pass is differentiated in turn.
            features: list[Tensor] = (
                ctx.readings.read(xs, mean=True) if torch.is_grad_enabled() else ctx.features
            )
            d_weight = torch.cat(
                [
                    (d.reshape(-1, d.shape[-1]).t() @ f.reshape(-1, f.shape[-1])).flatten()
                    for d, f in zip(d_products, features, strict=True)
                ]
            )
        if any(ctx.needs_input_grad[5:]):
            factors = list(zip(d_products, layer.matrices(weight), strict=True))
            d_xs = list(ctx.readings.write(factors, mean=True))
        return None, None, None, d_weight, d_bias, *d_xs


def _renumbered(parts: tuple[int, ...]) -> tuple[int, ...]:
    """Parts numbered by their first axis."""
    number: dict[int, int] = {}
    return tuple(number.setdefault(part, len(number)) for part in parts)
