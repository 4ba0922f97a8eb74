r"""ScaleGMN as an editor that descends: its messages begin as the network's own pass and backpropagation.

Messages along the edges at d channels, with a sine at every unit, are what a network of sines computes at d
inputs; the channels of its output units are its answers there. A map of all answers says what they should
become, and messages against the edges carry the difference back, as backpropagation does:

.. math::
    v_o = \sum_i E_{oi}\,(\alpha \odot a_i) + \beta \odot b_o, \qquad a_i = \sin v_i \\
    w_i = \cos v_i \odot \sum_o E_{oi}\,(\gamma \odot w_o), \qquad
    \Delta E_{oi} = \sum_c \delta_c\,w_{oc}\,a_{ic}, \qquad \Delta b_o = \sum_c \epsilon_c\,w_{oc}

All of it commutes with permutations and signs, whatever the inputs, the map and the channels' factors are;
they are learned. Several such rounds follow each other, each on the weights that the last one left.

Legend: B networks, n nodes of one set, d width, k outputs of a network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.base import Metanet, check_params, register
from amortopt.metanets.conditions import Conditions
from amortopt.metanets.scalegmn.encoder import GraphEncoder, Networks, usual_size
from amortopt.metanets.scalegmn.layout import GraphLayout
from amortopt.metanets.scalegmn.sines import SineChain, spread
from amortopt.metanets.scalegmn.wiring import DenseWiring
from amortopt.symmetry import SymmetrySpec
from amortopt.symmetry.alignment.phases import reduce_phases
from amortopt.system.numbers import check_counts

_NONE = Conditions()
_LIMIT = 0.5  # of a round's change of a block, in sizes of its weights


@dataclass(frozen=True)
class Batch:
    """Networks in the middle of an edit.

    Attributes:
        wiring: The batch.
        nodes: Rows [n, 1] of every node block.
        edges: Edges of every edge block, one channel.
    """

    wiring: DenseWiring
    nodes: list[Tensor]
    edges: list[Tensor]

    def moved(self, nodes: Sequence[Tensor], edges: Sequence[Tensor]) -> Batch:
        """The batch with changes added."""
        return Batch(
            self.wiring,
            [x + change for x, change in zip(self.nodes, nodes, strict=True)],
            [x + change for x, change in zip(self.edges, edges, strict=True)],
        )


class Round(nn.Module):
    """Messages forward and back over one layout, and the changes that follow; factors of every channel.

    Args:
        layout: The graph's structure.
        width: Channels d.
        outputs: Numbers that a network answers at an input.
        proposals: Maps from what answers lack to what is sent back.

    Attributes:
        bias: Of every node block, on the way forward.
        forth: Of every edge block, on the way forward.
        back: Of every edge block, on the way back.
        node_change: Of every node block's change.
        edge_change: Of every edge block's change.
        sent: Maps of what answers lack; the identity at first, or, of several, near to it.
    """

    def __init__(self, layout: GraphLayout, *, width: int, outputs: int, proposals: int) -> None:
        super().__init__()
        self.layout = layout
        factors = lambda blocks: nn.ParameterList(torch.ones(width) for _ in blocks)  # noqa: E731
        self.bias, self.node_change = factors(layout.node_blocks), factors(layout.node_blocks)
        self.forth, self.back = factors(layout.edge_blocks), factors(layout.edge_blocks)
        self.edge_change = factors(layout.edge_blocks)
        self.sent = nn.ModuleList(nn.Linear(outputs * width, outputs * width) for _ in range(proposals))
        for linear in self.sent:
            assert isinstance(linear, nn.Linear)
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)
            if proposals > 1:  # of equal ones all would learn the same
                with torch.no_grad():
                    linear.weight.add_(0.2 * torch.randn_like(linear.weight) / linear.weight.shape[1] ** 0.5)

    def answers(self, batch: Batch, inputs: Tensor) -> tuple[dict[int, Tensor], list[Tensor]]:
        """Forward: what arrives at the units of every written set [n, d], and what each edge block's read
        set sends.

        Args:
            batch: The networks.
            inputs: What input units send, [n, d].
        """
        arrived: dict[int, Tensor] = {}
        for block, x, factor in zip(self.layout.node_blocks, batch.nodes, self.bias, strict=True):
            arrived[block.node] = arrived.get(block.node, 0) + x * factor
        sent = []
        for block, edges, factor in zip(self.layout.edge_blocks, batch.edges, self.forth, strict=True):
            sent.append(torch.sin(arrived[block.into]) if block.into in arrived else inputs)
            message = batch.wiring.to_out(block, edges, sent[-1] * factor)
            arrived[block.out] = arrived.get(block.out, 0) + message
        return arrived, sent

    def changes(
        self, batch: Batch, arrived: Mapping[int, Tensor], sent: Sequence[Tensor], errors: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Back: rows per node block and edges per edge block that are to be added.

        Args:
            batch: The networks.
            arrived: What ``answers`` returned.
            sent: What ``answers`` returned.
            errors: What output units send back, [n, d].
        """
        blocks = self.layout.edge_blocks
        back = {blocks[-1].out: errors}
        for k, block in reversed(list(enumerate(blocks))):
            if block is not blocks[0]:  # nothing is sent back to the inputs
                message = batch.wiring.to_in(block, batch.edges[k], back[block.out] * self.back[k])
                back[block.into] = message * torch.cos(arrived[block.into])
        nodes = [
            back[block.node] @ factor[:, None]
            for block, factor in zip(self.layout.node_blocks, self.node_change, strict=True)
        ]
        edges = [
            batch.wiring.outer(block, back[block.out] * factor, x, 1)
            for block, factor, x in zip(blocks, self.edge_change, sent, strict=True)
        ]
        by_network = [x.view(-1, batch.wiring.batch, 1) for x in nodes]
        limited = [_limited(x, (0, 2)).flatten(0, 1) for x in by_network]
        return limited, [_limited(x, (1, 2, 3)) for x in edges]


