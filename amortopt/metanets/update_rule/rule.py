"""An update rule: a metanet that reads weights, gradients and their history, and returns a direction.

Legend: B networks, N elements of all parameters, L blocks of a bucket, R rows, F features, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from amortopt.metanets.base import UpdateRule, register
from amortopt.metanets.update_rule.layer import SharedUNFLayer
from amortopt.metanets.update_rule.layout import CLASSES, Bucket, UpdateLayout
from amortopt.metanets.update_rule.orthogonal import orthogonal

RuleState: TypeAlias = dict[str, Tensor]
"""``step`` [*batch], ``momenta`` [*batch, 3, N], ``second`` [*batch, 1, N]; float32."""
Reach: TypeAlias = Literal["unf", "deepset", "mlp"]
"""What an element of the direction depends on: everything; its own block; the same element."""

MOMENTA = (0.9, 0.95, 0.99)
"""Decays of the running averages of the gradient: Adam's, Muon's and a slow one."""
SECOND = 0.99
"""Decay of the running average of its square."""
FEATURES = 9
"""Per element: the three momenta, the first and the third over the root of the second moment, that root, the
weight, the gradient and the base direction."""
WEIGHT, GRADIENT, BASE = 6, 7, 8
SQUARED = 3
"""The last features, whose mean squares rows have as well."""
CONTEXT = 11
"""Numbers per block: see ``UNFRule._context``."""
BOUND = 8.0
"""Largest absolute value of a normalised feature, and of a logarithm in the context."""
GATE = 2.0
"""Largest absolute value of the logarithm of the gate."""
TINY = 1e-30
"""Added to mean squares before roots and logarithms are taken."""
FLOOR = 1e-12
"""A second moment counts as at least this share of the largest block's mean. Gradients that are rounding
errors, such as those of a bias before a batch norm, would otherwise move their weights at full speed."""
TILE = 1 << 14
"""Elements that are treated at once without derivatives: all their channels fit a core's cache."""
ALL = 1 << 60


