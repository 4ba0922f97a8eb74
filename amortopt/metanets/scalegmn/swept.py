"""What the functional and the editor share: weights are standardized, encoded, and swept through.

Legend: B networks, N nodes of all sets, d width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.scalegmn.encoder import Encoded, GraphEncoder, Networks
from amortopt.metanets.scalegmn.sines import SineChain, spread
from amortopt.metanets.scalegmn.sweep import Sweep
from amortopt.metanets.scalegmn.units import Respects
from amortopt.symmetry import SymmetrySpec
from amortopt.symmetry.alignment.phases import reduce_phases
from amortopt.system.numbers import check_counts

Direction: TypeAlias = Literal["forward", "bidirectional"]
"""Whether sweeps go only along the edges, or also back."""
Start: TypeAlias = Literal["random", "pass"]
"""What sweeps compute before training: features of chance, or the network's own pass."""


class Swept(nn.Module):
    """Base of metanets and functionals that read networks by sweeps; beside `Metanet` or `Functional`.

    A final class names it first, ``class Editor(Swept, Metanet)``, and hands all of its keyword arguments on
    to this constructor, which hands them on to the other base: that has ``spec`` and ``config``.

    Args:
        spec: Symmetry of the family.
        width: Node channels d.
        channels: Edge channels C; divides ``width``.
        sweeps: Sweeps through the network (see `Sweep`).
        frequency: Highest frequency of the sweeps' sines at the start, at least 1.
        respects: ``"scale"``: permutations, scalings and phases; ``"permutation"``: permutations only.
        direction: Whether sweeps go only along the edges (``"forward"``) or also back (``"bidirectional"``).
        start: What the first sweep computes before training. ``"pass"``: what the network answers at d
            inputs spread over [-1, 1], which are learned; for chains of sines, such as SIRENs.
        counts: Names of further arguments in ``config`` that are whole numbers of at least 1.
        shares: Names of further arguments in ``config`` that are shares in [0, 1).
        positive: Names of further arguments in ``config`` that are finite and above 0.
        **config: All other keyword arguments of the final class.

    Attributes:
        scale: Size of the features of every block, by which they are divided; one until ``standardize``.

    Raises:
        ValueError: An argument is out of range; the message names the argument, and choices if there are any.
    """

    spec: SymmetrySpec
    config: dict[str, Any]
    scale: Tensor

    def __init__(
        self,
        spec: SymmetrySpec,
        *,
        width: int,
        channels: int,
        sweeps: int,
        frequency: float,
        respects: Respects,
        direction: Direction,
        start: Start,
        counts: Sequence[str] = (),
        shares: Sequence[str] = (),
        positive: Sequence[str] = (),
        **config: Any,
    ) -> None:
        every = {
            **{"width": width, "channels": channels, "sweeps": sweeps, "frequency": frequency},
            **{"respects": respects, "direction": direction, "start": start},
            **config,
        }
        _check(every, ("width", "channels", "sweeps", *counts), shares, positive)
        super().__init__(spec, **every)
        self.encoder = GraphEncoder(
            spec, width=width, channels=channels, layers=0, heads=1, respects=respects, backward=False
        )
        self.layout = self.encoder.layout
        self.sweeps = nn.ModuleList(
            Sweep(self.layout, width=width, backward=direction == "bidirectional", frequency=frequency)
            for _ in range(sweeps)
        )
        self.register_buffer("scale", torch.ones(len(self.layout.blocks)))
        self._chain = SineChain.of(spec, self.layout) if start == "pass" else None

    @torch.no_grad()
    def standardize(self, params: Params) -> None:
        """Divide weights by the size that they have in these networks; once, before training.

        With ``start="pass"`` this is also where the first sweep becomes the network's own pass.

        Args:
            params: Params [B, ...], such as those of the training networks.
        """
        for number, feature in enumerate(self.read(params).features):
            size = feature.square().mean().sqrt()
            self.scale[number] = torch.where(size > 0, size, 1.0)
        if self._chain is not None:
            self._start_as_pass(self._chain)

    def _start_as_pass(self, chain: SineChain) -> None:
        """Let every channel of the first sweep be the networks' pass at an input."""
        layout, encoder, sweep = self.layout, self.encoder, self.sweeps[0]
        assert isinstance(sweep, Sweep)
        width, split = int(self.config["width"]), len(layout.node_blocks)
        # Units send sines, input units too.
        encoder.odd_index[str(chain.input)].copy_(torch.asin(spread(layout.nodes[chain.input].size, width)))
        encoder.odd_index[str(chain.output)].zero_()
        sweep.omega.fill_(1)
        if sweep.backward:
            sweep.omega_back.fill_(1)
        # sin(c (W x + b)): what arrives is c (W x + b), of standardized W and b.
        for number, block in enumerate(layout.node_blocks):
            linear = encoder.read_node[number]
            assert isinstance(linear, nn.Linear)
            linear.weight.fill_(chain.factors[block.node] * float(self.scale[number]))
        for number, (block, mix) in enumerate(zip(layout.edge_blocks, encoder.read_edge, strict=True)):
            factor = chain.factors[block.out] * float(self.scale[split + number])
            mix.fill_(1)
            sweep.from_in[number].copy_(factor * torch.eye(width, dtype=torch.float64))

    def read(self, params: Params) -> Networks:
        """Networks [B, ...] of one architecture in canonical scaling, phases reduced; not standardized."""
        if self.config["respects"] == "scale":
            params = reduce_phases(self.spec, params)
        return self.encoder.read(params)

    def standardized(self, raw: Networks) -> Networks:
        """The same networks, every block's features divided by its ``scale``."""
        scale = self.scale.to(raw.features[0])
        return replace(raw, features=[x / s for x, s in zip(raw.features, scale, strict=True)])

    def sweep(self, networks: Sequence[Networks]) -> Encoded:
        """Standardized networks of every architecture, encoded, after all sweeps: features [N, d]."""
        encoded = self.encoder(networks)
        for sweep in self.sweeps:
            even, odd = sweep(encoded.wiring, encoded.even, encoded.odd, encoded.edges)
            encoded = replace(encoded, even=even, odd=odd)
        return encoded


def _check(
    config: Mapping[str, Any], counts: Sequence[str], shares: Sequence[str], positive: Sequence[str]
) -> None:
    """Raise a ``ValueError`` for the first argument that is out of range."""
    check_counts(**{name: config[name] for name in counts})
    if config["width"] % config["channels"]:
        raise ValueError(f"channels: got {config['channels']}, expected a divisor of width={config['width']}")
    if not 1 <= config["frequency"] < math.inf:
        raise ValueError(f"frequency: got {config['frequency']}, expected at least 1")
    choices_of = {"respects": get_args(Respects), "direction": get_args(Direction), "start": get_args(Start)}
    for name, choices in choices_of.items():
        if config[name] not in choices:
            raise ValueError(f"{name}: got {config[name]!r}, expected {' or '.join(map(repr, choices))}")
    for name in shares:
        if not 0 <= config[name] < 1:
            raise ValueError(f"{name}: got {config[name]!r}, expected a share in [0, 1)")
    for name in positive:
        if not 0 < config[name] < math.inf:
            raise ValueError(f"{name}: got {config[name]!r}, expected a finite number above 0")
