"""The arithmetic of an update rule for one network without gradients, in tiles that fit a cache.

[UNFRule][amortopt.metanets.UNFRule] is the definition; this gives the same updates from memory that is
allocated once. Elements have their channels first, so that every operation runs along neighbouring elements.
Means over whole tensors are needed between passes over the tiles:

1. state and features of every tile, and the sums of squares of every block;
2. normalised features, and the sums that the first layer needs (rows, pairs);
3. per layer: from these sums the terms that are constant along an axis, then all elements of its output, and
   while they are in the cache, the sums that the next layer needs.

Legend: N elements, m elements of a tile, L blocks of it, F features, C channels in, D channels out, R rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from amortopt.metanets.update_rule import features as f
from amortopt.metanets.update_rule.features import RuleState
from amortopt.metanets.update_rule.layer import SharedUNFLayer
from amortopt.metanets.update_rule.layout import AXIS_ROLES, Bucket, Side, UpdateLayout
from amortopt.metanets.update_rule.rule import CONTEXT, UNFRule

TILE = 1 << 14
"""Elements: 16 channels of these are 1 MB, which a core's second-level cache holds."""


def is_fast(rule: UNFRule) -> bool:
    """Whether ``FastRule`` covers the rule: that is, whether all parts of it are in use."""
    config = rule.config
    return (config["net"], config["direction"], rule.second, rule.gate) == ("unf", "adam", True, True)


@dataclass(frozen=True)
class Tile:
    """Whole blocks of a bucket or, where a block is larger than a tile, a range along its first axis.

    Attributes:
        position: Position of the bucket.
        bucket: The bucket.
        blocks: First block within the bucket, and the one after the last.
        span: First index along the first axis, and the one after the last.
        elements: First element of the flat vector, and the one after the last.
    """

    position: int
    bucket: Bucket
    blocks: tuple[int, int]
    span: tuple[int, int]
    elements: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """[L, *axes]."""
        return (self.blocks[1] - self.blocks[0], self.span[1] - self.span[0], *self.bucket.shape[1:])

    @property
    def network_blocks(self) -> slice:
        """Its blocks among those of the network."""
        return slice(*(self.bucket.blocks[0] + k for k in self.blocks))

    def rows(self, side: Side) -> slice:
        """Its rows of a side among those of the network."""
        length = self.bucket.shape[side.axis or 0]
        first = side.rows[0] + self.blocks[0] * length
        start, stop = (0, length) if side.axis else self.span
        return slice(first + start, first + (self.shape[0] - 1) * length + stop)


