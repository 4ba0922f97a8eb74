"""An update rule: a metanet that reads weights, gradients and their history, and returns an update."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from amortopt.metanets.base import UpdateRule, register
from amortopt.metanets.update_rule import features as f
from amortopt.metanets.update_rule.features import RuleState
from amortopt.metanets.update_rule.layer import REACHES, Reach, SharedUNFLayer
from amortopt.metanets.update_rule.layout import CLASSES, UpdateLayout

Direction = Literal["momentum", "adam"]
CONTEXT = len(f.TIMESCALES) + 4 + 1
"""Numbers per block: time features, four logarithms of sizes (weights, gradient, direction, direction against
weights), and 1."""


@register("update_rule")
class UNFRule(UpdateRule):
    r"""A learned update for the parameters of any base network.

    .. math:: W \leftarrow W - \eta\alpha\big(e^{g} \odot d + \beta f(W, \nabla, \{m^{\gamma_i}\}, t)\big)

    with f and g two outputs of equivariant layers over the elements of all parameters, and
    :math:`\alpha, \beta` and the decay :math:`\gamma_0` of the direction d learned as well (Zhou, Finn and
    Harrison 2024, sec. 4.3, where g = 0 and d is the momentum :math:`m^{\gamma_0}`). With
    ``direction="adam"``, d is the momentum over the root of the second moment, bias-corrected.

    A step has three stages: running averages (``accumulate``), normalised features of every element and a
    context of every block, and the layers.

    Args:
        net: What an output element depends on, see
            [SharedUNFLayer][amortopt.metanets.update_rule.layer.SharedUNFLayer].
        width: Channels of hidden layers.
        depth: Number of layers.
        direction: ``"momentum"`` or ``"adam"``.
        alpha: First value of α.
        beta: First value of β.
        gamma: First value of γ0.
        second: Whether momenta over the roots of second moments are features.
        gate: Whether the direction is scaled by :math:`e^g`.
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
        direction: Direction = "adam",
        alpha: float = 0.003,
        beta: float = 0.1,
        gamma: float = 0.9,
        second: bool = True,
        gate: bool = True,
        damping: float = 0.1,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            **{"net": net, "width": width, "depth": depth, "direction": direction},
            **{"alpha": alpha, "beta": beta, "gamma": gamma},
            **{"second": second, "gate": gate, "damping": damping},
        }
        _check(**self.config)
        self.direction, self.second, self.gate, self.damping = direction, second, gate, damping
        self.features = 2 + len(f.MOMENTA) + (1 + len(f.SECOND) * 2 if second else 0)
        channels = [self.features] + [width] * depth
        self.layers = nn.ModuleList(SharedUNFLayer(c, d, net) for c, d in pairwise(channels))
        self.context = nn.ParameterList(
            nn.Parameter(torch.randn(len(CLASSES), CONTEXT, width) * (0.5 / math.sqrt(CONTEXT - 1)))
            for _ in range(depth)
        )
        # The gate starts at 1: a fresh rule is its direction plus a small random term.
        self.out_term = nn.Parameter(torch.randn(len(CLASSES), width, 1) / math.sqrt(width))
        self.out_gate = nn.Parameter(torch.zeros(len(CLASSES), width, 1))
        self.context_gate = nn.Parameter(torch.zeros(len(CLASSES), CONTEXT, 1))
        self.log_alpha = nn.Parameter(torch.tensor(math.log(alpha)))
        self.log_beta = nn.Parameter(torch.tensor(math.log(beta)))
        self.logit_gamma = nn.Parameter(torch.tensor(math.log(gamma / (1 - gamma))))

    @property
    def state_sizes(self) -> dict[str, int]:
        """Entry of the state -> numbers per element; ``step`` is one number beside them."""
        sizes = {"momenta": 1 + len(f.MOMENTA)}
        return sizes | {"second": len(f.SECOND)} if self.second or self.direction == "adam" else sizes

    def init_state(self, layout: UpdateLayout, flat: Tensor) -> RuleState:
        """State before the first step.

        Args:
            layout: Of the base network.
            flat: Its parameters, [*batch, N].

        Returns:
            Zeros: ``step`` [*batch], ``momenta`` [*batch, 7, N] and, unless the rule has no use for them,
            ``second`` [*batch, 2, N].
        """
        kw: dict[str, Any] = {"dtype": self.log_alpha.dtype, "device": flat.device}
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
            The update, to be subtracted from ``flat`` (times a learning rate, unitless), [*batch, N]; and the
            new state.
        """
        batch = flat.shape[:-1]
        if len(batch) != 1:
            size = math.prod(batch)
            inner = {key: value.reshape((size, *value.shape[len(batch) :])) for key, value in state.items()}
            update, inner = self(
                layout, flat.reshape(size, -1), grads.reshape(size, -1), inner, inplace=inplace
            )
            return update.reshape(flat.shape), {
                key: value.reshape((*batch, *value.shape[1:])) for key, value in inner.items()
            }
        state = self.accumulate(grads, state, inplace)
        # Direction [B, N]; features [B, N, F]: weights, gradients, momenta, and these over roots.
        step = state["step"].unsqueeze(-1)
        direction, *momenta = state["momenta"].unbind(1)
        elements = [flat, grads, *momenta]
        if "second" in state:
            over_root = self._division_by_roots(layout, state["second"], step)
            if self.second:
                elements.append(over_root(grads, 0))
                elements += [over_root(m, k) for m in momenta[2:4] for k in range(len(f.SECOND))]
            if self.direction == "adam":
                direction = over_root(direction, 1) / (1 - self.logit_gamma.sigmoid() ** step)
        directions = layout.split(direction.unsqueeze(-1))
        x, squares = f.normalised(layout, layout.split(torch.stack(elements, dim=-1)))
        context = self._context(layout, state["step"], squares[..., :2], f.mean_squares(directions))
        for layer, weights in zip(self.layers, self.context, strict=True):
            x = [part.relu() for part in layer(layout, x, _by_class(layout, context, weights))]
        gates = layout.split_blocks(_by_class(layout, context, self.context_gate))
        update = []
        for bucket, part, d, gate in zip(layout.buckets, x, directions, gates, strict=True):
            if self.gate:
                d = d * (part @ self.out_gate[bucket.kind] + gate).clamp(-f.BOUND, f.BOUND).exp()
            term = self.log_beta.exp() * (part @ self.out_term[bucket.kind])
            update.append((self.log_alpha.exp() * (d + term)).flatten(1))
        return torch.cat(update, dim=1), state

    def accumulate(self, grads: Tensor, state: RuleState, inplace: bool) -> RuleState:
        """The state after one more gradient [B, N]: averages with decays γ0 and those of ``features``."""
        decays = torch.cat([self.logit_gamma.sigmoid().reshape(1), grads.new_tensor(f.MOMENTA)])
        new = {
            "step": state["step"] + 1,
            "momenta": f.running_average(state["momenta"], grads, decays, inplace),
        }
        if "second" in state:
            decays = grads.new_tensor(f.SECOND)
            new["second"] = f.running_average(state["second"], grads.square(), decays, inplace)
        return new

    def _division_by_roots(
        self, layout: UpdateLayout, second: Tensor, step: Tensor
    ) -> Callable[[Tensor, int], Tensor]:
        """A function of x [B, N] and k: x over the root of the k-th second moment, bias-corrected."""
        corrected = second / (1 - second.new_tensor(f.SECOND) ** step).unsqueeze(-1)
        roots = (corrected + f.TINY).rsqrt()
        if not torch.is_grad_enabled() or not self.damping:
            return lambda x, k: x * roots[:, k]
        # An element with a tiny gradient moves as fast as any other and turns around at the slightest cause.
        # Its share in the loss is as tiny, but derivatives through many such steps explode. So the value is
        # x * root, and the derivative by x is a damped root.
        corrected, roots = corrected.detach(), roots.detach()
        damped = (corrected + self.damping * f.block_means(layout, corrected) + f.TINY).rsqrt()

        def over_root(x: Tensor, k: int) -> Tensor:
            soft = x * damped[:, k]
            return soft + (x * roots[:, k] - soft).detach()

        return over_root

    def _context(self, layout: UpdateLayout, step: Tensor, squares: Tensor, of_direction: Tensor) -> Tensor:
        """Time and sizes of every block, [B, blocks, CONTEXT], from mean squares [B, blocks, ...]."""
        time = f.time_features(step - 1).unsqueeze(1).expand(-1, layout.num_blocks, -1)
        sizes = 0.5 * (torch.cat([squares, of_direction], dim=-1) + f.TINY).log()
        sizes = torch.cat([sizes, sizes[..., 2:] - sizes[..., :1]], dim=-1)
        return torch.cat([time, 0.2 * sizes, torch.ones_like(sizes[..., :1])], dim=-1)


def _by_class(layout: UpdateLayout, context: Tensor, weights: Tensor) -> Tensor:
    """Multiply every block's context by the matrix of its class: [B, blocks, CONTEXT] -> [B, blocks, D]."""
    spans = layout.blocks_by_class
    parts = context.split([stop - start for start, stop in spans.values()], dim=1)
    return torch.cat([part @ weights[kind] for kind, part in zip(spans, parts, strict=True)], dim=1)


def is_number(value: object) -> bool:
    """Whether it is an int or a float, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(**config: Any) -> None:
    directions = get_args(Direction)
    rules: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
        (("net",), lambda v: v in REACHES, f"one of {', '.join(REACHES)}"),
        (("direction",), lambda v: v in directions, f"one of {', '.join(directions)}"),
        (("width", "depth"), lambda v: type(v) is int and v >= 1, "a whole number of at least 1"),
        (("alpha", "beta"), lambda v: is_number(v) and 0 < v < math.inf, "a positive number"),
        (("gamma",), lambda v: is_number(v) and 0 < v < 1, "a number between 0 and 1"),
        (("damping",), lambda v: is_number(v) and 0 <= v < math.inf, "a finite number of at least 0"),
        (("second", "gate"), lambda v: isinstance(v, bool), "True or False"),
    )
    for names, is_right, expected in rules:
        for name in names:
            if not is_right(config[name]):
                raise ValueError(f"{name}: got {config[name]!r}, expected {expected}")
