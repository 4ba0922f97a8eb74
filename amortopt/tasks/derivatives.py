"""The costly parts of sequence networks, with short first and second derivatives.

Meta-training differentiates through gradients. PyTorch's own second derivatives are exact, but made of many
passes over the activations; written out, each of these takes a fraction of them.

Each is a pair: a function whose derivative is a function of its own, which knows its derivative in turn.
Where a third derivative may be asked for, what was kept of the forward pass is computed again from the
inputs; so all of them are differentiable to any order.

Legend: B networks, N examples, T positions, H hidden units, c channels of a head, D any width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def standardise(x: Tensor, eps: float) -> Tensor:
    r"""Standardise the last axis: :math:`y = r (x - \bar x)`, :math:`r = (\mathrm{var} + \epsilon)^{-1/2}`.

    Args:
        x: [..., D].
        eps: Added to the variance.

    Returns:
        [..., D], as ``F.layer_norm`` without affine parameters.
    """
    return _Standardise.apply(x, eps)[0]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    r"""Causal attention of one head, :math:`\mathrm{softmax}(q k^\top / \sqrt{c} + \text{mask})\, v`.

    Args:
        query, key, value: [M, T, c], for M networks, examples and heads.

    Returns:
        [M, T, c].
    """
    return _Attend.apply(query, key, value)[0]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]


def recur(drive: Tensor, weight: Tensor) -> Tensor:
    r"""States of a tanh layer, :math:`h_t = \tanh(d_t + h_{t-1} U^\top)` from :math:`h_0 = 0`.

    Args:
        drive: d, [B, T, N, H].
        weight: U, [B, H, H].

    Returns:
        States [B, T, N, H].
    """
    return _Recur.apply(drive, weight)  # pyright: ignore[reportReturnType]


class _Standardise(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y, _, r = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        return y, r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], *output)
        ctx.eps = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _StandardiseDerivative.apply(grads[0], *ctx.saved_tensors, ctx.eps), None


class _StandardiseDerivative(Function):
    r""":math:`J g = r (g - \bar g - y\,\overline{g y})`, where J is the symmetric derivative of y by x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, x: Tensor, y: Tensor, r: Tensor, eps: float) -> Tensor:
        return _project(g, y, r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4], output)
        ctx.eps = inputs[4]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        # The derivative of <v, J g> by x is -r (Jv mean(g y) + Jg mean(v y) + y mean(v Jg)).
        g, x, y, r, jg = ctx.saved_tensors
        if torch.is_grad_enabled():
            y = x - x.mean(-1, keepdim=True)
            r = (y.square().mean(-1, keepdim=True) + ctx.eps).rsqrt()
            y = r * y
            jg = _project(g, y, r)
        jv = _project(v, y, r)
        by_x = torch.addcmul(jv * (g * y).mean(-1, keepdim=True), jg, (v * y).mean(-1, keepdim=True))
        by_x = torch.addcmul(by_x, y, (v * jg).mean(-1, keepdim=True))
        return jv, -r * by_x, None, None, None


def _project(g: Tensor, y: Tensor, r: Tensor) -> Tensor:
    centred = torch.addcmul(g, y, (g * y).mean(-1, keepdim=True), value=-1)
    return r * (centred - g.mean(-1, keepdim=True))


class _Attend(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        weights = _weights(q, k)
        return weights @ v, weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (by_out,) = _filled(grads, ctx.saved_tensors[3:4])
        return _AttendDerivative.apply(by_out, *ctx.saved_tensors)[:3]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]


