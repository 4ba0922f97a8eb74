"""State and features of the elements, tile by tile.

Legend: N elements, m elements of a tile, L blocks of a cut, e elements of one of them, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amortopt.metanets.update_rule.features import BOUND, MOMENTA, SECOND, RuleState
from amortopt.metanets.update_rule.tiles import Elements, Tile

READ = 2 + len(MOMENTA)
"""Weights, gradients and momenta; features after these are divided by roots of second moments."""


@dataclass(frozen=True)
class _Cut:
    """Views of what one cut's features are made of.

    Attributes:
        values: Weights and gradients, [2, L, e].
        momenta: Without the base's, [6, L, e].
        base: [1, L, e].
    """

    values: Tensor
    momenta: Tensor
    base: Tensor


@dataclass(frozen=True)
class _Raw:
    """Views of what one tile's features are made of.

    Attributes:
        gradient: [m].
        momenta: [7, m].
        second: [2, m], or None.
        base: Direction of the base, unscaled, [m].
        cuts: Of its cuts.
    """

    gradient: Tensor
    momenta: Tensor
    second: Tensor | None
    base: Tensor
    cuts: Sequence[_Cut]


class TileFeatures:
    """State and features of one network.

    Args:
        tiles: All tiles.
        size: Elements N.
        decays: Of the momenta, [7].
        second: Whether features over roots of second moments are wanted.
        adam: Whether the base is a momentum over such roots.
    """

    def __init__(self, tiles: Sequence[Tile], size: int, decays: Tensor, *, second: bool, adam: bool) -> None:
        device = decays.device
        self.tiles, self.count = tiles, READ + (1 + 2 * len(SECOND) if second else 0)
        self._second, self._adam = second, adam
        self.x = Elements(self.count, tiles, device)
        # What is divided by roots of second moments: the gradient by one, two momenta by both.
        self._products = [(x[READ], x[READ + 1 :].view(2, len(SECOND), -1)) for x in self.x.tiles if second]
        self._roots = Elements(len(SECOND), tiles, device, shared=True)
        self._fresh = (1 - decays).unsqueeze(1)
        self._fresh_second = (1 - torch.tensor(SECOND, dtype=torch.float32, device=device)).unsqueeze(1)
        self._bases = torch.zeros(size if adam else 0, dtype=torch.float32, device=device)
        self._flat = [
            [view.flatten(2) if view.ndim > 2 else view.unsqueeze(2) for view in views]
            for views in self.x.cuts
        ]
        self._blocks = torch.cat(
            [torch.arange(cut.network_blocks.start, cut.network_blocks.stop) for t in tiles for cut in t.cuts]
        ).to(device)
        self._norms = torch.zeros(self.count + 1, len(self._blocks), dtype=torch.float32, device=device)
        counts = [cut.shape[0] for tile in tiles for cut in tile.cuts]
        norms = iter(self._norms.split(counts, 1))
        self._norms_of = [[next(norms) for _ in tile.cuts] for tile in tiles]
        self._bound: tuple[Tensor, ...] = ()
        self._raw: list[_Raw] = []

    def bind(self, values: Tensor, state: RuleState) -> None:
        """Let features be those of these tensors, whatever will be written to them.

        Args:
            values: Weights and gradients, [2, N].
            state: Of the rule, without a batch axis.
        """
        given = (values, state["momenta"], *([state["second"]] if "second" in state else []))
        if len(given) == len(self._bound) and all(a is b for a, b in zip(given, self._bound, strict=True)):
            return
        self._bound = given
        bases = self._bases if self._adam else state["momenta"][0]
        self._raw = []
        for tile in self.tiles:
            span = slice(*tile.elements)
            momenta, own, base = state["momenta"][:, span], values[:, span], bases[span]
            parts = (part.split(tile.sizes, 1) for part in (own, momenta[1:], base.unsqueeze(0)))
            cuts = [
                _Cut(*(part.unflatten(1, (cut.shape[0], -1)) for part in of_cut))
                for cut, *of_cut in zip(tile.cuts, *parts, strict=True)
            ]
            second = state["second"][:, span] if "second" in state else None
            self._raw.append(_Raw(own[1], momenta, second, base, cuts))

    def base(self, t: int) -> Tensor:
        """Direction of the base in a tile, [m], but for a factor that all elements share."""
        return self._raw[t].base

    def accumulate(self, t: int, tiny: Tensor) -> None:
        """Bring a tile's state up to date, and take its norms.

        Args:
            t: Which tile.
            tiny: Added to second moments before the root, [2, 1].
        """
        raw = self._raw[t]
        raw.momenta.lerp_(raw.gradient.expand_as(raw.momenta), self._fresh)
        if raw.second is not None:
            roots = self._roots.tiles[t]
            square = torch.mul(raw.gradient, raw.gradient, out=roots[0])
            raw.second.lerp_(square.expand_as(raw.second), self._fresh_second)
            torch.add(raw.second, tiny, out=roots).rsqrt_()
            if self._second:
                gradient, momenta = self._products[t]
                torch.mul(raw.gradient, roots[0], out=gradient)
                torch.mul(raw.momenta[3:5].unsqueeze(1), roots, out=momenta)
            if self._adam:
                torch.mul(raw.momenta[0], roots[1], out=raw.base)
        norm = torch.linalg.vector_norm
        for cut, flat, out in zip(raw.cuts, self._flat[t], self._norms_of[t], strict=True):
            norm(cut.values, dim=2, out=out[:2])
            norm(cut.momenta, dim=2, out=out[2:READ])
            norm(cut.base, dim=2, out=out[-1:])
            if self._second:
                norm(flat[READ:], dim=2, out=out[READ:-1])

    def squares(self, num_blocks: int) -> Tensor:
        """Sums of squares, once all tiles have been accumulated: features and the base, [F + 1, B]."""
        found = torch.zeros(self.count + 1, num_blocks, dtype=torch.float32, device=self._norms.device)
        return found.index_add_(1, self._blocks, self._norms.square())

    def normalise(self, t: int, factors: Sequence[Tensor]) -> None:
        """Compute a tile's features, times a factor per block, and clip them.

        Args:
            t: Which tile.
            factors: For every cut, [F, L, 1].
        """
        for cut, flat, factor in zip(self._raw[t].cuts, self._flat[t], factors, strict=True):
            torch.mul(cut.values, factor[:2], out=flat[:2])
            torch.mul(cut.momenta, factor[2:READ], out=flat[2:READ])
            if self._second:
                flat[READ:].mul_(factor[READ:])
        self.x.tiles[t].clamp_(-BOUND, BOUND)
