"""What an update rule computes, for one network without gradients: all that is fixed is prepared.

The same formulas as `rule` and `layer`, which say what they mean,
with channels first, few operations, and elements in tiles that stay in a cache.

Legend: N elements, R rows, B blocks, C channels in, D channels out, F features, m elements of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from amortopt.metanets.update_rule import features as f
from amortopt.metanets.update_rule.features import RuleState
from amortopt.metanets.update_rule.inference_layer import InferenceLayer
from amortopt.metanets.update_rule.layer import UpdateLayer
from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.metanets.update_rule.rule import UpdateRule
from amortopt.metanets.update_rule.tile_features import READ, TileFeatures
from amortopt.metanets.update_rule.tiles import Elements, tiles

_TILE = 1 << 14  # 16 channels of these are 1 MB


@dataclass(frozen=True)
class _Corrections:
    """What corrects the bias of second moments and of the base.

    Attributes:
        tiny: Added to uncorrected second moments before the root, [2, 1].
        scales: What stored features and the base have to be multiplied by, [F + 1, 1].
        base: The last of these.
    """

    tiny: Tensor
    scales: Tensor
    base: float


class InferenceRule:
    """An update rule for one network, ready to run.

    Args:
        rule: Its weights are copied; on the layout's device.
        layout: Of the base network.
        tile: Elements that are treated together, about; on a GPU, all.
    """

    def __init__(self, rule: UpdateRule, layout: UpdateLayout, tile: int = _TILE) -> None:
        with torch.no_grad():
            self._prepare(rule, layout, tile)

    def _prepare(self, rule: UpdateRule, layout: UpdateLayout, tile: int) -> None:
        self.layout, device, n = layout, layout.device, layout.size
        self.base, self.second, self.gate = rule.base, rule.second, rule.gate
        self.tiles = tiles(layout, tile if device.type == "cpu" else n)
        told, width = rule.told[0].shape[1], rule.out_direction.shape[1]
        self.told = torch.ones(told, layout.num_blocks, dtype=torch.float32, device=device)
        self.layers = [
            InferenceLayer(cast(UpdateLayer, layer), weights, layout, self.tiles)
            for layer, weights in zip(rule.layers, rule.told, strict=True)
        ]
        self.hidden = [Elements(width, self.tiles, device) for _ in range(min(2, len(self.layers) - 1))]
        self._last = Elements(width, self.tiles, device, shared=True)
        fixed, second = (
            torch.tensor(decays, dtype=torch.float32, device=device) for decays in (f.MOMENTA, f.SECOND)
        )
        gamma = rule.logit_gamma.sigmoid().reshape(1)
        self.features = TileFeatures(
            self.tiles,
            n,
            torch.cat([gamma, fixed]),
            second=self.second,
            adam=self.base == "adam",
        )
        self.count = self.features.count
        self.corrected = torch.cat([second, gamma])
        sizes = [(b.elements[1] - b.elements[0]) // b.count for b in layout.buckets for _ in range(b.count)]
        self.sizes = torch.tensor(sizes, dtype=torch.float32, device=device)
        self.scales = torch.tensor(f.TIMESCALES, dtype=torch.float32, device=device)
        self._prepare_output(rule)
        self.update = torch.zeros(n, dtype=torch.float32, device=device)
        self._updates = self.update.split([tile.elements[1] - tile.elements[0] for tile in self.tiles])

    def _prepare_output(self, rule: UpdateRule) -> None:
        self.alpha = float(rule.log_alpha.exp())
        directions = rule.out_direction * (rule.log_alpha.exp() * rule.log_beta.exp())
        outs = [directions, rule.out_gate] if rule.gate else [directions]
        self.out = torch.cat(outs, dim=2).transpose(1, 2).contiguous()  # [classes, 1 or 2, D]
        self.told_gate = rule.told_gate.squeeze(2).clone()  # [classes, told]
        self._outs = Elements(self.out.shape[1], self.tiles, self.layout.device, shared=True)
        self._gates = torch.zeros(self.layout.num_blocks, dtype=torch.float32, device=self.layout.device)
        self._gates_of = [
            [self._gates[cut.network_blocks].unflatten(0, (-1, *[1] * len(cut.shape[1:]))) for cut in t.cuts]
            for t in self.tiles
        ]

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
        self.features.bind(values, state)
        corrections = self._corrections(state["step"])
        for t in range(len(self.tiles)):
            self.features.accumulate(t, corrections.tiny)
        factors = self._tell(float(state["step"]), corrections)
        for layer in self.layers:
            layer.clear()
        for t in range(len(self.tiles)):
            self.features.normalise(t, factors[t])
            self.layers[0].read(t, self.features.x)
        source = self.features.x
        for i, layer in enumerate(self.layers):
            layer.listen(self.told)
            target = self.hidden[i % 2] if i < len(self.layers) - 1 else None
            for t in range(len(self.tiles)):
                if target is None:
                    layer.apply(t, source, self._last)
                    self._finish(t, corrections.base)
                else:
                    layer.apply(t, source, target)
                    self.layers[i + 1].read(t, target)
            source = target or source
        return self.update

    def _corrections(self, step: Tensor) -> _Corrections:
        over = 1 - self.corrected ** step.to(self.corrected.device)  # what the rule divides by
        tiny = (f.TINY * over[:2]).unsqueeze(1)
        roots = over[:2].sqrt()
        scales = torch.ones(self.count + 1, dtype=torch.float32, device=over.device)
        if self.second:
            scales[READ] = roots[0]
            scales[READ + 1 : -1] = roots.repeat(2)
        if self.base == "adam":
            scales[-1] = roots[1] / over[2]
        return _Corrections(tiny, scales.unsqueeze(1), float(scales[-1]))

    def _tell(self, step: float, corrections: _Corrections) -> list[list[Tensor]]:
        """Write what is known of blocks as a whole; returns what features of cuts are multiplied by."""
        squares = self.features.squares(self.layout.num_blocks)
        squares.mul_(corrections.scales.square()).div_(self.sizes).add_(f.TINY)
        factors = squares[:-1].rsqrt().mul_(corrections.scales[:-1]).unsqueeze(2)
        times = len(f.TIMESCALES)
        self.told[:times] = torch.tanh((step - 1) / self.scales - 1).unsqueeze(1)
        logs = squares[[0, 1, -1]].log_().mul_(0.1)  # 0.2 times the logarithm of the root
        self.told[times : times + 3] = logs
        torch.sub(logs[2], logs[0], out=self.told[times + 3])
        for kind, (_, blocks) in self.layout.by_class.items():
            torch.mv(self.told[:, slice(*blocks)].t(), self.told_gate[kind], out=self._gates[slice(*blocks)])
        return [[factors[:, cut.network_blocks] for cut in tile.cuts] for tile in self.tiles]

    def _finish(self, t: int, scale: float) -> None:
        """Write the update of a tile's elements."""
        tile, base, target = self.tiles[t], self.features.base(t), self._updates[t]
        out = torch.mm(self.out[tile.kind], self._last.tiles[t], out=self._outs.tiles[t])
        if self.gate:
            for part, gates in zip(self._outs.cuts[t], self._gates_of[t], strict=True):
                part[1].add_(gates)
            base = out[1].clamp_(-f.BOUND, f.BOUND).exp_().mul_(base)
        torch.add(out[0], base, alpha=self.alpha * scale, out=target)
