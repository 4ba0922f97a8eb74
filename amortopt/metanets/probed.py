"""A functional that runs networks: it reads what each answers at inputs that it has learned.

Legend: B networks, n probes, k outputs of a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import apply_many
from amortopt.metanets.base import Functional, register
from amortopt.symmetry import SymmetrySpec
from amortopt.system.numbers import check_counts
from amortopt.tasks.families import family_from


@register("probed_functional")
class ProbedFunctional(Functional):
    """The networks' answers at learned inputs, read by an MLP (Herrmann et al. 2024, Kahana et al. 2024).

    Needs no data: the inputs, called probes, start as noise and are learned with the MLP. Where there are
    examples, ``start_from`` lets them start there. What a network answers depends on its function alone, so
    every symmetry is respected, known or not. Answers of several numbers are read as logits: relative to
    their mean, and as probabilities.

    Args:
        spec: Symmetry of the family.
        head: What the numbers mean, see [Functional][amortopt.metanets.Functional]; not one about units.
        family: ``name`` of the family of networks and its arguments, as
            [make_family][amortopt.tasks.make_family] takes them.
        probes: Number of inputs n.
        hidden: Units of the MLP's two hidden layers.
        dropout: Share of the answers and hidden units that training drops.

    Raises:
        ValueError: An argument is out of range, or the family is none or has other parameters than the spec.
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        *,
        head: Mapping[str, Any],
        family: Mapping[str, Any],
        probes: int = 64,
        hidden: int = 256,
        dropout: float = 0.2,
    ) -> None:
        made = family_from(family)
        super().__init__(
            spec, head=head, family=made.to_config(), probes=probes, hidden=hidden, dropout=dropout
        )
        check_counts(probes=probes, hidden=hidden)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: got {dropout!r}, expected a share in [0, 1)")
        if self.head.units is not None:
            raise ValueError(
                "head.units: got a group, expected none: answers say nothing of single units; use "
                "scalegmn_functional"
            )
        with torch.random.fork_rng(devices=[]):
            network = made.build().requires_grad_(False)
            with torch.no_grad():
                outputs = network(made.example_input())[0].numel()
        if missing := sorted(set(spec.params) ^ {name for name, _ in network.named_parameters()}):
            raise ValueError(f"family: got {made}, which differs from the spec in {', '.join(missing)}")
        # In a tuple, because a module would become part of the state.
        self._network = (network,)
        self.probes = nn.Parameter(torch.randn(probes, *made.input_shape))
        read = probes * outputs * (2 if outputs > 1 else 1)
        self.norm = nn.BatchNorm1d(read, affine=False)  # answers have very different sizes
        self.trunk = nn.Sequential(
            *(nn.Dropout(dropout), nn.Linear(read, hidden), nn.GELU(), nn.Dropout(dropout)),
            *(nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(dropout)),
        )
        self.last = nn.Linear(hidden, self.head.raw)

    @torch.no_grad()
    def start_from(self, inputs: Tensor) -> None:
        """Let the probes start at inputs, such as examples without their labels, instead of noise.

        Args:
            inputs: [n, *input_shape], as many as there are probes.

        Raises:
            ValueError: The shape is another one, or an input is NaN or infinite.
        """
        if inputs.shape != self.probes.shape or not bool(inputs.isfinite().all()):
            raise ValueError(
                f"inputs: got shape {tuple(inputs.shape)}, expected finite ones {tuple(self.probes.shape)}, "
                "one a probe"
            )
        self.probes.copy_(inputs)

    def standardize(self, params: Params) -> None:
        """Nothing: weights are not read."""

    def raw(self, networks: Sequence[Params]) -> list[Tensor]:
        return [self.last(self.trunk(self.norm(self._answers(params)))) for params in networks]

    def _answers(self, params: Params) -> Tensor:
        """What B networks answer at the probes, [B, n k], or [B, 2 n k] of several outputs."""
        answers = apply_many(self._network[0], params, self.probes).flatten(2)  # [B, n, k]
        if answers.shape[-1] == 1:
            return answers.flatten(1)
        centred = answers - answers.mean(-1, keepdim=True)
        return torch.cat([centred.flatten(1), answers.softmax(-1).flatten(1)], 1)
