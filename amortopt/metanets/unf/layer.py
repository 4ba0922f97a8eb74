"""Linear layers between weight spaces that are equivariant to permutations of neurons, and invariant pooling.

Legend: *batch networks, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, count
from typing import Any

import torch
from torch import Tensor, nn

from amortopt.metanets.unf.basis import Spec, Term, check_sizes, count_layer_terms, unf_terms
from amortopt.metanets.unf.pooling import Pooling, diagonal, pattern
from amortopt.metanets.unf.readings import all_readings, private_axes


class FixedUNFLayer(nn.Module):
    r"""All permutation-equivariant linear maps from some tensors to tensors of the same axes, channels mixed
    per term.

    .. math:: y_i = b_i + \sum_j \sum_{t \in T(i, j)} \theta_{ijt}\, t(x_j)

    with the terms T of `basis.unf_basis` (Zhou et al. 2024, eq. 7). All terms that keep the same multiset of
    groups are one matrix product, so time does not grow with the number of pairs of tensors.

    Args:
        specs: Group id of every axis of every tensor.
        in_channels: C of what it reads.
        out_channels: C of what it returns.
        runs: (tensor, axis) -> another axis of that tensor, without which it may not be kept: a run of units
            for every unit of its owner.

    Attributes:
        weight: Matrices of all terms, one behind the other by multiset; see ``term_weights``. Normal with
            variance 1 / (terms that are added up * in_channels).
        bias: Bias per tensor [tensors, out_channels], zero at first.

    Raises:
        ValueError: No tensors, or no channels.

    Examples:
        >>> layer = FixedUNFLayer([(1, 0), (1,)], in_channels=2, out_channels=3)  # a dense weight and bias
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
                f"{out_channels} channels, expected at least one of each"
            )
        self.specs, self.runs = tuple(tuple(spec) for spec in specs), dict(runs or {})
        self.in_channels, self.out_channels = in_channels, out_channels
        self.readings = all_readings(self.specs, self.runs, every_order=True)
        self.writings = all_readings(self.specs, self.runs, every_order=False)
        counts = {m: (len(self.writings[m]), len(self.readings[m])) for m in self.readings}
        self._matrices = tuple((out * out_channels, into * in_channels) for out, into in counts.values())
        *self._offsets, total = accumulate((a * b for a, b in self._matrices), initial=0)
        self.weight = nn.Parameter(torch.empty(total))
        self.bias = nn.Parameter(torch.empty(len(self.specs), out_channels))
        self._plan = lru_cache(maxsize=64)(self._make_plan)
        self.reset_parameters()

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
        """Matrices of all terms that are added up in the output at a position.

        Returns:
            Views of ``weight`` [C_out, C_in], over inputs and, within one, in the order of ``unf_terms``, but
            without terms that ``runs`` forbids.
        """
        weights: dict[tuple[int, Term], Tensor] = {}
        for multiset, matrix in zip(self.writings, self.matrices(self.weight), strict=True):
            # [writings, C_out, readings, C_in]
            blocks = matrix.unflatten(0, (-1, self.out_channels)).unflatten(2, (-1, self.in_channels))
            for row, writing in enumerate(self.writings[multiset]):
                for column, reading in enumerate(self.readings[multiset] if writing.tensor == tensor else ()):
                    # Kept parts run together with the writing's; others are numbered after these.
                    part_of = dict(zip(reading.kept, writing.kept, strict=True))
                    fresh = count(max(writing.grouping, default=-1) + 1)
                    for part in reading.grouping:
                        part_of[part] = part_of[part] if part in part_of else next(fresh)
                    term = Term(writing.grouping, tuple(part_of[part] for part in reading.grouping))
                    weights[reading.tensor, term] = blocks[row, :, column]
        terms = [
            (k, term) for k, spec in enumerate(self.specs) for term in unf_terms(self.specs[tensor], spec)
        ]
        return [weights[key] for key in terms if key in weights]

    def _make_plan(
        self, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, device: torch.device
    ) -> _Plan:
        check_sizes(self.specs, shapes)
        private = private_axes(self.specs, self.runs)
        reading = Pooling(self.readings, private, shapes, self.in_channels)
        writing = Pooling(self.writings, private, shapes, self.out_channels)
        shares = [
            torch.tensor([1.0 / r.averaged(shapes[r.tensor]) for r in many], dtype=dtype)
            .repeat_interleave(self.in_channels)
            .repeat(rows)
            for many, (rows, _) in zip(self.readings.values(), self._matrices, strict=True)
        ]
        matrices = []
        for node in reading.nodes:
            rows, columns = self._matrices[node.first]
            matrices.append((self._offsets[node.first], node.count * rows, columns))
        patterns = [pattern(n.private).to(device, dtype) if n.private else None for n in reading.nodes]
        return _Plan(reading, writing, matrices, patterns, torch.cat(shares).to(device))

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
        plan = self._plan(shapes, self.weight.dtype, self.weight.device)
        if len(batch) != 1:
            xs = [x.reshape(batch.numel(), *x.shape[len(batch) :]) for x in xs]
        ys: Any = _Apply.apply(plan, self.weight, self.bias, *xs)
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
                    f"axis for each of {spec}, and {self.in_channels} channels last"
                )
        return batch

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_plan"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._plan = lru_cache(maxsize=64)(self._make_plan)

    def extra_repr(self) -> str:
        size = f"tensors={len(self.specs)}, terms={count_layer_terms(self.specs)}"
        return f"{self.in_channels}, {self.out_channels}, {size}, products={self.num_products}"