class _AttendDerivative(Function):
    r"""With weights A, E = g v' - rows(g o) and the scores' derivative S = A E: S k / √c, S' q / √c, A' g."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, weights: Tensor
    ) -> tuple[Tensor, ...]:
        scale = q.shape[-1] ** -0.5
        excess = _excess(g, v, out)
        scores = weights * excess
        return scale * (scores @ k), scale * (scores.mT @ q), weights.mT @ g, excess, scores

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        g, q, k, v, _, weights = inputs
        ctx.mark_non_differentiable(*output[3:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, q, k, v, weights, *output[3:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        g, q, k, v, weights, excess, scores = ctx.saved_tensors
        if torch.is_grad_enabled():
            weights = _weights(q, k)
            excess = _excess(g, v, weights @ v)
            scores = weights * excess
        scale = q.shape[-1] ** -0.5
        by_q, by_k, by_v = _filled(grads, (q, k, v))
        by_q, by_k = scale * by_q, scale * by_k
        # Through S = A E: what reaches S, projected by the softmax's derivative, is what reaches g v'.
        reach = torch.cat([q, by_q], -1) @ torch.cat([by_k, k], -1).mT
        reach = weights * (reach - (weights * reach).sum(-1, keepdim=True))
        # Through A: the rows of G add nothing, as a softmax does not see them.
        second = torch.addcmul(reach * excess, weights, g @ by_v.mT)
        second = scale * torch.addcmul(second, weights, second.sum(-1, keepdim=True), value=-1)
        return (
            torch.baddbmm(weights @ by_v, reach, v),
            torch.baddbmm(scores @ by_k, second, k),
            torch.baddbmm(scores.mT @ by_q, second.mT, q),
            reach.mT @ g,
            None,
            None,
        )


def _filled(grads: tuple[Tensor | None, ...], like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Zeros where nothing arrives; PyTorch would make them for what is only kept as well."""
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(grads, like, strict=False))


def _weights(q: Tensor, k: Tensor) -> Tensor:
    length = q.shape[1]
    mask = torch.full((length, length), float("-inf"), device=q.device, dtype=q.dtype).triu(1)
    return torch.baddbmm(mask, q, k.mT, alpha=q.shape[-1] ** -0.5).softmax(-1)


def _excess(g: Tensor, v: Tensor, out: Tensor) -> Tensor:
    return torch.baddbmm(-(g * out).sum(-1, keepdim=True), g, v.mT)


class _Recur(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(drive: Tensor, weight: Tensor) -> Tensor:
        first, *others = drive.unbind(1)
        states = [first.tanh()]
        for step in others:
            states.append(torch.baddbmm(step, states[-1], weight.mT).tanh())
        return torch.stack(states, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _RecurDerivative.apply(grads[0], *ctx.saved_tensors)[:2]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]


class _RecurDerivative(Function):
    r""":math:`a_t = g_t + \delta_{t+1} U`, :math:`\delta_t = a_t (1 - h_t^2)`; by U, the sum of
    :math:`\delta_t^\top h_{t-1}`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, drive: Tensor, weight: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total, delta = _run(g, 1 - states * states, weight, backwards=True)
        return delta, _over_time(delta, states), total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, output[0], output[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        g, drive, weight, states, delta, total = ctx.saved_tensors
        by_delta, by_weight = _filled(grads, (drive, weight))
        if torch.is_grad_enabled():
            states = recur(drive, weight)
            total, delta = _run(g, 1 - states * states, weight, backwards=True)
        slope = 1 - states * states
        # The derivative runs from the last position to the first, so its derivative runs forwards, and what
        # reaches the states on the way goes through the layer itself, backwards.
        later = by_delta[:, 1:] + states[:, :-1] @ by_weight.mT.unsqueeze(1)
        reach, alpha = _run(torch.cat([by_delta[:, :1], later], 1), slope, weight.mT)
        onto = -2 * states * reach * total
        earlier = onto[:, :-1] + delta[:, 1:] @ by_weight.unsqueeze(1)
        _, zeta = _run(torch.cat([earlier, onto[:, -1:]], 1), slope, weight, backwards=True)
        return alpha, zeta, _over_time(zeta, states) + _over_time(delta, alpha), None


def _run(drive: Tensor, slope: Tensor, weight: Tensor, *, backwards: bool = False) -> tuple[Tensor, Tensor]:
    """The linear recurrence a = drive + d weight, d = slope a along time: a and d, [B, T, N, H]."""
    order = range(drive.shape[1] - 1, -1, -1) if backwards else range(drive.shape[1])
    drives, slopes = drive.unbind(1), slope.unbind(1)
    totals: list[Tensor] = []
    scaled: list[Tensor] = []
    for t in order:
        totals.append(torch.baddbmm(drives[t], scaled[-1], weight) if scaled else drives[t])
        scaled.append(totals[-1] * slopes[t])
    if backwards:
        totals.reverse()
        scaled.reverse()
    return torch.stack(totals, 1), torch.stack(scaled, 1)


def _over_time(later: Tensor, earlier: Tensor) -> Tensor:
    """Sum over examples and positions of later_t' earlier_{t-1}: [B, T, N, H] twice -> [B, H, H]."""
    return later[:, 1:].flatten(1, 2).mT @ earlier[:, :-1].flatten(1, 2)