def tiles(layout: UpdateLayout, size: int) -> list[Tile]:
    """Cut the flat vector into tiles of at most ``size`` elements, or one index of a block's first axis."""
    cuts = []
    for position, bucket in enumerate(layout.buckets):
        block, length, first = math.prod(bucket.shape), bucket.shape[0], bucket.elements[0]
        blocks, rows = max(1, size // block), max(1, min(length, size * length // block))
        for k in range(0, bucket.count, blocks):
            stop = min(k + blocks, bucket.count)
            for start in range(0, length, rows):
                span = start, min(start + rows, length)
                begin = first + k * block + start * block // length
                end = begin + (stop - k) * (span[1] - start) * block // length
                cuts.append(Tile(position, bucket, (k, stop), span, (begin, end)))
    return cuts


class FastRule:
    """An update rule prepared for one network.

    Args:
        rule: One that ``is_fast``; its weights are copied.
        layout: Of the base network, on the rule's device.
        tile: Elements of a tile; on a GPU, all are one tile per bucket.
    """

    @torch.no_grad()
    def __init__(self, rule: UNFRule, layout: UpdateLayout, tile: int = TILE) -> None:
        self.layout = layout
        self.tiles = tiles(layout, tile if layout.device.type == "cpu" else layout.size)
        width = rule.out_term.shape[1]
        self._kw: dict[str, Any] = {"dtype": torch.float32, "device": layout.device}
        zeros = partial(torch.zeros, **self._kw)
        self._layers = [
            _FastLayer(cast(SharedUNFLayer, layer), weights, layout)
            for layer, weights in zip(rule.layers, rule.context, strict=True)
        ]
        self._features = [zeros(rule.features, *tile.shape) for tile in self.tiles]
        self._hidden = [
            [zeros(width, *tile.shape) for tile in self.tiles] for _ in range(min(2, len(self._layers) - 1))
        ]
        self._last = zeros(width * max(math.prod(tile.shape) for tile in self.tiles))
        self._squares = zeros(rule.features + 1, layout.num_blocks)
        self._direction, self._update = zeros(layout.size), zeros(layout.size)
        gamma = rule.logit_gamma.sigmoid().reshape(1)
        self._momentum_rates = 1 - torch.cat([gamma, torch.tensor(f.MOMENTA, **self._kw)]).unsqueeze(1)
        self._second_rates = 1 - torch.tensor(f.SECOND, **self._kw).unsqueeze(1)
        self._decays = torch.cat([torch.tensor(f.SECOND, **self._kw), gamma])
        self._alpha = float(rule.log_alpha.exp())
        out_term = rule.out_term * (rule.log_alpha.exp() * rule.log_beta.exp())
        self._out = (
            torch.cat([out_term, rule.out_gate], dim=2).transpose(1, 2).contiguous()
        )  # [classes, 2, D]
        self._context_gate = rule.context_gate.squeeze(2).clone()
        counts = [math.prod(bucket.shape) for bucket in layout.buckets for _ in range(bucket.count)]
        self._block_sizes = torch.tensor(counts, **self._kw)

    @torch.no_grad()
    def __call__(self, values: Tensor, state: RuleState) -> Tensor:
        """One step.

        Args:
            values: Parameters and gradients, [2, N].
            state: Overwritten.

        Returns:
            The update [N], in memory that the next call overwrites.
        """
        state["step"].add_(1)
        correction = 1 - self._decays ** state["step"].to(self._decays.device)
        self._squares.zero_()
        # 1. State, directions and features of every tile, and the sums of squares of every block.
        for tile, features in zip(self.tiles, self._features, strict=True):
            span, x = slice(*tile.elements), features.flatten(1)
            gradient, momenta, second = values[1, span], state["momenta"][:, span], state["second"][:, span]
            momenta.lerp_(gradient.expand_as(momenta), self._momentum_rates)
            second.lerp_(gradient.square().expand_as(second), self._second_rates)
            roots = (second / correction[:2].unsqueeze(1)).add_(f.TINY).rsqrt_()
            direction = torch.mul(momenta[0], roots[1], out=self._direction[span]).div_(correction[2])
            x[:2], x[2:8] = values[:, span], momenta[1:]
            torch.mul(gradient, roots[0], out=x[8])
            torch.mul(momenta[3:5].unsqueeze(1), roots, out=x[9:].unflatten(0, (2, 2)))
            norms = torch.linalg.vector_norm(features.flatten(2), dim=2)
            self._squares[:-1, tile.network_blocks] += norms.square_()
            norms = torch.linalg.vector_norm(direction.view(1, tile.shape[0], -1), dim=2)
            self._squares[-1:, tile.network_blocks] += norms.square_()
        # 2. Normalised features, and the first layer's sums.
        squares = self._squares.div_(self._block_sizes).add_(f.TINY)
        factors = squares[:-1].rsqrt()
        context = self._context(float(state["step"]), squares)
        for tile, x in zip(self.tiles, self._features, strict=True):
            factor = factors[:, tile.network_blocks]
            x.flatten(2).mul_(factor.unsqueeze(2)).clamp_(-f.BOUND, f.BOUND)
            self._layers[0].read(tile, x)
        # 3. The layers.
        xs = self._features
        for i, layer in enumerate(self._layers[:-1]):
            layer.finish(context)
            for tile, x, y in zip(self.tiles, xs, self._hidden[i % 2], strict=True):
                layer.apply(tile, x, y)
                self._layers[i + 1].read(tile, y)
            xs = self._hidden[i % 2]
        self._layers[-1].finish(context)
        gates = torch.zeros_like(context[0])
        for kind, span in self.layout.blocks_by_class.items():
            gates[slice(*span)] = self._context_gate[kind] @ context[:, slice(*span)]
        for tile, x in zip(self.tiles, xs, strict=True):
            y = self._last[: self._out.shape[2] * math.prod(tile.shape)].view(-1, *tile.shape)
            self._layers[-1].apply(tile, x, y)
            # [classes, 2, D]: the term and the gate's logarithm
            term, gate = (self._out[tile.bucket.kind] @ y.flatten(1)).view(2, tile.shape[0], -1)
            gate = gate.add_(gates[tile.network_blocks].unsqueeze(1)).clamp_(-f.BOUND, f.BOUND).exp_()
            direction, update = self._direction[slice(*tile.elements)], self._update[slice(*tile.elements)]
            torch.addcmul(term.flatten(), gate.flatten(), direction, value=self._alpha, out=update)
        return self._update

    def _context(self, step: float, squares: Tensor) -> Tensor:
        """As ``UNFRule`` has it, [CONTEXT, blocks], from mean squares [F + 1, blocks]."""
        context = torch.ones(CONTEXT, self.layout.num_blocks, **self._kw)
        time = f.time_features(torch.tensor(step - 1, **self._kw))
        sizes = 0.5 * squares[[0, 1, -1]].log()
        context[: len(time)] = time.unsqueeze(1)
        context[len(time) : -1] = 0.2 * torch.cat([sizes, sizes[2:] - sizes[:1]])
        return context


class _FastLayer:
    """A layer's weights transposed, and the sums that it needs before any of its elements.

    ``read`` every tile, then ``finish``, then ``apply`` to every tile; ``finish`` earlier gives wrong means.
    """

    def __init__(self, layer: SharedUNFLayer, context: Tensor, layout: UpdateLayout) -> None:
        self.layout = layout
        kw: dict[str, Any] = {"dtype": torch.float32, "device": layout.device}
        zeros = partial(torch.zeros, **kw)
        self._channels, self._width = layer.element.shape[1:]
        self._element = layer.element.transpose(1, 2).contiguous()  # [classes, D, C]
        # [classes, D, C + CONTEXT]: S and the context's weights, side by side
        self._block = torch.cat([layer.block, context], 1).transpose(1, 2).contiguous()
        self._row = layer.row.transpose(1, 2).contiguous()  # [roles, D, C]
        self._unit, self._classes = layer.unit.clone(), layer.classes.clone()
        self._transpose, self._kernel, self._pair = (
            w.t().contiguous() for w in (layer.transpose, layer.kernel, layer.pair)
        )
        self._order = torch.argsort(layout.slots, stable=True)
        counts = torch.bincount(layout.slots, minlength=layout.num_units * len(AXIS_ROLES))
        self._offsets, self._slot_sizes = counts.cumsum(0) - counts, counts.clamp(min=1).unsqueeze(1)
        lengths = torch.ones(layout.num_rows, **kw)  # elements of every row
        for b, side in layout.sides:
            shape = layout.buckets[b].shape
            kept = shape[0] ** 2 if side.axis is None else shape[side.axis]
            lengths[slice(*side.rows)] = math.prod(shape) // kept
        self._per_row = lengths.reciprocal()
        self._rows = zeros(self._channels, layout.num_rows)
        self._known = zeros(self._channels + CONTEXT, layout.num_blocks)  # block means, then context
        # Axis along which a bucket's rows have the block mean in them; None: summed by itself.
        self._first = [next((s for s in b.sides if s.axis is not None), None) for b in layout.buckets]
        self._transposed = {
            b: zeros(self._channels, bucket.count, *bucket.shape)
            for b, bucket in enumerate(layout.buckets)
            if bucket.square
        }
        # Per set of matrices between the same groups the sum [C, n0, n1]; (bucket, block) -> set, transposed
        self._pair_of = {
            (b, k): (number, flip) for number, many in enumerate(layout.pairs) for b, k, flip in many
        }
        shapes = [layout.buckets[many[0][0]].shape[:2] for many in layout.pairs]
        self._pair_sums = [zeros(self._channels, *shape) for shape in shapes]
        self._block_terms = self._row_terms = torch.empty(0)
        self._pair_terms: list[Tensor] = []

    def read(self, tile: Tile, x: Tensor) -> None:
        """Add a tile [C, L, *axes] to the sums."""
        bucket, span = tile.bucket, slice(*tile.span)
        for side in bucket.sides:
            target = self._rows[:, tile.rows(side)].unflatten(1, (len(x[0]), -1))
            if side.axis is None:
                row = _diagonal(x, tile)
                target += row.flatten(3).sum(3) if row.ndim > 3 else row
            else:
                others = [axis for axis in range(2, x.ndim) if axis != 2 + side.axis]
                target += x.sum(others) if others else x
        if self._first[tile.position] is None:
            mean = x.flatten(2).sum(2) / math.prod(bucket.shape)
            self._known[: self._channels, tile.network_blocks] += mean
        if bucket.square:
            self._transposed[tile.position][:, slice(*tile.blocks), :, span] = x.transpose(2, 3)
        for k in range(*tile.blocks):
            if (tile.position, k) in self._pair_of:
                number, flip = self._pair_of[tile.position, k]
                matrix = x[:, k - tile.blocks[0]]
                matrix = matrix.flatten(3).mean(3) if matrix.ndim > 3 else matrix
                sums = self._pair_sums[number]
                (sums.transpose(1, 2) if flip else sums)[:, span] += matrix

    def finish(self, context: Tensor) -> None:
        """From the sums over all tiles, terms per block [D, blocks], row [D, R] and pair [D, n0, n1].

        ``context`` [CONTEXT, blocks] is read beside the block means.
        """
        layout, c = self.layout, self._channels
        rows = self._rows.mul_(self._per_row)
        self._known[c:] = context
        for bucket, side in zip(layout.buckets, self._first, strict=True):
            if side is not None:
                of_bucket = rows[:, slice(*side.rows)].unflatten(1, (bucket.count, -1))
                self._known[:c, slice(*bucket.blocks)] = of_bucket.mean(2)
        spans = {kind: slice(*span) for kind, span in layout.blocks_by_class.items()}
        class_means = rows.new_zeros(len(self._block), c)
        for kind, span in spans.items():
            class_means[kind] = self._known[:c, span].mean(1)
        to_class = (class_means.flatten() @ self._classes).view(len(class_means), -1, 1)
        self._block_terms = torch.cat(
            [self._block[kind] @ self._known[:, span] + to_class[kind] for kind, span in spans.items()], 1
        )
        self._row_terms = rows
        if layout.num_rows:
            direct = [self._row[role] @ rows[:, slice(*span)] for role, span in layout.rows_by_role.items()]
            # Rows of one slot behind each other: adding them by index is many times slower.
            units = F.embedding_bag(self._order, rows.t().contiguous(), self._offsets, mode="sum")
            through = (units / self._slot_sizes).view(layout.num_units, -1) @ self._unit
            through = through.view(-1, self._width).index_select(0, layout.slots).t()
            self._row_terms = torch.cat(direct, 1) + through
        self._pair_terms = [
            (self._pair @ total.flatten(1) / len(many)).view(-1, *total.shape[1:])
            for total, many in zip(self._pair_sums, layout.pairs, strict=True)
        ]
        for sums in (self._rows, self._known, *self._pair_sums):
            sums.zero_()

    def apply(self, tile: Tile, x: Tensor, out: Tensor) -> None:
        """Write the layer's output after a ReLU: [C, L, *axes] -> out [D, L, *axes]."""
        axes, span = x.ndim - 2, slice(*tile.span)
        terms = [self._block_terms[:, tile.network_blocks].unflatten(1, (-1, *[1] * axes))]
        diagonal = None
        for side in tile.bucket.sides:
            row = self._row_terms[:, tile.rows(side)].unflatten(1, (len(x[0]), -1))
            if side.axis is None:
                diagonal = row
            else:
                terms.append(row.view(*row.shape[:2], *[1] * side.axis, -1, *[1] * (axes - 1 - side.axis)))
        if axes > 2:
            mean = x.flatten(4).mean(4)
            kernel = (self._kernel @ mean.flatten(1)).view(-1, *mean.shape[1:], *[1] * (axes - 2))
            terms.insert(min(3, len(terms)), kernel)
        # Small terms first: only the last addition is as large as the elements.
        *small, last = terms
        total = sum(small[1:], small[0]) if small else torch.zeros_like(last)
        torch.add(total.expand_as(out), last, out=out)
        if diagonal is not None:
            _diagonal(out, tile).movedim(2, -1).add_(diagonal.unflatten(2, (*[1] * (axes - 2), -1)))
        if tile.bucket.square:
            flipped = self._transposed[tile.position][:, slice(*tile.blocks), span]
            out += (self._transpose @ flipped.flatten(1)).view_as(out)
        for k in range(*tile.blocks):
            if (tile.position, k) in self._pair_of:
                number, flip = self._pair_of[tile.position, k]
                term = self._pair_terms[number]
                term = (term.transpose(1, 2) if flip else term)[:, span]
                out[:, k - tile.blocks[0]].add_(term.reshape(*term.shape, *[1] * (axes - 2)))
        out.flatten(1).addmm_(self._element[tile.bucket.kind], x.flatten(1)).relu_()


def _diagonal(x: Tensor, tile: Tile) -> Tensor:
    """Diagonal of the first two axes, a view: [C, L, *axes] -> [C, L, n, *further axes]."""
    return x[:, :, :, slice(*tile.span)].diagonal(dim1=2, dim2=3).movedim(-1, 2)
