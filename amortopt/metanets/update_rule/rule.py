"""An update rule: a metanet that reads weights, gradients and their history, and returns a direction.

Legend: B networks, N elements of all parameters, L blocks of a bucket, R rows, F features, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from amortopt.metanets.base import UpdateRule, register
from amortopt.metanets.update_rule.history import (
    MOMENTA,
    SIZES,
    TINY,
    RuleState,
    accumulate,
    divide_by_roots,
    fresh_state,
    length,
    muon,
)
from amortopt.metanets.update_rule.layer import SharedUNFLayer
from amortopt.metanets.update_rule.layout import AXIS_ROLES, CLASSES, Bucket, Side, UpdateLayout

Reach: TypeAlias = Literal["unf", "deepset", "mlp", "none"]
"""What a network adds to the base direction of an element depends on: everything; its own block; the same
element. None: no network, the direction is the base."""

TERMS = 4
"""Directions beside the base: Adam's, the same of the slow momentum and of the gradient, the weight."""
CONTEXT = 11
"""Numbers per block: see ``UNFRule._context``."""
SHARES = 4
"""Numbers per row: its shares in the block's slow momentum, second moment, weight and base, as logarithms."""
BOUND = 8.0
"""Largest absolute value of a normalised feature, and of a logarithm in the context."""
GATE, TERM = 1.0, 1.0
"""Largest absolute value of the logarithm of a row's gate, and of the factor of a term."""
SMALLEST, LARGEST = -4.0, 1.0
"""Range of the logarithm, to base 2, of the size of a block's direction over the base's."""