def _limited(change: Tensor, axes: tuple[int, ...]) -> Tensor:
    """A change of every network, at most as large as the limit in the root mean square over axes."""
    return change * torch.rsqrt(1 + change.square().mean(axes, keepdim=True) / _LIMIT**2)


@register("scalegmn_descent")
class ScaleGMNDescent(Metanet):
    """Weights to weights for chains of sines, by rounds of descent on what networks answer at learned inputs.

    Weights are read as a graph, and a network's answers at d learned inputs appear in the channels of its
    output units (see the module's text). A learned map says what they should become; R rounds of messages
    back change the weights towards that, each by at most about half of their size. It starts as the identity.
    What is sent back and the channels' factors are learned, so trained rounds go further than gradients.

    Where a sine follows, biases are first brought within a quarter of a period of zero, which changes no
    function; the result is in this form.

    Args:
        spec: Symmetry of the family: a chain of linear layers with biases and sines.
        width: Learned inputs d.
        rounds: Rounds R.
        hidden: Units of the two hidden layers of the map of answers.
        proposals: Networks k that are made of one, from as many maps in the last round. The mean of their
            answers has at most the mean of their squared errors.
        strength: Size of a round's change, relative to the weights, at the start.

    Raises:
        ValueError: An argument is out of range, or the family is no chain of sines.
    """

    readable = frozenset()
    scale: Tensor

    def __init__(
        self,
        spec: SymmetrySpec,
        *,
        width: int = 400,
        rounds: int = 3,
        hidden: int = 512,
        proposals: int = 1,
        strength: float = 0.03,
    ) -> None:
        counts = {"width": width, "rounds": rounds, "hidden": hidden, "proposals": proposals}
        super().__init__(spec, strength=strength, **counts)
        check_counts(**counts)
        if not 0 < strength < math.inf:
            raise ValueError(f"strength: got {strength!r}, expected a finite number above 0")
        self.encoder = GraphEncoder(
            spec, width=1, channels=1, layers=0, heads=1, respects="scale", backward=False
        ).requires_grad_(False)  # it reads and writes weights; nothing of it is learned
        self.layout = self.encoder.layout
        self.chain = SineChain.of(spec, self.layout)
        outputs = self.layout.nodes[self.chain.output].size
        self.inputs = nn.Parameter(spread(self.layout.nodes[self.chain.input].size, width))
        answers = outputs * width
        self.wanted = nn.Sequential(
            *(nn.Linear(answers, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()),
            nn.Linear(hidden, answers),
        )
        last = self.wanted[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.rounds = nn.ModuleList(
            Round(self.layout, width=width, outputs=outputs, proposals=proposals if last_one else 1)
            for last_one in [False] * (rounds - 1) + [True]
        )
        self.register_buffer("scale", torch.ones(len(self.layout.blocks)))

    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        return {}

    @torch.no_grad()
    def standardize(self, params: Params) -> None:
        """Let messages be the networks' own pass, and changes of a size that suits them; before training.

        Args:
            params: Params [B, ...], such as those of the training networks.
        """
        for number, feature in enumerate(self._read(params).features):
            size = feature.square().mean().sqrt()
            self.scale[number] = torch.where(size > 0, size, 1.0)
        layout, split = self.layout, len(self.layout.node_blocks)
        factors = self.chain.factors  # sin(c (W x + b)): what arrives is c (W x + b), of standardized W and b
        some = {name: p[:64] for name, p in params.items()}
        batch, _ = self._batch(self._read(some))
        for each in self.rounds:
            assert isinstance(each, Round)
            for k, block in enumerate(layout.node_blocks):
                each.bias[k].fill_(factors[block.node] * self.scale[k])
            for k, block in enumerate(layout.edge_blocks):
                each.forth[k].fill_(factors[block.out] * self.scale[split + k])
                each.back[k].fill_(self.scale[split + k])
            # As if each network should answer what the next one does.
            arrived, sent = each.answers(batch, self._inputs(batch))
            answers = self._joined(batch, arrived[self.chain.output])
            errors = self._apart(batch, answers.roll(1, 0) - answers)
            for change in (*each.node_change, *each.edge_change):
                change.fill_(1.0)
            nodes, edges = each.changes(batch, arrived, sent, errors)
            for learned, changes in ((each.node_change, nodes), (each.edge_change, edges)):
                for factor, change in zip(learned, changes, strict=True):
                    size = change.square().mean().sqrt()
                    factor.mul_(torch.where(size > 0, self.config["strength"] / size, 1.0))

    def forward(self, params: Params, conditions: Conditions = _NONE) -> Params:
        """Edit B networks of one architecture: the first proposal.

        Raises:
            ValueError: A condition was given, or the networks are not of the family.
        """
        check_params(self, params)
        conditions.check(self.conditions, len(next(iter(params.values()))))
        return self.propose(params)[0]

    def propose(self, params: Params) -> list[Params]:
        """Edit B networks of one architecture in k ways."""
        raw = self._read(params)
        batch, sizes = self._batch(raw)
        wanted: Tensor | None = None
        proposed: list[Batch] = []
        for each in self.rounds:
            assert isinstance(each, Round)
            arrived, sent = each.answers(batch, self._inputs(batch))
            answers = self._joined(batch, arrived[self.chain.output])
            wanted = answers + self.wanted(answers) if wanted is None else wanted
            proposed = [
                batch.moved(*each.changes(batch, arrived, sent, self._apart(batch, linear(wanted - answers))))
                for linear in each.sent
            ]
            batch = proposed[0]
        return [self._written(raw, sizes, each) for each in proposed]

    def _read(self, params: Params) -> Networks:
        return self.encoder.read(reduce_phases(self.spec, params))

    def _batch(self, raw: Networks) -> tuple[Batch, list[Tensor]]:
        """Standardized networks, and the sizes by which blocks were divided."""
        scales = list(self.scale.to(raw.features[0]))
        features = [x / scale for x, scale in zip(raw.features, scales, strict=True)]
        split, wiring = len(self.layout.node_blocks), DenseWiring(len(features[0]), raw.sizes)
        return Batch(wiring, [wiring.pack_nodes([x.mT]) for x in features[:split]], features[split:]), scales

    def _written(self, raw: Networks, scales: Sequence[Tensor], batch: Batch) -> Params:
        (features,) = self.encoder.split(batch.wiring, batch.nodes, batch.edges)
        values = [
            x * scale * usual_size(block, raw.sizes)
            for block, x, scale in zip(self.layout.blocks, features, scales, strict=True)
        ]
        return self.encoder.write(raw, values, [1.0] * len(values))

    def _inputs(self, batch: Batch) -> Tensor:
        return batch.wiring.units(self.chain.input, self.inputs)

    def _joined(self, batch: Batch, rows: Tensor) -> Tensor:
        """Rows of output units [n, d] -> one row a network [B, k d]."""
        return rows.view(-1, batch.wiring.batch, rows.shape[1]).transpose(0, 1).flatten(1)

    def _apart(self, batch: Batch, joined: Tensor) -> Tensor:
        """The inverse of ``_joined``."""
        return joined.unflatten(1, (-1, self.config["width"])).transpose(0, 1).flatten(0, 1)
