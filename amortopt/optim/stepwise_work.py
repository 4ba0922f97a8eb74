"""One step of a learned optimizer on flat vectors: weights and gradients in, direction out, weights moved.

Legend: N elements of all parameters.
"""

from __future__ import annotations

import math
from collections.abc import Container

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from amortopt._types import Params
from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.optim.stepwise_state import FlatState

_EXACT = (torch.float32, torch.float64)  # dtypes that an update is added to as they are


class Workspace:
    """Flat vectors of the model's elements on one device, which every step writes to.

    Args:
        rule: On the layout's device.
        layout: Of the model.
        state_dtype: Of the state between steps; the step itself is float32.

    Attributes:
        weights: Of all parameters, float32 [N].
        gradients: Likewise.
        state: The rule's state.
    """

    def __init__(self, rule: UNFRule, layout: UpdateLayout, state_dtype: torch.dtype) -> None:
        self._rule, self._layout = rule, layout
        values = torch.zeros(2, layout.size, dtype=torch.float32, device=layout.device)
        self.weights, self.gradients = values
        self.state = FlatState(rule, layout, state_dtype)

    def gather(self, params: Params, gradients: Params, grouped: Container[str], blank: set[str]) -> bool:
        """Write weights and gradients into the flat vectors.

        Args:
            params: Name -> parameter, all of the model.
            gradients: Name -> gradient; those of other parameters count as zero.
            grouped: Names of the parameters that are in a group.
            blank: Names of those whose weights count as zero. Parameters that are in no group and hold
                infinite values, such as an attention mask, are added.

        Returns:
            Whether weights, gradients and the sum of their squares are finite.
        """
        zero = self.weights.new_zeros(())
        shapes = self._layout.shapes
        self._layout.pack(
            {n: _whole(gradients[n]) if n in gradients else zero.expand(shapes[n]) for n in shapes},
            out=self.gradients,
        )
        while True:
            weights = {n: zero.expand(shapes[n]) if n in blank else _whole(params[n]) for n in shapes}
            self._layout.pack(weights, out=self.weights)
            squares = torch.dot(self.weights, self.weights) + torch.dot(self.gradients, self.gradients)
            if math.isfinite(float(squares)):
                return True
            masks = {n for n, w in weights.items() if n not in grouped and not bool(w.isfinite().all())}
            if not masks:
                return False
            blank |= masks

    def compute(self) -> Tensor:
        """One more step of the state.

        Returns:
            The direction [N], to be subtracted times a learning rate; zero where no gradient was ever other
            than zero. The next call overwrites the state, not the direction.
        """
        flat = self.state.flat
        with torch.autocast(self.weights.device.type, enabled=False):
            state = {key: value.to(self.weights.device, torch.float32) for key, value in flat.items()}
            direction, new = self._rule(self._layout, self.weights, self.gradients, state, inplace=True)
            self.state.write(new)
        untouched = (flat["momenta"][-1] == 0) & (flat["second"][-1] == 0)
        return direction.masked_fill_(untouched, 0.0)  # elements that never had a gradient


def _whole(value: Tensor) -> Tensor:
    """A parameter or gradient without its history, gathered from all processes if it is sharded."""
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def move(members: list[tuple[Tensor, Tensor]], lr: float, decay: float) -> None:
    """W <- (1 - lr decay) W - lr u for pairs of a parameter and its update u, both of one shape.

    In float32 for parameters of less precision; of a sharded parameter only the part of this process.
    """
    local = []
    for p, update in members:
        if isinstance(p, DTensor):
            shard = distribute_tensor(update, p.device_mesh, p.placements, src_data_rank=None)
            p, update = p.to_local(), shard.to_local()
        local.append((p, update))
    exact = [(p, p, u) for p, u in local if p.dtype in _EXACT]
    rounded = [(p, p.float(), u) for p, u in local if p.dtype not in _EXACT]
    for some in (exact, rounded):
        if some:
            targets, updates = [t for _, t, _ in some], [u for _, _, u in some]
            if decay:
                torch._foreach_mul_(targets, 1 - lr * decay)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(targets, updates, alpha=-lr)  # pyright: ignore[reportPrivateImportUsage]
    if rounded:
        torch._foreach_copy_([p for p, _, _ in rounded], [t for _, t, _ in rounded])  # pyright: ignore[reportPrivateImportUsage]