@register("update_rule")
class UNFRule(UpdateRule):
    r"""A learned direction for the parameters of any base network, which starts as Muon's and Adam's.

    .. math:: W \leftarrow W - \eta\, d, \qquad
        d = 2^{s}\, \operatorname{rms}(b)\, \frac{y}{\operatorname{rms}(y)}, \qquad
        y = e^{g} \odot \frac{b}{\operatorname{rms}(b)} + f

    per block of a parameter. The base direction b is that of Muon (Jordan et al. 2024) for matrices and
    kernels that write hidden units: the orthogonalized Nesterov momentum, times the root of rows over columns
    if that is above 1; and Adam's times ``adam_rate`` for all else: vectors, embeddings, heads. The layout of
    the network knows which is which. An equivariant network over all parameters gives the term f and the gate
    g of every element and the size s, between -1 and 1, of every block (Zhou, Finn and Harrison 2024, sec.
    4.3). A fresh rule has f = g = s = 0, so it is Muon and Adam exactly.

    The network has two layers over rows
    ([SharedUNFLayer][amortopt.metanets.update_rule.layer.SharedUNFLayer]), one over blocks, and ``depth``
    over elements, which add what those give to their first layer.

    The direction depends neither on the scale of the loss nor on the size of the network. Its root mean
    square over a block is at most twice the base direction's:

    - a matrix with n columns (a kernel: inputs times positions): :math:`2 \cdot 1.21/\sqrt n`;
    - anything else: 4.7 ``adam_rate``, since Adam's direction is at most 2.35 for these decays.

    A step reads four numbers of state per element.

    Args:
        net: ``"unf"``, or what depends on less: ``"deepset"`` on the own block, ``"mlp"`` on the own element.
        width: Channels of the layers over elements; those over rows and blocks have twice as many.
        depth: Layers over elements.
        adam_rate: Learning rate of what Adam moves, as a multiple of Muon's.
        damping: For derivatives through a step, second moments count as constant, and as larger by so many
            times their block's mean; 0 for exact derivatives. The step itself does not depend on it.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        net: Reach = "unf",
        *,
        width: int = 8,
        depth: int = 2,
        adam_rate: float = 0.2,
        damping: float = 0.1,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            **{"net": net, "width": width, "depth": depth, "adam_rate": adam_rate, "damping": damping}
        }
        _check(**self.config)
        self.net, self.adam_rate, self.damping = net, adam_rate, damping
        classes, wide = len(CLASSES), 2 * width

        def matrix(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(classes, rows, columns) * math.sqrt(1 / columns))

        # Of elements, per class, [.., out, in]; the last gives gate and term.
        self.elements = nn.ParameterList(
            [matrix(width, FEATURES), *(matrix(width, width) for _ in range(depth - 1))]
        )
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(classes, width, 1)) for _ in range(depth)])
        self.out = nn.Parameter(torch.zeros(classes, 2, width))
        if net != "mlp":  # of blocks, per class
            self.block = matrix(wide, CONTEXT * (2 if net == "unf" else 1))
            self.block_term, self.block_size = (
                matrix(width, wide),
                nn.Parameter(torch.zeros(classes, 1, wide)),
            )
        if net == "unf":
            self.rows = nn.ModuleList([SharedUNFLayer(FEATURES + SQUARED, wide), SharedUNFLayer(wide, width)])

    state_sizes = {"momenta": len(MOMENTA), "second": 1}  # noqa: RUF012
    """Entry of the state -> numbers per element; ``step`` is one number beside them."""

    def init_state(self, layout: UpdateLayout, flat: Tensor) -> RuleState:
        """State before the first step, all zeros, for parameters ``flat`` [*batch, N]."""
        kw: dict[str, Any] = {"dtype": self.out.dtype, "device": flat.device}
        batch = flat.shape[:-1]
        state = {"step": torch.zeros(batch, **kw)}
        return state | {k: torch.zeros(*batch, n, layout.size, **kw) for k, n in self.state_sizes.items()}

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
        state = _accumulate(state, grads, inplace)
        x = self._features(layout, flat, grads, state)
        parts = layout.split(x)  # [B, F, L, *shape] per bucket
        squares = torch.cat(
            [_norms(p, 3).square() / math.prod(p.shape[3:]) for p in parts], 2
        )  # [B, F, blocks]
        scales = _inverse_root(squares)
        rows, blocks, sizes = self._terms(layout, parts, squares, scales)
        direction = []
        for b, (bucket, part, scale) in enumerate(
            zip(layout.buckets, parts, layout.split_blocks(scales), strict=True)
        ):
            # From here on elements of one bucket: y [B, L, *shape]
            y = self._elements(bucket, part, scale, blocks[b], [(s, row) for k, s, row in rows if k == b])
            rms = _norms(y, 2) / math.sqrt(math.prod(bucket.shape))
            factor = squares[:, BASE, slice(*bucket.blocks)].sqrt() * _inverse_root(rms.square()) * sizes[b]
            direction.append((y.flatten(2) * factor.unsqueeze(2)).flatten(1))
        return torch.cat(direction, dim=1), state

    def _features(self, layout: UpdateLayout, flat: Tensor, grads: Tensor, state: RuleState) -> Tensor:
        """What the network reads, [B, F, N], not yet normalised; the last one is the base direction."""
        step = state["step"].unsqueeze(-1)
        fast, medium, slow = state["momenta"].unbind(1)
        over_root, root = self._roots(layout, state["second"][:, 0] / (1 - SECOND**step))
        adam = over_root(fast) / (1 - MOMENTA[0] ** step)
        nesterov = grads.lerp(medium, MOMENTA[1])
        base = torch.cat(
            [
                (_muon(m) if CLASSES[bucket.kind] == "matrix" else self.adam_rate * a).flatten(1)
                for bucket, m, a in zip(
                    layout.buckets, layout.split(nesterov), layout.split(adam), strict=True
                )
            ],
            dim=1,
        )
        return torch.stack([fast, medium, slow, adam, over_root(slow), root, flat, grads, base], dim=1)

    def _roots(self, layout: UpdateLayout, second: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Of second moments [B, N]: a function that divides by their roots, and the roots [B, N]."""
        second = second.detach()  # derivatives through it explode
        means = torch.cat([part.flatten(2).mean(2) for part in layout.split(second)], 1)  # [B, blocks]
        root = (second + (FLOOR * means.amax(1, keepdim=True) + TINY)).sqrt()
        if not torch.is_grad_enabled() or not self.damping:
            return lambda x: x / root, root
        # An element with a tiny gradient moves as fast as any other and turns around at the slightest cause.
        # Its share in the loss is as tiny, but derivatives through many such steps explode. So the value is
        # x / root, and the derivative by x is over a damped root.
        parts = zip(layout.split_blocks(means), layout.split(second), strict=True)
        added = torch.cat([mean.expand_as(part).flatten(1) for mean, part in parts], 1)
        damped = (second + self.damping * added + TINY).sqrt()

        def over_root(x: Tensor) -> Tensor:
            soft = x / damped
            return soft + (x / root - soft).detach()

        return over_root, root

    def _terms(
        self, layout: UpdateLayout, parts: list[Tensor], squares: Tensor, scales: Tensor
    ) -> tuple[list[tuple[int, Any, Tensor]], list[Tensor], list[Tensor]]:
        """What rows and blocks add to the first layer over elements, and factors on the sizes of blocks.

        Returns:
            Bucket, side and [B, D, L, n] per side; [B, D, L] per bucket; [B, L] per bucket.
        """
        counts = [bucket.count for bucket in layout.buckets]
        classes = [bucket.kind for bucket in layout.buckets]
        if self.net == "mlp":
            ones = [torch.ones_like(squares[:, 0]).split(counts, 1)[b] for b in range(len(counts))]
            return [], [torch.zeros_like(one).unsqueeze(1) for one in ones], ones
        context = self._context(layout, parts, squares, scales)  # [B, CONTEXT, blocks]
        if self.net == "unf":  # beside the own block, the mean of all
            context = torch.cat([context, context.mean(2, keepdim=True).expand_as(context)], 1)
        hidden = [(self.block[k] @ c).relu() for k, c in zip(classes, context.split(counts, 2), strict=True)]
        blocks = [self.block_term[k] @ h for k, h in zip(classes, hidden, strict=True)]
        sizes = [(self.block_size[k] @ h)[:, 0].tanh().exp2() for k, h in zip(classes, hidden, strict=True)]
        if self.net != "unf" or not layout.sides:
            return [], blocks, sizes
        features = []
        by_bucket = scales.split(counts, 2)
        for b, side in layout.sides:
            axes, scale = len(layout.buckets[b].shape), by_bucket[b].unsqueeze(3)  # [B, F, L, 1]
            means = side.means(parts[b], axes) * scale
            share = side.means(parts[b][:, -SQUARED:].square(), axes) * scale[:, -SQUARED:].square()
            features.append(torch.cat([means, (share + 1e-3).log()], 1).flatten(2))
        rows = self.rows[0](layout, torch.cat(features, 2).transpose(1, 2)).relu()
        rows = (
            self.rows[1](layout, rows)
            .transpose(1, 2)
            .split([s.rows[1] - s.rows[0] for _, s in layout.sides], 2)
        )
        terms = zip(layout.sides, rows, strict=True)
        return [(b, s, row.unflatten(2, (counts[b], -1))) for (b, s), row in terms], blocks, sizes

    def _context(self, layout: UpdateLayout, parts: list[Tensor], squares: Tensor, scales: Tensor) -> Tensor:
        """What tells blocks apart, free of scales: sizes, shapes, cosines; [B, CONTEXT, blocks]."""
        log = 0.5 * (squares + TINY).log()
        # How much of the gradient is noise, thrice; weights against a step; rows and columns.
        sizes = torch.cat([log[:, :3] - log[:, GRADIENT, None], log[:, WEIGHT, None] - log[:, BASE, None]], 1)
        shapes = [(b.shape[0], math.prod(b.shape[1:])) for b in layout.buckets for _ in range(b.count)]
        shape = log.new_tensor(shapes).log().t().expand(len(log), -1, -1)
        pairs = ((1, GRADIENT), (2, GRADIENT), (BASE, WEIGHT), (BASE, GRADIENT))
        cosines = [
            torch.cat([(p[:, i] * p[:, k]).flatten(2).mean(2) for p in parts], 1)
            * scales[:, i]
            * scales[:, k]
            for i, k in pairs
        ]
        sizes = 0.2 * torch.cat([sizes, shape], 1).clamp(-BOUND, BOUND)
        return torch.cat([sizes, torch.stack([*cosines, torch.ones_like(cosines[0])], 1)], 1)

    def _elements(
        self, bucket: Bucket, part: Tensor, scale: Tensor, block: Tensor, rows: list[tuple[Any, Tensor]]
    ) -> Tensor:
        """y of the class' equation, [B, L, *shape], from features of a bucket [B, F, L, *shape]."""
        axes = len(bucket.shape)
        terms = [block.unflatten(2, (-1, *[1] * axes)), *(side.spread(row, axes) for side, row in rows)]
        slabs = []
        for blocks, cuts in _tiles(bucket, ALL if torch.is_grad_enabled() else TILE):
            pieces = []
            for cut in cuts:
                x = part[:, :, blocks, cut] * scale[:, :, blocks]
                base, x = x[:, BASE], x.clamp(-BOUND, BOUND)
                y = self._layer(0, bucket.kind, x.flatten(2)).unflatten(2, x.shape[2:])
                for term in terms:
                    y += term[:, :, blocks, cut if term.shape[3] > 1 else slice(None)]
                y = y.relu_().flatten(2)
                for k in range(1, len(self.elements)):
                    y = self._layer(k, bucket.kind, y).relu_()
                out = self.out[bucket.kind].expand(len(y), -1, -1).bmm(y)
                gate, term = out.unflatten(2, x.shape[2:]).unbind(1)
                pieces.append(base * gate.clamp(-GATE, GATE).exp() + term)
            slabs.append(torch.cat(pieces, 2) if len(pieces) > 1 else pieces[0])
        return torch.cat(slabs, 1) if len(slabs) > 1 else slabs[0]

    def _layer(self, k: int, kind: int, x: Tensor) -> Tensor:
        """Layer k over elements of a class: [B, C, elements] -> [B, D, elements]."""
        weight, bias = self.elements[k][kind], self.biases[k][kind]
        return torch.baddbmm(bias, weight.expand(len(x), -1, -1), x)


