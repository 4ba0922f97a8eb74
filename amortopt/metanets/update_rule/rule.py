"""An update rule: a metanet that reads weights, gradients and their history, and returns a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from amortopt.metanets.base import UpdateRule as AbstractUpdateRule
from amortopt.metanets.base import register
from amortopt.metanets.update_rule import features as f
from amortopt.metanets.update_rule.features import RuleState
from amortopt.metanets.update_rule.layer import REACHES, Reach, UpdateLayer
from amortopt.metanets.update_rule.layout import CLASSES, UpdateLayout

Base = Literal["momentum", "adam"]
_LOGS = 4  # logarithms of sizes that a block tells: weights, gradient, base, and base against weights


@register("update_rule")
class UpdateRule(AbstractUpdateRule):
    r"""A learned update for the parameters of any base network.

    .. math:: W \leftarrow W - \eta\alpha\big(e^{g} \odot b + \beta f(W, \nabla, \{m^{\gamma_i}\}, t)\big)

    with f and g two outputs of a metanet over the elements of all parameters, :math:`\alpha, \beta` and the
    decay :math:`\gamma_0` of the base learned as well (Zhou, Finn and Harrison 2024, sec. 4.3, where g = 0
    and b is the momentum :math:`m^{\gamma_0}`). With ``base="adam"``, b is the momentum over the root of the
    second moment.

    Args:
        net: What the metanet hears of beside an element: see `layer.UpdateLayer`.
        width: Channels of hidden layers.
        depth: Number of layers.
        base: ``"momentum"`` or ``"adam"``.
        alpha: First value of α.
        beta: First value of β.
        gamma: First value of γ0.
        second: Whether the metanet reads second moments: momenta over their roots.
        gate: Whether it scales the base, by :math:`e^g`.
        damping: For derivatives through a step, second moments count as constant, and as larger by so many
            times their tensor's mean; 0 for exact derivatives. The step itself does not depend on it.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        net: Reach = "unf",
        *,
        width: int = 16,
        depth: int = 2,
        base: Base = "adam",
        alpha: float = 0.003,
        beta: float = 0.1,
        gamma: float = 0.9,
        second: bool = True,
        gate: bool = True,
        damping: float = 0.1,
    ) -> None:
        super().__init__()
        _check(net, width, depth, base, alpha, beta, gamma)
        if not is_number(damping) or not 0 <= damping < float("inf"):
            raise ValueError(f"damping: got {damping!r}, expected a finite number of at least 0")
        for name, flag in (("second", second), ("gate", gate)):
            if not isinstance(flag, bool):
                raise ValueError(f"{name}: got {flag!r}, expected True or False")
        self.config: dict[str, Any] = {
            "net": net,
            "width": width,
            "depth": depth,
            "base": base,
            "alpha": alpha,
            "beta": beta,
            "gamma": gamma,
            "second": second,
            "gate": gate,
            "damping": damping,
        }
        self.base, self.second, self.gate, self.damping = base, second, gate, damping
        self.elements = 2 + len(f.MOMENTA) + (1 + len(f.SECOND) * 2 if second else 0)
        told = len(f.TIMESCALES) + _LOGS
        channels = [self.elements] + [width] * depth
        self.layers = nn.ModuleList(UpdateLayer(c, d, net) for c, d in pairwise(channels))
        self.told = nn.ParameterList(
            nn.Parameter(torch.randn(len(CLASSES), told + 1, width) * (0.5 / math.sqrt(told)))
            for _ in range(depth)
        )
        # The gate starts closed: a fresh rule is its base plus a little of what it does not know yet.
        self.out_direction = nn.Parameter(torch.randn(len(CLASSES), width, 1) / math.sqrt(width))
        self.out_gate = nn.Parameter(torch.zeros(len(CLASSES), width, 1))
        self.told_gate = nn.Parameter(torch.zeros(len(CLASSES), told + 1, 1))
        self.log_alpha = nn.Parameter(torch.tensor(math.log(alpha)))
        self.log_beta = nn.Parameter(torch.tensor(math.log(beta)))
        self.logit_gamma = nn.Parameter(torch.tensor(math.log(gamma / (1 - gamma))))

    def init_state(self, layout: UpdateLayout, flat: Tensor) -> RuleState:
        """State before the first step.

        Args:
            layout: Of the base network.
            flat: Its parameters, [*batch, N].

        Returns:
            Zeros: ``step`` [*batch], ``momenta`` [*batch, 7, N] and, unless the rule has no use for them,
            ``second`` [*batch, 2, N].
        """
        batch = flat.shape[:-1]
        kw: dict[str, Any] = {"dtype": self.log_alpha.dtype, "device": flat.device}
        state = {
            "step": torch.zeros(batch, **kw),
            "momenta": torch.zeros(*batch, 1 + len(f.MOMENTA), layout.size, **kw),
        }
        if self.second or self.base == "adam":
            state["second"] = torch.zeros(*batch, len(f.SECOND), layout.size, **kw)
        return state

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
        state = self._accumulate(grads, state, inplace)
        base, elements = self._read(layout, flat, grads, state)
        bases = layout.split(base.unsqueeze(-1))
        x, logs = f.normalised(layout, layout.split(elements), f.BOUND)
        squares = torch.cat([f.mean_square(part) for part in bases], dim=1)
        told = self._told(layout, state["step"], logs, squares)
        for layer, weights in zip(self.layers, self.told, strict=True):
            x = [part.relu() for part in layer(layout, x, _of_blocks(layout, told, weights))]
        gates = layout.split_blocks(_of_blocks(layout, told, self.told_gate))
        update = [
            self._out(bucket.kind, part, own, gate).flatten(1)
            for bucket, part, own, gate in zip(layout.buckets, x, bases, gates, strict=True)
        ]
        return torch.cat(update, dim=1), state

    def _out(self, kind: int, x: Tensor, base: Tensor, gate: Tensor) -> Tensor:
        """The update of a bucket's elements: [B, L, *shape, C] -> [B, L, *shape, 1]."""
        if self.gate:
            base = base * (x @ self.out_gate[kind] + gate).clamp(-f.BOUND, f.BOUND).exp()
        return self.log_alpha.exp() * (base + self.log_beta.exp() * (x @ self.out_direction[kind]))

    def _accumulate(self, grads: Tensor, state: RuleState, inplace: bool) -> RuleState:
        fixed = grads.new_tensor(f.MOMENTA)
        decays = torch.cat([self.logit_gamma.sigmoid().reshape(1), fixed])
        new = {
            "step": state["step"] + 1,
            "momenta": f.running(state["momenta"], grads, decays, inplace),
        }
        if "second" in state:
            second = grads.new_tensor(f.SECOND)
            new["second"] = f.running(state["second"], grads.square(), second, inplace)
        return new

    def _read(
        self, layout: UpdateLayout, flat: Tensor, grads: Tensor, state: RuleState
    ) -> tuple[Tensor, Tensor]:
        """The base direction [B, N], and what the metanet reads per element [B, N, F]."""
        step = state["step"].unsqueeze(-1)
        base = state["momenta"][:, 0]
        fixed = list(state["momenta"][:, 1:].unbind(1))
        read = [flat, grads, *fixed]
        if "second" in state:
            over = self._over_roots(layout, state["second"], step)
            if self.second:
                read.append(over(grads, 0))
                read += [over(momentum, k) for momentum in fixed[2:4] for k in range(len(f.SECOND))]
            if self.base == "adam":
                base = over(base, 1) / (1 - self.logit_gamma.sigmoid() ** step)
        return base, f.stacked(read)

    def _over_roots(
        self, layout: UpdateLayout, second: Tensor, step: Tensor
    ) -> Callable[[Tensor, int], Tensor]:
        """What divides [B, N] by the root of a second moment, bias-corrected."""
        decays = second.new_tensor(f.SECOND)
        corrected = second / (1 - decays**step).unsqueeze(-1)
        roots = (corrected + f.TINY).rsqrt()
        if not torch.is_grad_enabled() or not self.damping:
            return lambda x, k: x * roots[:, k]
        # An element with a tiny gradient moves as fast as any other and turns around at the slightest cause.
        # Its share in the loss is as tiny, but derivatives through many such steps explode.
        corrected, roots = corrected.detach(), roots.detach()
        damped = (corrected + self.damping * f.block_means(layout, corrected) + f.TINY).rsqrt()
        return lambda x, k: f.damped_product(x, roots[:, k], damped[:, k])

    def _told(self, layout: UpdateLayout, step: Tensor, logs: Tensor, squares: Tensor) -> Tensor:
        """What is known of every block as a whole: time, sizes, and 1; [B, blocks, told + 1]."""
        time = f.time_features(step - 1).unsqueeze(1).expand(-1, layout.num_blocks, -1)
        base = 0.5 * (squares + f.TINY).log()
        sizes = torch.cat([logs[..., :2], base, base - logs[..., :1]], dim=-1)
        return torch.cat([time, 0.2 * sizes, torch.ones_like(base)], dim=-1)


def _of_blocks(layout: UpdateLayout, told: Tensor, weights: Tensor) -> Tensor:
    """Multiply what is told of blocks by the matrix of their class: [B, blocks, C] -> [B, blocks, D]."""
    spans = {kind: stop - start for kind, (_, (start, stop)) in layout.by_class.items()}
    parts = [
        part @ weights[kind]
        for kind, part in zip(spans, told.split(list(spans.values()), dim=1), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def is_number(value: object) -> bool:
    """Whether it is an int or a float, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(net: str, width: int, depth: int, base: str, alpha: float, beta: float, gamma: float) -> None:
    if not isinstance(net, str) or net not in REACHES:
        raise ValueError(f"net: got {net!r}, expected one of {', '.join(REACHES)}")
    if base not in get_args(Base):
        raise ValueError(f"base: got {base!r}, expected one of {', '.join(get_args(Base))}")
    for name, count in (("width", width), ("depth", depth)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}: got {count!r}, expected a whole number of at least 1")
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not is_number(value) or not 0 < value < float("inf"):
            raise ValueError(f"{name}: got {value!r}, expected a positive number")
    if not is_number(gamma) or not 0 < gamma < 1:
        raise ValueError(f"gamma: got {gamma!r}, expected a number between 0 and 1")
