"""A metanet that reads its problem: rounds of gradients between slots, written into each network's gauge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.base import Metanet, register
from amortopt.metanets.conditions import Conditions
from amortopt.metanets.rounds.gauge import SlotGauge
from amortopt.metanets.rounds.matrices import Matrices
from amortopt.metanets.rounds.rule import Gradient, RoundRule
from amortopt.metanets.scalegmn.readout import Blend
from amortopt.metanets.scalegmn.units import Respects
from amortopt.symmetry import SymmetrySpec

_NONE = Conditions()


@register("rounds")
class Rounds(Metanet):
    r"""One pass that reads its problem: R gradients, each turned into the next proposal by learned maps.

    The pass starts from learned prototype weights, not from the network's. In every round it takes the
    gradient of the problem's objective at its proposal, on the batch, and moves by a learned map of it (see
    [RoundRule][amortopt.metanets.rounds.rule.RoundRule]). What comes out is written into the network's gauge:
    the order, signs and scales of its units. So for every element g of the spec's symmetry
    :math:`f(g \cdot \theta) = g \cdot f(\theta)`, whatever the maps are. The network's weights matter for
    the gauge alone: two networks with one problem come out as one function.

    Args:
        spec: Symmetry of the family.
        shapes: Parameter name -> shape, of the family's networks.
        rounds: Gradients R in a pass.
        channels: Channels through which all weights see all gradients.
        hidden: Rows and columns of a channel.
        conditions: What it reads: ``"batch"``, and ``"l1"`` if wanted.
        respects: ``"scale"``: permutations and scalings; ``"permutation"``: only permutations (the ablation).
        l1_range: Lowest and highest L1 strength that prototypes are spread over, if it reads ``"l1"``.
        l1_knots: Prototypes between them.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        *,
        shapes: Mapping[str, Sequence[int]],
        rounds: int = 1,
        channels: int = 8,
        hidden: int = 32,
        conditions: Sequence[Literal["batch", "l1"]] = ("batch",),
        respects: Respects = "scale",
        l1_range: tuple[float, float] = (1e-4, 2e-2),
        l1_knots: int = 12,
    ) -> None:
        super().__init__(
            spec,
            shapes={name: list(shape) for name, shape in shapes.items()},
            rounds=rounds,
            channels=channels,
            hidden=hidden,
            conditions=sorted(conditions),
            respects=respects,
            l1_range=list(l1_range),
            l1_knots=l1_knots,
        )
        counts = {"rounds": rounds, "channels": channels, "hidden": hidden, "l1_knots": l1_knots}
        for name, value in counts.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected a whole number of at least 1")
        if respects not in ("scale", "permutation"):
            raise ValueError(f"respects: got {respects!r}, expected 'scale' or 'permutation'")
        if "batch" not in self.conditions:
            raise ValueError("conditions: got no 'batch', expected it: rounds read gradients of a batch")
        if missing := sorted(set(spec.params) - set(shapes)):
            raise ValueError(f"shapes: got none of {', '.join(missing)}, expected one for every parameter")
        self.matrices = Matrices(self.config["shapes"])
        self.gauge = SlotGauge(spec, respects)
        self.blend = Blend(*l1_range, l1_knots) if "l1" in self.conditions else None
        first = []
        for rows, columns in self.matrices.sizes:
            # Normal, 1 / sqrt(fan in); biases, in the last column, are zero.
            matrix = torch.randn(rows, columns) / max(1, columns - 1) ** 0.5
            first.append(torch.cat([matrix[:, :-1], torch.zeros(rows, 1)], 1))
        self.rule = RoundRule(
            first,
            rounds=rounds,
            channels=channels,
            hidden=hidden,
            blends=1 if self.blend is None else self.blend.count,
        )

    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        """Prototypes, and the maps as matrices; gates, step sizes and momenta are neither."""
        maps = ("left", "right", "mix_left", "mix_right", "mix_bias", "back_left", "back_right")
        matrices = [
            p
            for name, p in self.rule.named_parameters()
            if name.split(".")[0] in maps and min(p.shape[-2:]) > 1
        ]
        return {"matrix": matrices, "prototype": [*self.rule.prototype]}

    def open_gates(self) -> None:
        """Nothing to open: a pass starts from its prototype, never from the network."""

    def forward(self, params: Params, conditions: Conditions = _NONE) -> Params:
        """Improve B networks of one architecture; see [Metanet][amortopt.metanets.Metanet]."""
        return self.after_rounds(params, conditions)[-1]

    def after_rounds(self, params: Params, conditions: Conditions, rounds: int | None = None) -> list[Params]:
        """What the pass has come to after 0, 1, ... rounds, each written into the networks' gauge.

        Args:
            params: As for ``forward``.
            conditions: As for ``forward``.
            rounds: At most as many as the metanet has, by default all.

        Raises:
            ValueError: If a condition is missing or was not declared, or there are not so many rounds.
        """
        count = len(next(iter(params.values())))
        conditions.check(self.conditions, count)
        if rounds is not None and not 0 <= rounds <= self.rule.rounds:
            raise ValueError(f"rounds: got {rounds}, expected 0 to {self.rule.rounds}")
        if conditions.examples is None:
            raise ValueError(
                "conditions.examples: got none, expected the number of examples of each network's batch [B]"
            )
        blend = next(iter(params.values())).new_ones(count, 1)
        if self.blend is not None and conditions.l1 is not None:
            blend = self.blend(conditions.l1)
        proposals = self.rule(self._gradient(conditions), conditions.examples, blend, rounds)
        gauge = self.gauge(params)
        return [gauge.write(self.matrices.unpack(proposal)) for proposal in proposals]

    def calibrate(self, conditions: Conditions) -> None:
        """Bring gradients to about unit size before they are mixed; once, before meta-training."""
        assert conditions.examples is not None
        blend = torch.zeros(len(conditions.examples), len(self.rule.prototype[0]))
        blend[:, 0] = 1
        self.rule.calibrate(self._gradient(conditions), blend.to(self.rule.step))

    def _gradient(self, conditions: Conditions) -> Gradient:
        def gradient(matrices: list[Tensor]) -> list[Tensor]:
            at = conditions.gradient_at(self.matrices.unpack(matrices))
            assert at is not None
            return self.matrices.pack(at)

        return gradient
