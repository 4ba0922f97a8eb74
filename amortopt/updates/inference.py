"""What an update rule computes, for one network without gradients: all that is fixed is prepared.

The same formulas as :mod:`amortopt.updates.rule` and :mod:`amortopt.updates.layer`, which say what they mean,
with channels first, few operations, and elements in tiles that stay in a cache.

Legend: N elements, R rows, B blocks, C channels in, D channels out, F features, m elements of a tile.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from amortopt.updates import features as f
from amortopt.updates.features import RuleState
from amortopt.updates.inference_layer import InferenceLayer
from amortopt.updates.layer import UpdateLayer
from amortopt.updates.layout import UpdateLayout
from amortopt.updates.rule import _BOUND as BOUND
from amortopt.updates.rule import UpdateRule
from amortopt.updates.tiles import Tile, tiles

_TILE = 1 << 14  # 16 channels of these are 1 MB
_ROOT = 1e-16


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
        self.layout, self.count = layout, rule.elements
        self.base, self.second, self.gate = rule.base, rule.second, rule.gate
        device, n, blocks = layout.device, layout.size, layout.num_blocks
        self.tiles = tiles(layout, tile if device.type == "cpu" else n)
        whole = {"device": device, "dtype": torch.float32}
        self.features = torch.zeros(self.count + 1, n, **whole)  # the last is the base
        told = rule.told[0].shape[1]
        self.told = torch.ones(told, blocks, **whole)
        self.layers = [
            InferenceLayer(cast(UpdateLayer, layer), weights, layout)
            for layer, weights in zip(rule.layers, rule.told, strict=True)
        ]
        width = rule.out_direction.shape[1]
        self.hidden = [torch.zeros(width, n, **whole) for _ in range(min(2, len(self.layers) - 1))]
        sizes = torch.tensor(
            [n // b.count for b in layout.buckets for n in [b.elements[1] - b.elements[0]] * b.count]
        )
        self.sizes = sizes.to(device, torch.float32)
        gamma = rule.logit_gamma.sigmoid().reshape(1)
        fixed, second = (torch.tensor(decays, device=device) for decays in (f.MOMENTA, f.SECOND))
        self.momenta = (1 - torch.cat([gamma, fixed])).unsqueeze(1)
        self.seconds = (1 - second).unsqueeze(1)
        self.corrected = torch.cat([second, gamma])
        self.scales = torch.tensor(f.TIMESCALES, dtype=torch.float32, device=device)
        self.alpha = float(rule.log_alpha.exp())
        directions = rule.out_direction * (rule.log_alpha.exp() * rule.log_beta.exp())
        outs = [directions, rule.out_gate] if rule.gate else [directions]
        self.out = torch.cat(outs, dim=2).transpose(1, 2).contiguous()  # [classes, 1 or 2, D]
        self.told_gate = rule.told_gate.squeeze(2).clone()  # [classes, told]
        self.update = torch.zeros(n, **whole)

    @torch.no_grad()
    def __call__(self, flat: Tensor, grads: Tensor, state: RuleState) -> Tensor:
        """One step.

        Args:
            flat: Parameters, [N].
            grads: Gradients, [N].
            state: Overwritten.

        Returns:
            The update [N], in memory that the next call overwrites.
        """
        state["step"].add_(1)
        step = state["step"].to(flat.device)
        corrections = (1 - self.corrected**step).reciprocal_()
        for start, stop in self._chunks():
            self._read(flat[start:stop], grads[start:stop], state, corrections, start, stop)
        factors = self._tell(step)
        self._normalise(factors)
        source = self.features[:-1]
        for i, layer in enumerate(self.layers):
            layer.listen(self.told)
            last = i == len(self.layers) - 1
            target = None if last else self.hidden[i % 2]
            gates = self._gates() if last and self.gate else None
            for tile in self.tiles:
                start, stop = tile.elements
                if target is not None:
                    out = target[:, start:stop]
                    layer.apply(tile, source, out)
                    self.layers[i + 1].read(tile, target)
                else:
                    out = torch.empty(self.out.shape[2], stop - start, device=flat.device)
                    layer.apply(tile, source, out)
                    self._finish(tile, out, gates)
            source = target if target is not None else source
        return self.update

    def _chunks(self) -> list[tuple[int, int]]:
        spans = [tile.elements for tile in self.tiles]
        if len(spans) <= len(self.layout.by_class):
            return [(0, spans[-1][1])]
        return spans

    def _read(
        self, flat: Tensor, grads: Tensor, state: RuleState, corrections: Tensor, start: int, stop: int
    ) -> None:
        """Bring the state up to date and write raw features and base of some elements."""
        x = self.features[:, start:stop]
        momenta = state["momenta"][:, start:stop]
        momenta.lerp_(grads.expand_as(momenta), self.momenta)
        x[0], x[1] = flat, grads
        x[2 : 1 + len(momenta)] = momenta[1:]
        if "second" not in state:
            x[-1] = momenta[0]
            return
        second = state["second"][:, start:stop]
        second.lerp_(grads.square().expand_as(second), self.seconds)
        roots = (second * corrections[:2].unsqueeze(1)).add_(_ROOT).rsqrt_()
        if self.second:
            k = 1 + len(momenta)
            torch.mul(grads, roots[0], out=x[k])
            torch.mul(momenta[3], roots, out=x[k + 1 : k + 3])
            torch.mul(momenta[4], roots, out=x[k + 3 : k + 5])
        if self.base == "adam":
            torch.mul(momenta[0], roots[1], out=x[-1]).mul_(corrections[2])
        else:
            x[-1] = momenta[0]

    def _tell(self, step: Tensor) -> Tensor:
        """Write what is known of blocks as a whole; returns one over root mean squares, [F + 1, B]."""
        blocks = self.layout.num_blocks
        squares = torch.zeros(self.count + 1, blocks, device=self.features.device)
        for tile in self.tiles:
            for cut in tile.cuts:
                part = self.features[:, slice(*cut.elements)].unflatten(1, (cut.shape[0], -1))
                found = torch.linalg.vector_norm(part, dim=2).square_()
                squares[:, cut.network_blocks] += found
        squares.div_(self.sizes).add_(f._TINY)
        factors = squares.rsqrt()
        times = len(f.TIMESCALES)
        self.told[:times] = torch.tanh((step - 1) / self.scales - 1).unsqueeze(1)
        logs = squares[[0, 1, -1]].log_().mul_(0.1)  # 0.2 times the logarithm of the root
        self.told[times : times + 3] = logs
        torch.sub(logs[2], logs[0], out=self.told[times + 3])
        return factors

    def _normalise(self, factors: Tensor) -> None:
        """Divide features by their root mean squares, clip them, and read them."""
        x = self.features[:-1]
        first = self.layers[0]
        for layer in self.layers:
            layer.clear()
        for tile in self.tiles:
            for cut in tile.cuts:
                part = x[:, slice(*cut.elements)].unflatten(1, (cut.shape[0], -1))
                part.mul_(factors[:-1, cut.network_blocks].unsqueeze(2))
            x[:, slice(*tile.elements)].clamp_(-BOUND, BOUND)
            first.read(tile, x)

    def _gates(self) -> Tensor:
        parts = [
            self.told_gate[kind] @ self.told[:, slice(*b)] for kind, (_, b) in self.layout.by_class.items()
        ]
        return torch.cat(parts)

    def _finish(self, tile: Tile, x: Tensor, gates: Tensor | None) -> None:
        """Write the update of some elements."""
        start, stop = tile.elements
        base, target = self.features[-1, start:stop], self.update[start:stop]
        out = self.out[tile.kind] @ x
        if gates is None:
            torch.add(out[0], base, alpha=self.alpha, out=target)
            return
        gate = out[1]
        for cut in tile.cuts:
            part = gate[cut.elements[0] - start : cut.elements[1] - start].unflatten(0, (cut.shape[0], -1))
            part.add_(gates[cut.network_blocks].unsqueeze(1))
        gate.clamp_(-BOUND, BOUND).exp_().mul_(base)
        torch.add(out[0], gate, alpha=self.alpha, out=target)