class UNFPool(nn.Module):
    """All permutation-invariant means of some tensors, as one vector per network.

    Args:
        specs: Group id of every axis of every tensor.

    Attributes:
        num_features: Means per channel: one per tensor and way to take its diagonals.

    Examples:
        >>> pool = UNFPool([(1, 1), (1,)])  # mean and mean diagonal of a square matrix, mean of a vector
        >>> pool([torch.tensor([[[[1.0], [2.0]], [[3.0], [6.0]]]]), torch.tensor([[[1.0], [3.0]]])]).tolist()
        [[3.0, 2.0, 3.5]]
    """

    def __init__(self, specs: Sequence[Spec]) -> None:
        super().__init__()
        self.specs = tuple(tuple(spec) for spec in specs)
        self._readings = all_readings(self.specs, {}, every_order=False)[()]
        self.num_features = len(self._readings)

    def forward(self, xs: Sequence[Tensor]) -> Tensor:
        """Pool.

        Args:
            xs: Per tensor [B, *shape, C].

        Returns:
            [B, num_features * C], the channels of one mean behind each other.
        """
        views = [diagonal(xs[reading.tensor], reading.grouping) for reading in self._readings]
        return torch.cat([x.flatten(1, -2).mean(1) if x.ndim > 2 else x for x in views], dim=-1)


@dataclass(frozen=True)
class _Plan:
    """What a layer does to tensors of given shapes."""

    readings: Pooling
    writings: Pooling
    matrices: list[tuple[int, int, int]]
    """Where a node's matrix starts in ``weight``, its rows (S * K_out), its columns (K_in)."""
    patterns: list[Tensor | None]
    """Per node with private axes [p, p * S]."""
    shares: Tensor
    """1 / how many elements the mean is of that an element of ``weight`` is multiplied with."""

    def split(self, weight: Tensor) -> list[Tensor]:
        """Per node the matrix [S * K_out, K_in], sums for means, as views."""
        start = weight.storage_offset()
        return [weight.as_strided((m, n), (n, 1), start + offset) for offset, m, n in self.matrices]