def _tiles(bucket: Bucket, size: int) -> Iterator[tuple[slice, list[slice]]]:
    """Ranges of blocks, each with ranges along the first axis; together about ``size`` elements or less."""
    block, length = math.prod(bucket.shape), bucket.shape[0]
    blocks = min(bucket.count, max(1, size // block))
    rows = min(length, max(1, size * length // block))
    cuts = [slice(k, k + rows) for k in range(0, length, rows)]
    for k in range(0, bucket.count, blocks):
        yield slice(k, k + blocks), cuts


def _accumulate(state: RuleState, grads: Tensor, inplace: bool) -> RuleState:
    """The state after one more gradient [B, N]."""
    rates = 1 - grads.new_tensor(MOMENTA).unsqueeze(-1)
    momenta, second = state["momenta"], state["second"]
    first, square = grads.unsqueeze(1).expand_as(momenta), grads.square().unsqueeze(1)
    if inplace:
        new = {"momenta": momenta.lerp_(first, rates), "second": second.lerp_(square, 1 - SECOND)}
        return {"step": state["step"].add_(1), **new}
    new = {"momenta": momenta.lerp(first, rates), "second": second.lerp(square, 1 - SECOND)}
    return {"step": state["step"] + 1, **new}


def _muon(momentum: Tensor) -> Tensor:
    """Muon's direction for matrices or kernels [B, L, rows, ...]."""
    matrices = momentum.flatten(3)
    rows, columns = matrices.shape[2:]
    return (orthogonal(matrices) * max(1.0, rows / columns) ** 0.5).view_as(momentum)


def _norms(part: Tensor, first: int) -> Tensor:
    """Norms over all axes from the ``first`` on."""
    return torch.linalg.vector_norm(part, dim=tuple(range(first, part.ndim)))


def _inverse_root(squares: Tensor) -> Tensor:
    """One over the root; 0 where it is 0, with a derivative of 0."""
    zero = squares <= TINY
    return squares.masked_fill(zero, 1.0).rsqrt().masked_fill(zero, 0.0)


def is_number(value: object) -> bool:
    """Whether it is an int or a float, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(**config: Any) -> None:
    reaches = get_args(Reach)
    rules: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
        (("net",), lambda v: v in reaches, f"one of {', '.join(reaches)}"),
        (("width", "depth"), lambda v: type(v) is int and v >= 1, "a whole number of at least 1"),
        (("adam_rate",), lambda v: is_number(v) and 0 < v < math.inf, "a positive number"),
        (("damping",), lambda v: is_number(v) and 0 <= v < math.inf, "a finite number of at least 0"),
    )
    for names, is_right, expected in rules:
        for name in names:
            if not is_right(config[name]):
                raise ValueError(f"{name}: got {config[name]!r}, expected {expected}")