@register("update_rule")
class UNFRule(UpdateRule):
    r"""A learned direction for the parameters of any base network, which starts as Muon's and Adam's.

    .. math:: W \leftarrow W - \eta\, d, \qquad
        d = 2^{s} \operatorname{rms}(b)\, \frac{y}{\operatorname{rms}(y)}, \qquad
        y_{ij} = e^{p_i + q_j}\, \hat b_{ij} + \sum_k c_k\, \hat x_{k,ij}

    per block of a parameter, where :math:`\hat x` is x over its root mean square. The base direction b is
    Muon's (Jordan et al. 2024) for matrices and kernels that write hidden units: a mixture ``mix`` of the
    gradient and its averages, orthogonalized, times the root of rows over columns if that is above 1. For all
    else, vectors, embeddings and heads, it is Adam's times ``vector_rate`` or ``table_rate``. The layout of
    the network knows which is which. The terms :math:`x_k` are Adam's direction, the same of the slow
    momentum and of the gradient, and the weight.

    An equivariant network over all parameters (Zhou, Finn and Harrison 2024, sec. 4.3) gives a gate p, q of
    every row and column, and the size s and the factors c of every block. Gates come from two layers over
    rows ([SharedUNFLayer][amortopt.metanets.update_rule.layer.SharedUNFLayer]), which see how the squares of
    weights, momenta and second moments are spread over the units; s and c from a layer over blocks, which
    sees how noisy the gradient is, how long a step is beside the weights, and the shape. In a fresh rule all
    are 0, so with the defaults it is Muon and Adam exactly.

    The direction depends neither on the scale of the loss nor on the size of the network. Its root mean
    square over a block is at most twice the base direction's:

    - a matrix with n columns (a kernel: inputs times positions): :math:`2 \cdot 1.21/\sqrt n`;
    - anything else: 4.7 times its rate, since Adam's direction is at most 2.35 for these decays.

    The first steps have little to go by: at the first, all averages are the one gradient, and Adam's
    direction is its sign. With a ``ramp`` of k steps, step t < k is t / k of that.

    A step reads four numbers of state per element, and one per network if there is a ``floor``.

    Args:
        net: ``"unf"``, or what depends on less: ``"deepset"`` on the own block, with no gates; ``"mlp"`` on
            the own element, through ``depth`` layers in place of all that is above; ``"none"``: no network,
            only the numbers below.
        width: Channels of the layers.
        depth: Layers over elements of the net ``"mlp"``; the others have none.
        vector_rate: Learning rate of vectors, as a multiple of Muon's.
        table_rate: Learning rate of embeddings and heads, likewise.
        mix: What Muon orthogonalizes: factors of the gradient and of its three averages.
        floor: The steps of a network whose weights start small are shorter, down to this factor, see
            `length`; 1: they are as long as all others.
        sizes: Whether the network also gives the size s of every block's direction. Without, s is 0: the size
            is the base's, and what is learned cannot take the place of a learning rate.
        ramp: Steps after which steps have their full length; 1: all do.
        damping: For derivatives through a step, second moments count as constant, and as larger by so many
            times their block's mean; 0 for exact derivatives. The step itself does not depend on it.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        net: Reach = "unf",
        *,
        width: int = 16,
        depth: int = 2,
        vector_rate: float = 0.2,
        table_rate: float = 0.2,
        mix: Sequence[float] = (0.05, 0.0, 0.95, 0.0),
        floor: float = 1.0,
        ramp: int = 1,
        sizes: bool = True,
        damping: float = 0.1,
    ) -> None:
        super().__init__()
        rates = {"vector_rate": vector_rate, "table_rate": table_rate}
        self.config: dict[str, Any] = {"net": net, "width": width, "depth": depth, **rates}
        self.config |= {"mix": mix, "floor": floor, "ramp": ramp, "sizes": sizes, "damping": damping}
        _check(**self.config)
        self.config["mix"] = [float(factor) for factor in mix]
        self.net, self.floor, self.ramp, self.sizes, self.damping = net, floor, ramp, sizes, damping
        self.mix, self.rates = self.config["mix"], {"vector": vector_rate, "table": table_rate}
        classes = len(CLASSES)
        if net == "none":
            return

        def matrix(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(classes, rows, columns) * math.sqrt(1 / columns))

        if net == "mlp":
            channels = [TERMS + 1, *[width] * depth]
            self.elements = nn.ParameterList([matrix(m, n) for n, m in pairwise(channels)])
            self.biases = nn.ParameterList(
                [nn.Parameter(torch.zeros(classes, width, 1)) for _ in range(depth)]
            )
            self.element_out = nn.Parameter(torch.zeros(classes, 2, width))  # gate and term
            return
        self.block = matrix(width, CONTEXT * (2 if net == "unf" else 1))
        self.block_out = nn.Parameter(torch.zeros(classes, 1 + TERMS, width))  # s and c
        if net == "unf":
            self.rows = nn.ModuleList([SharedUNFLayer(SHARES, width), SharedUNFLayer(width, width)])
            self.row_out = nn.Parameter(torch.zeros(len(AXIS_ROLES), width, 1))

    state_sizes = SIZES
    """Entry of the state -> numbers per element."""

    @property
    def shared_entries(self) -> tuple[str, ...]:
        """Entries of the state that are one number for a network."""
        return ("step", "length") if self.floor < 1 else ("step",)

    def init_state(self, layout: UpdateLayout, flat: Tensor) -> RuleState:
        """State before the first step, all zeros, for parameters ``flat`` [*batch, N]."""
        dtype = next((p.dtype for p in self.parameters()), torch.promote_types(flat.dtype, torch.float32))
        state = fresh_state(layout, flat, dtype)
        return state | ({"length": torch.zeros_like(state["step"])} if self.floor < 1 else {})

    def of_vectors(self, vectors: Tensor) -> dict[str, Tensor]:
        """The parameters of B rules, for a step of B networks with one rule each.

        ``functional_call(rule, rule.of_vectors(vectors), (layout, flat, grads, state))`` is that step: a
        batched product where ``vmap`` over steps takes several times as long.

        Args:
            vectors: The rules, [B, M], in the order of ``parameters_to_vector``.

        Returns:
            Name -> parameters, with the axis of networks after that of classes or axis roles.
        """
        named = dict(self.named_parameters())
        parts = vectors.split([p.numel() for p in named.values()], dim=1)
        many = {}
        for (name, p), part in zip(named.items(), parts, strict=True):
            value = part.unflatten(1, p.shape)  # [B, *shape]
            many[name] = value.transpose(0, 1) if p.ndim > 2 else value
        return many

    def forward(
        self, layout: UpdateLayout, flat: Tensor, grads: Tensor, state: RuleState, *, inplace: bool = False
    ) -> tuple[Tensor, RuleState]:
        """One step.

        Args:
            layout: Of the base network.
            flat: Its parameters, [*batch, N].
            grads: Gradients of its loss, [*batch, N].
            state: From ``init_state`` or the step before.
            inplace: Whether tensors of ``state`` may be overwritten.

        Returns:
            The direction, to be subtracted from ``flat`` times a learning rate, [*batch, N]; and the new
            state.
        """
        batch = flat.shape[:-1]
        if len(batch) != 1:
            size = math.prod(batch)
            inner = {key: value.reshape((size, *value.shape[len(batch) :])) for key, value in state.items()}
            out, inner = self(layout, flat.reshape(size, -1), grads.reshape(size, -1), inner, inplace=inplace)
            kept = {key: value.reshape((*batch, *value.shape[1:])) for key, value in inner.items()}
            return out.reshape(flat.shape), kept
        lengths = self._length(layout, flat, state)  # before the step is counted, which may be in place
        state = accumulate(state, grads, inplace) | lengths
        if self.net == "none":
            over_root = divide_by_roots(
                layout, state["second"][:, 0], state["step"].unsqueeze(-1), self.damping
            )
            adam = over_root(state["momenta"][:, 0]) / (1 - MOMENTA[0] ** state["step"].unsqueeze(-1))
            base = self._base(layout, layout.split(adam), grads, state)
            return torch.cat([b.flatten(1) for b in base], 1), state
        base, terms = self._directions(layout, flat, grads, state)
        # Root mean squares of terms and base, [B, TERMS + 1, blocks], and one over them.
        sizes = torch.cat(
            [torch.cat([_rms(x, 3), _rms(b, 2).unsqueeze(1)], 1) for x, b in zip(terms, base, strict=True)], 2
        )
        inverse = _inverse(sizes)
        if self.net == "mlp":
            over = layout.split_blocks(inverse)
            each = zip(layout.buckets, base, terms, over, strict=True)
            return _resized(layout, [self._by_element(*one) for one in each], sizes[:, TERMS]), state
        size, factors = self._of_blocks(
            layout, self._context(layout, state["step"], base, terms, sizes, inverse)
        )
        gates = self._gates(layout, flat, state, base) if self.net == "unf" else {}
        factors = layout.split_blocks(factors * inverse[:, :TERMS])
        over = layout.split_blocks(inverse[:, TERMS])
        many = []
        for b, bucket in enumerate(layout.buckets):
            y = base[b] * over[b]
            for side, gate in gates.get(b, ()):
                y = y * side.spread(gate, len(bucket.shape))
            for k in range(TERMS):
                y = torch.addcmul(y, terms[b][:, k], factors[b][:, k])
            many.append(y)
        return _resized(layout, many, sizes[:, TERMS] * size), state

    def _length(self, layout: UpdateLayout, flat: Tensor, state: RuleState) -> RuleState:
        """The entry ``length`` [B] of the state: of the weights before the first step, kept from then on."""
        if self.floor == 1:
            return {}
        return {"length": torch.where(state["step"] == 0, length(layout, flat, self.floor), state["length"])}

    def _directions(
        self, layout: UpdateLayout, flat: Tensor, grads: Tensor, state: RuleState
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Per bucket the base direction [B, L, *shape] and the terms [B, TERMS, L, *shape]."""
        step = state["step"].unsqueeze(-1)
        momenta = state["momenta"].unbind(1)
        over_root = divide_by_roots(layout, state["second"][:, 0], step, self.damping)
        adam, slow = (over_root(momenta[k]) / (1 - MOMENTA[k] ** step) for k in (0, 2))
        terms = layout.split(torch.stack([adam, slow, over_root(grads), flat], 1))
        return self._base(layout, [x[:, 0] for x in terms], grads, state), terms

    def _base(
        self, layout: UpdateLayout, adam: list[Tensor], grads: Tensor, state: RuleState
    ) -> list[Tensor]:
        """Per bucket the base direction [B, L, *shape], from Adam's."""
        read = (grads, *state["momenta"].unbind(1))
        mixed = [(f, layout.split(x)) for f, x in zip(self.mix, read, strict=True) if f]
        base = []
        for b, bucket in enumerate(layout.buckets):
            if (rate := self.rates.get(CLASSES[bucket.kind])) is not None:
                base.append(rate * adam[b])
            else:
                (first, parts), *others = mixed
                mixture = first * parts[b]
                for factor, parts in others:
                    mixture = torch.add(mixture, parts[b], alpha=factor)
                base.append(muon(mixture))
        if self.floor == self.ramp == 1:
            return base
        factor = (state["step"] / self.ramp).clamp(max=1.0)
        factor = factor * state["length"] if self.floor < 1 else factor
        return [b * factor.to(b).view(-1, *[1] * (b.ndim - 1)) for b in base]

    def _context(
        self,
        layout: UpdateLayout,
        step: Tensor,
        base: list[Tensor],
        terms: list[Tensor],
        sizes: Tensor,
        inverse: Tensor,
    ) -> Tensor:
        """What tells blocks apart, free of scales: noise, lengths, shapes, cosines; [B, CONTEXT, blocks]."""
        adam, slow, gradient, weight, own = (sizes + TINY).log().unbind(1)
        shapes = [(b.shape[0], math.prod(b.shape[1:])) for b in layout.buckets for _ in range(b.count)]
        rows, columns = sizes.new_tensor(shapes).log().t().unsqueeze(1).expand(-1, len(sizes), -1)
        logs = torch.stack([adam, slow, gradient, weight - own, rows, columns], 1)
        # Of slow momentum and gradient, base and weight, base and gradient.
        dots = [
            torch.stack([x[:, 1] * x[:, 2], b * x[:, 3], b * x[:, 2]], 1).flatten(3).mean(3)
            for x, b in zip(terms, base, strict=True)
        ]
        cosines = torch.cat(dots, 2) * inverse[:, [1, 4, 4]] * inverse[:, [2, 3, 2]]
        early = step.rsqrt().view(-1, 1, 1).expand(-1, 1, sizes.shape[2])
        ones = torch.ones_like(early)
        return torch.cat([0.2 * logs.clamp(-BOUND, BOUND), cosines, early, ones], 1)

    def _of_blocks(self, layout: UpdateLayout, context: Tensor) -> tuple[Tensor, Tensor]:
        """Sizes [B, blocks] and factors of the terms [B, TERMS, blocks]."""
        if self.net == "unf":  # beside the own block, the mean of all
            context = torch.cat([context, context.mean(2, keepdim=True).expand_as(context)], 1)
        out = []
        for kind, (start, stop) in layout.blocks_by_class.items():
            hidden = (self.block[kind] @ context[:, :, start:stop]).relu()
            out.append(self.block_out[kind] @ hidden)
        size, factors = torch.cat(out, 2).split([1, TERMS], 1)
        size = size[:, 0].clamp(SMALLEST, LARGEST).exp2() if self.sizes else torch.ones_like(size[:, 0])
        return size, TERM * factors.tanh()

    def _gates(
        self, layout: UpdateLayout, flat: Tensor, state: RuleState, base: list[Tensor]
    ) -> dict[int, list[tuple[Side, Tensor]]]:
        """Per bucket that has rows, a positive number for each of them, [B, L, n] per side."""
        if not layout.sides:
            return {}
        squares = torch.stack([state["momenta"][:, 2].square(), state["second"][:, 0], flat.square()], 1)
        parts, last = layout.split(squares), [b.square().unsqueeze(1) for b in base]
        means = []
        for b, side in layout.sides:
            axes = len(layout.buckets[b].shape)
            rows = torch.cat([side.means(x, axes) for x in (parts[b], last[b])], 1)  # [B, SHARES, L, n]
            means.append((rows / (rows.mean(3, keepdim=True) + TINY)).flatten(2))
        shares = (torch.cat(means, 2) + 1e-3).log()
        rows = self.rows[0](layout, shares.transpose(1, 2)).relu()
        rows = self.rows[1](layout, rows).relu()  # [B, R, C]
        gates = [rows[:, i:k] @ self.row_out[role] for role, (i, k) in layout.rows_by_role.items()]
        gate = (GATE * torch.cat(gates, 1).tanh()).exp().squeeze(2)
        found: dict[int, list[tuple[Side, Tensor]]] = {}
        for b, side in layout.sides:
            own = gate[:, slice(*side.rows)].unflatten(1, (layout.buckets[b].count, -1))
            found.setdefault(b, []).append((side, own))
        return found

    def _by_element(self, bucket: Bucket, base: Tensor, terms: Tensor, inverse: Tensor) -> Tensor:
        """y of the class' equation for the net ``"mlp"``, [B, L, *shape]."""
        base = base * inverse[:, TERMS]
        x = torch.cat([terms * inverse[:, :TERMS], base.unsqueeze(1)], 1).clamp(-BOUND, BOUND).flatten(2)
        for weight, bias in zip(self.elements, self.biases, strict=True):
            x = torch.baddbmm(bias[bucket.kind], weight[bucket.kind].expand(len(x), -1, -1), x).relu()
        gate, term = (self.element_out[bucket.kind] @ x).unflatten(2, base.shape[1:]).unbind(1)
        return base * gate.clamp(-GATE, GATE).exp() + term


