"""A metanet that reads its problem: rounds of gradients between slots, written into each network's gauge."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.base import Metanet, register
from amortopt.metanets.conditions import CONDITIONS, Conditions, Gradient, checked
from amortopt.metanets.rounds.gauge import SlotGauge
from amortopt.metanets.rounds.matrices import Matrices
from amortopt.metanets.rounds.rule import RoundRule, Source
from amortopt.metanets.scalegmn.readout import Blend
from amortopt.metanets.scalegmn.units import Respects
from amortopt.symmetry import SymmetrySpec, act
from amortopt.symmetry.alignment.scales import balancing
from amortopt.system.numbers import check_counts

Reading: TypeAlias = Literal["batch", "function", "both"]
"""What a pass takes gradients of: its batch, its function, or each of the two."""

_NONE = Conditions()
_RISE = (0.02, 0.3)
"""Shares of meta-training between which the share of zeros rises, as a cubic (Zhu and Gupta 2017)."""
_FOLLOW = 0.03
"""Share by which a mean square moves to that of the networks at hand."""
_SOURCES: dict[Reading, tuple[str, ...]] = {
    "batch": ("batch",),
    "function": ("function",),
    "both": ("batch", "function"),
}


@register("rounds")
class Rounds(Metanet):
    r"""One pass that reads its problem: R gradients, each turned into the next proposal by learned maps.

    The pass starts from learned prototype weights, not from the network's. In every round it takes a
    gradient at its proposal and moves by a learned map of it (see
    [RoundRule][amortopt.metanets.rounds.rule.RoundRule]): the gradient of the problem's objective on the
    batch, of the divergence from what the given network answers to probes, or both. Each of these
    readings has maps of its own. What comes out is written into the network's gauge: the order, signs and
    scales of its units. So for every element g of the spec's symmetry
    :math:`f(g \cdot \theta) = g \cdot f(\theta)`, whatever the maps are; for units that the gauge cannot
    tell apart, the two sides are equal as functions. A pass that reads a batch alone takes nothing else
    from the network: two networks with one batch come out as one function. If it reads ``"l1"``, rounds
    end with learned soft thresholds, which make weights exactly zero; or with ``zeros`` a pass has only
    those weights that meta-training found to be large, as many of them as the strength leaves.

    Args:
        spec: Symmetry of the family.
        shapes: Parameter name -> shape, of the family's networks.
        scales: Parameter name -> unit in which it is learned, where that is not 1, such as
            [Family.scales][amortopt.tasks.Family].
        rounds: Gradients R in a pass.
        portion: Examples that a round reads of larger batches, at least: of N examples each of R rounds reads
            the larger of this and N / R, as far as possible others than the rounds before. With N of at least
            R times this, a pass costs about as much as one gradient of the whole batch. None: every round
            reads the whole batch.
        channels: Channels through which all weights see all gradients.
        hidden: Rows and columns of a channel.
        step: Size of steps before meta-training, in units of plain gradient steps: small enough that they do
            not diverge from a prototype that is not trained yet.
        conditions: What it can read: ``"batch"``, ``"function"`` or both, and ``"l1"`` if wanted.
        probes: Number of inputs that a network's function is read at.
        input_shape: Shape of one input; needed to read functions.
        respects: ``"scale"``: permutations and scalings; ``"permutation"``: only permutations (the ablation).
        l1_range: Lowest and highest L1 strength that prototypes are spread over, if it reads ``"l1"``.
        l1_knots: Prototypes between them.
        zeros: Shares of the weights (parameters with two or more axes) that are zero at the lowest and at the
            highest strength of ``l1_range``, and linearly in log λ between; at strength 0 none is set to
            zero. Which ones is learned in meta-training, by how large weights are in the mean over problems,
            and the same for all problems. None: learned thresholds decide.
        most_examples: Number of examples beyond which step sizes depend no more on it: the most that a round
            of meta-training reads. See ``set_most_examples``.

    Attributes:
        readings: What it can take gradients of: ``"batch"``, ``"function"``, ``"both"``.
        rank: Position of every weight from the largest to the smallest, [weights] in the order of the
            matrices, if there are ``zeros``.
        probes: Inputs [n, *input_shape] that functions are read at, zeros until they are set; None if it
            reads no functions.

    Raises:
        ValueError: If an argument is out of range.
    """

    readable = CONDITIONS
    rank: Tensor
    mean_square: Tensor

    def __init__(
        self,
        spec: SymmetrySpec,
        *,
        shapes: Mapping[str, Sequence[int]],
        scales: Mapping[str, float] | None = None,
        rounds: int = 1,
        portion: int | None = None,
        channels: int = 8,
        hidden: int = 32,
        step: float = 1.0,
        conditions: Sequence[Literal["batch", "function", "l1"]] = ("batch",),
        probes: int = 256,
        input_shape: Sequence[int] | None = None,
        respects: Respects = "scale",
        l1_range: tuple[float, float] = (1e-4, 2e-2),
        l1_knots: int = 12,
        zeros: tuple[float, float] | None = None,
        most_examples: int = 1000,
    ) -> None:
        super().__init__(
            spec,
            shapes={name: list(shape) for name, shape in shapes.items()},
            scales=dict(scales or {}),
            rounds=rounds,
            portion=portion,
            channels=channels,
            hidden=hidden,
            step=step,
            conditions=sorted(conditions),
            probes=probes,
            input_shape=None if input_shape is None else list(input_shape),
            respects=respects,
            l1_range=list(l1_range),
            l1_knots=l1_knots,
            zeros=None if zeros is None else list(zeros),
            most_examples=most_examples,
        )
        check_counts(rounds=rounds, channels=channels, hidden=hidden, l1_knots=l1_knots, probes=probes)
        check_counts(most_examples=most_examples, **({} if portion is None else {"portion": portion}))
        if not 0 < step < float("inf"):
            raise ValueError(f"step: got {step}, expected a positive number")
        if zeros is not None and ("l1" not in self.conditions or not 0 <= zeros[0] < zeros[1] < 1):
            raise ValueError(
                f"zeros: got {list(zeros)}, expected shares 0 <= lowest < highest < 1, and "
                "'l1' among the conditions; leave it out for learned thresholds"
            )
        if respects not in ("scale", "permutation"):
            raise ValueError(f"respects: got {respects!r}, expected 'scale' or 'permutation'")
        self.readings: list[Reading] = [
            reading for reading, sources in _SOURCES.items() if self.conditions.issuperset(sources)
        ]
        if not self.readings:
            raise ValueError(
                f"conditions: got {sorted(conditions)}, expected 'batch' or 'function' among them: rounds "
                "read gradients"
            )
        if missing := sorted(set(spec.params) - set(shapes)):
            raise ValueError(f"shapes: got none of {', '.join(missing)}, expected one for every parameter")
        if "function" in self.conditions:
            if input_shape is None:
                raise ValueError("input_shape: got none, expected the shape of one input, to read functions")
            self.probes = torch.zeros(probes, *input_shape)
        self.rounds = rounds
        if wrong := {name: s for name, s in self.config["scales"].items() if name not in shapes or not s > 0}:
            raise ValueError(f"scales: got {wrong}, expected positive numbers for names of parameters")
        self.matrices = Matrices(self.config["shapes"], self.config["scales"])
        self.gauge = SlotGauge(spec, respects)
        self.share_of_zeros = 1.0
        if zeros is not None:
            count = sum(o * n for (o, _), n in zip(self.matrices.sizes, self.matrices.weights(), strict=True))
            self.register_buffer("rank", torch.arange(count))
            self.register_buffer("mean_square", torch.zeros(count))
        self.blend = Blend(*l1_range, l1_knots) if "l1" in self.conditions else None
        first = []
        for rows, columns in self.matrices.sizes:
            # Normal, 1 / sqrt(fan in); biases, in the last column, are zero.
            matrix = torch.randn(rows, columns) / max(1, columns - 1) ** 0.5
            first.append(torch.cat([matrix[:, :-1], torch.zeros(rows, 1)], 1))
        self.rules = nn.ModuleDict(
            {
                reading: RoundRule(
                    first,
                    rounds=rounds,
                    channels=channels,
                    hidden=hidden,
                    step=step,
                    blends=1 if self.blend is None else self.blend.count,
                    sources=len(_SOURCES[reading]),
                    most_examples=most_examples,
                    thresholds=zeros is None,
                )
                for reading in self.readings
            }
        )

    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        """Prototypes, and the maps as matrices; gates, step sizes and momenta are neither."""
        maps = ("left", "right", "mix_left", "mix_right", "mix_bias", "back_left", "back_right")
        roles: dict[str, list[nn.Parameter]] = {"matrix": [], "prototype": []}
        for rule in self.rules.values():
            roles["prototype"] += [*cast("RoundRule", rule).prototype]
            roles["matrix"] += [
                p
                for name, p in rule.named_parameters()
                if name.split(".")[0] in maps and min(p.shape[-2:]) > 1
            ]
        return roles

    @torch.no_grad()
    def start_from(self, params: Params) -> None:
        """Let the prototype be one network's params, before meta-training."""
        matrices = self.matrices.pack({name: p[None] for name, p in params.items()})
        for reading in self.readings:
            for prototype, matrix in zip(self.rule(reading).prototype, matrices, strict=True):
                prototype[0] = matrix[0]

    def set_most_examples(self, batch: int) -> None:
        """State the most examples of a batch in meta-training; larger ones get the step sizes of so many.

        With portions, those of what one of R rounds reads of such a batch: 200 of 1,000 examples, with R = 6
        and a portion of 200. Passes with fewer rounds read more at once, for which no step size was learned.
        """
        most, portion = batch, self.config["portion"]
        if portion is not None:
            most = min(batch, max(portion, -(-batch // self.rounds)))
        self.config["most_examples"] = most
        for reading in self.readings:
            self.rule(reading).most_examples = most

    def open_gates(self) -> None:
        """Nothing to open: a pass starts from its prototype, never from the network."""

    def reading_of(self, conditions: Conditions) -> Reading:
        """What a pass with these conditions takes gradients of."""
        if conditions.gradient is None:
            return "function"
        return "batch" if conditions.function is None else "both"

    def rule(self, reading: Reading) -> RoundRule:
        """The maps of one reading."""
        return cast("RoundRule", self.rules[reading])

    def forward(self, params: Params, conditions: Conditions = _NONE) -> Params:
        """Improve B networks of one architecture; see [Metanet][amortopt.metanets.Metanet]."""
        return self.after_rounds(params, conditions)[-1]

    def after_rounds(
        self, params: Params, conditions: Conditions, rounds: int | None = None, *, written: bool = True
    ) -> list[Params]:
        """What the pass has come to after 0, 1, ... rounds, each written into the networks' gauge.

        Args:
            params: As for ``forward``.
            conditions: As for ``forward``.
            rounds: At most as many as the metanet has, by default all.
            written: Without it, weights stay between slots where that is another form of the same networks:
                for whoever asks only for their functions, and saves the time.

        Raises:
            ValueError: If a condition is missing or was not declared, or there are not so many rounds.
        """
        count = len(next(iter(params.values())))
        conditions.check(self.conditions, count)
        if rounds is not None and not 0 <= rounds <= self.rounds:
            raise ValueError(f"rounds: got {rounds}, expected 0 to {self.rounds}")
        if conditions.gradient is not None and conditions.examples is None:
            raise ValueError(
                "conditions.examples: got none, expected the number of examples of each network's batch [B]"
            )
        blend = next(iter(params.values())).new_ones(count, 1)
        if self.blend is not None and conditions.l1 is not None:
            blend = self.blend(conditions.l1)
        reading = self.reading_of(conditions)
        keep = None
        if self.config["zeros"] is not None and conditions.l1 is not None:
            keep = self._keep(self.share_of_zeros * self.zeros_at(conditions.l1))
        sources = self._sources(reading, conditions, count, self.rounds if rounds is None else rounds)
        proposals = self.rule(reading)(sources, blend, keep)
        slots = [self.matrices.unpack(proposal) for proposal in proposals]
        if not written and self.gauge.writes_all(params) and self._of_the_familys_widths(params):
            return slots
        gauge = self.gauge(params)
        return [gauge.write(each) for each in slots]

    def _of_the_familys_widths(self, params: Params) -> bool:
        """Whether networks have as many units as there are slots."""
        return all(tuple(p.shape[1:]) == tuple(self.config["shapes"].get(n, ())) for n, p in params.items())

    def zeros_at(self, l1: Tensor) -> Tensor:
        """Share of the weights that a pass at strengths [B] sets to zero, where the config has ``zeros``."""
        low, high = (math.log(strength) for strength in self.config["l1_range"])
        least, most = self.config["zeros"]
        position = ((l1.clamp(min=1e-30).log() - low) / (high - low)).clamp(0, 1)
        return torch.where(l1 > 0, least + (most - least) * position, 0)

    def set_progress(self, share: float) -> None:
        """State how much of meta-training is done: fewer weights are zero in its first third, and then all.

        While that share rises, weights are ranked by their sizes; then the ranks stay as they are.
        """
        if self.config["zeros"] is not None:
            done = min(1.0, max(0.0, share - _RISE[0]) / (_RISE[1] - _RISE[0]))
            if self.training and done < 1:
                self.rank_weights()
            self.share_of_zeros = 1 - (1 - done) ** 3

    def strength_for(self, zeros: float) -> float:
        """The strength at which a pass sets this share of the weights to zero: what ``zeros_at`` undoes.

        Raises:
            ValueError: The share lies beyond the highest strength.
        """
        least, most = self.config["zeros"]
        if zeros > most:
            raise ValueError(f"zeros: got {zeros}, expected at most {most}, which this metanet was made for")
        if zeros < least:
            return 0.0
        low, high = self.config["l1_range"]
        return low * (high / low) ** ((zeros - least) / (most - least))

    def _keep(self, zeros: Tensor) -> Callable[[list[Tensor]], list[Tensor]]:
        """What sets a share [B] of the weights of proposals to zero: those of the last ranks."""
        kept = (self.rank < (len(self.rank) * (1 - zeros[:, None])).round()).to(zeros)  # [B, weights]
        masks = [
            # Biases, in the last column, stay.
            F.pad(part.unflatten(1, (o, n)), (0, i - n), value=1.0) if n else None
            for part, (o, i), n in self._parts(kept)
        ]

        def keep(matrices: list[Tensor]) -> list[Tensor]:
            if self.training:
                self._observe(matrices)
            return [m if mask is None else m * mask for m, mask in zip(matrices, masks, strict=True)]

        return keep

    def _parts(self, flat: Tensor) -> list[tuple[Tensor, tuple[int, int], int]]:
        """Split all weights [B, weights]: those of each matrix, its size, its columns that are weights."""
        columns = self.matrices.weights()
        sizes = [o * n for (o, _), n in zip(self.matrices.sizes, columns, strict=True)]
        return list(zip(flat.split(sizes, 1), self.matrices.sizes, columns, strict=True))

    @torch.no_grad()
    def _observe(self, matrices: list[Tensor]) -> None:
        """Follow the mean square of every weight, before any is set to zero."""
        columns = self.matrices.weights()
        squares = [m[:, :, :n].square().mean(0).flatten() for m, n in zip(matrices, columns, strict=True)]
        self.mean_square.lerp_(torch.cat(squares).to(self.mean_square), _FOLLOW)

    @torch.no_grad()
    def rank_weights(self) -> None:
        """Order the weights by their mean squares, in balanced scales."""
        parts = self._parts(self.mean_square.sqrt()[None])
        rows = [F.pad(part.unflatten(1, (o, n)), (0, i - n)) for part, (o, i), n in parts]
        sizes = {name: p[0].double().cpu() for name, p in self.matrices.unpack(rows).items()}
        sizes = act(self.spec, balancing(self.spec, sizes), sizes)
        packed = self.matrices.pack({name: p[None] for name, p in sizes.items()})
        columns = self.matrices.weights()
        flat = torch.cat([m[0, :, :n].flatten() for m, n in zip(packed, columns, strict=True)])
        self.rank[flat.argsort(descending=True, stable=True)] = torch.arange(len(flat)).to(self.rank)

    def begin(self, reading: Reading, trained: Reading | None = None, rounds: int | None = None) -> None:
        """Begin to meta-train a reading where another one is.

        Args:
            reading: The one to begin.
            trained: Where its maps and prototypes are copied from; by default from itself.
            rounds: How many rounds of that are trained; further ones repeat the last. By default all.
        """
        self.rule(reading).copy_from(self.rule(trained or reading), rounds)

    def calibrate(self, conditions: Conditions) -> None:
        """Bring gradients to about unit size before they are mixed; once, before a first stage."""
        reading = self.reading_of(conditions)
        rule = self.rule(reading)
        count = 1 if conditions.examples is None else len(conditions.examples)
        blend = rule.step.new_zeros(count, len(rule.prototype[0]))
        blend[:, 0] = 1
        rule.calibrate(self._sources(reading, conditions, count, 1)[0], blend)

    def _sources(
        self, reading: Reading, conditions: Conditions, count: int, rounds: int
    ) -> list[list[Source]]:
        """What each of so many rounds reads."""
        read: list[list[Source]] = []
        if "batch" in _SOURCES[reading]:
            read.append(self._of_batch(conditions, rounds))
        if "function" in _SOURCES[reading]:
            assert conditions.function is not None
            probes = self.rule(reading).step.new_full((count,), self.config["probes"])
            read.append([self._source(conditions.function, "function", probes)] * rounds)
        return [list(sources) for sources in zip(*read, strict=True)]

    def _of_batch(self, conditions: Conditions, rounds: int) -> list[Source]:
        """The whole batch in every round, or portions of it."""
        assert conditions.gradient is not None and conditions.examples is not None
        least, portions = self.config["portion"], conditions.portions
        if least is None or portions is None or rounds < 2 or float(conditions.examples.max()) <= least:
            return [self._source(conditions.gradient, "gradient", conditions.examples)] * rounds
        read = portions(rounds, least)
        if len(read) != rounds:
            raise ValueError(
                f"conditions.portions: got {len(read)} for {rounds} rounds, expected one for each"
            )
        return [self._source(gradient, "portions", examples) for gradient, examples in read]

    def _source(self, gradient: Gradient, name: str, examples: Tensor) -> Source:
        """A gradient by params as one by matrices; errors call it ``conditions.<name>``."""

        def by_matrices(matrices: list[Tensor]) -> list[Tensor]:
            return self.matrices.pack_gradient(checked(gradient, self.matrices.unpack(matrices), name))

        return Source(by_matrices, examples)