class _Apply(torch.autograd.Function):
    """The layer with its transpose as gradient: reading is the transpose of writing."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, weight: Tensor, bias: Tensor, *xs: Tensor) -> tuple[Tensor, ...]:
        features, scaled = plan.readings.read(xs), weight * plan.shares
        rows, matrices = [_rows(x) for x in features], plan.split(scaled)
        ctx.plan = plan
        ctx.rows, ctx.scaled = (rows if ctx.needs_input_grad[1] else None), scaled
        ctx.save_for_backward(weight, *xs)

        def add(number: int, y: Tensor | None, free: bool) -> Tensor:
            zeros_and_ones, w = plan.patterns[number], matrices[number]
            if zeros_and_ones is not None:
                return _spread(rows[number], w, zeros_and_ones, features[number].shape, y, free)
            if number:
                return _product(rows[number], w.t(), features[number].shape, y, free)
            scalars = rows[0].mm(w.t())  # of all tensors, those of diagonals after them
            scalars[:, : bias.numel()] += bias.flatten()
            return scalars

        return tuple(plan.writings.write(add))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        weight, *xs = ctx.saved_tensors
        plan: _Plan = ctx.plan
        again = torch.is_grad_enabled()  # this pass is differentiated in turn: everything is made anew
        d_ys, d_weight, d_bias = plan.writings.read(grads), None, None
        d_xs: list[Tensor | None] = [None] * len(xs)
        if ctx.needs_input_grad[2]:
            d_bias = d_ys[0][:, : len(xs) * grads[0].shape[-1]].sum(0).view(len(xs), -1)
        d_rows = []
        for d, zeros_and_ones in zip(d_ys, plan.patterns, strict=True):
            if zeros_and_ones is not None:  # sums over private axes: [*sizes, p, K] -> [*sizes * p, S * K]
                p, many = zeros_and_ones.shape
                z = torch.matmul(zeros_and_ones.t(), d.reshape(-1, p, d.shape[-1]))
                d = z.view(-1, d.shape[-1] * many // p)
            d_rows.append(_rows(d))
        if ctx.needs_input_grad[1]:
            rows = [_rows(x) for x in plan.readings.read(xs)] if again else ctx.rows
            products = [d.t().mm(u).flatten() for d, u in zip(d_rows, rows, strict=True)]
            d_weight = torch.cat(products) * plan.shares
        if any(ctx.needs_input_grad[3:]):
            matrices = plan.split(weight * plan.shares if again else ctx.scaled)

            def add(number: int, y: Tensor | None, free: bool) -> Tensor:
                return _product(d_rows[number], matrices[number], d_ys[number].shape, y, free)

            d_xs = list(plan.readings.write(add))
        return None, d_weight, d_bias, *d_xs


def _rows(x: Tensor) -> Tensor:
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _product(u: Tensor, w: Tensor, like: torch.Size, y: Tensor | None, free: bool) -> Tensor:
    """u [rows, J] times w [J, K], added to y, in place if free: [*sizes, K], like being [*sizes, any]."""
    if y is None:
        return u.mm(w).view(*like[:-1], -1)
    if free:
        y.view(-1, w.shape[1]).addmm_(u, w)
        return y
    if y.numel() == w.shape[1]:
        return torch.addmm(y.view(-1), u, w).view(*like[:-1], -1)
    return u.mm(w).view(*like[:-1], -1).add_(y)


def _spread(
    u: Tensor, w: Tensor, zeros_and_ones: Tensor, like: torch.Size, y: Tensor | None, free: bool
) -> Tensor:
    """u [rows * p, J] times w [S * K, J], then the sums over private axes [p, p * S], added to y."""
    p, many = zeros_and_ones.shape
    z = u.mm(w.t()).view(-1, many, w.shape[0] * p // many)
    if y is not None and free:
        wide = zeros_and_ones.expand(len(z), p, many)
        return torch.baddbmm(y.view(-1, p, z.shape[-1]), wide, z).view(y.shape)
    product = torch.matmul(zeros_and_ones, z).view(*like[:-1], -1)
    return product if y is None else product.add_(y)