def _rms(part: Tensor, first: int) -> Tensor:
    """Root mean square over all axes from the ``first`` on; its derivative at zero is zero."""
    axes = tuple(range(first, part.ndim))
    return torch.linalg.vector_norm(part, dim=axes) / math.sqrt(math.prod(part.shape[first:]))


def _inverse(size: Tensor) -> Tensor:
    """One over it; 0 where it is 0, with a derivative of 0."""
    zero = size <= TINY
    return size.masked_fill(zero, 1.0).reciprocal().masked_fill(zero, 0.0)


def _resized(layout: UpdateLayout, parts: list[Tensor], size: Tensor) -> Tensor:
    """Per bucket [B, L, *shape], with root mean squares ``size`` [B, blocks]; flat, [B, N]."""
    factors = size * _inverse(torch.cat([_rms(y, 2) for y in parts], 1))
    scaled = [y * f for y, f in zip(parts, layout.split_blocks(factors), strict=True)]
    return torch.cat([y.flatten(1) for y in scaled], 1)


def is_number(value: object) -> bool:
    """Whether it is an int or a float, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(**config: Any) -> None:
    reaches = get_args(Reach)

    def is_mix(value: Any) -> bool:
        right = isinstance(value, Sequence) and len(value) == 1 + len(MOMENTA) and all(map(is_number, value))
        return right and all(map(math.isfinite, value)) and any(value)

    rules: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
        (("net",), lambda v: v in reaches, f"one of {', '.join(reaches)}"),
        (("width", "depth", "ramp"), lambda v: type(v) is int and v >= 1, "a whole number of at least 1"),
        (("vector_rate", "table_rate"), lambda v: is_number(v) and 0 < v < math.inf, "a positive number"),
        (("floor",), lambda v: is_number(v) and 0 < v <= 1, "a number above 0 and at most 1"),
        (("sizes",), lambda v: isinstance(v, bool), "true or false"),
        (("mix",), is_mix, f"{1 + len(MOMENTA)} finite numbers, not all zero"),
        (("damping",), lambda v: is_number(v) and 0 <= v < math.inf, "a finite number of at least 0"),
    )
    for names, is_right, expected in rules:
        for name in names:
            if not is_right(config[name]):
                raise ValueError(f"{name}: got {config[name]!r}, expected {expected}")
