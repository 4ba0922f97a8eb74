"""Many GRUs with a readout at once, as batched products: loss, gradient, answers. Maths only, no files.

Every network has its own params and may read its own problems. The gradient is written out by hand: what
autograd would record for every small product of every character costs several times the products themselves.

Legend: B networks, N problems, T characters read, A digits of the answer, V vocabulary, C digits, H units.
Units stand before problems ([B, H, N]), so that a gate is a slice of whole rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from amortopt._types import Params
from amortopt.tasks.arithmetic import VOCABULARY


def loss_and_grads(params: Params, problems: Tensor, answer: int) -> tuple[Tensor, Params]:
    """Mean cross-entropy of each network on its own problems, and its gradient.

    Args:
        params: Names of ``ArithmeticRNN`` -> [B, ...]; not modified.
        problems: Symbols int64 [B, N, T + 1].
        answer: Digits A of an answer.

    Returns:
        Losses in nats [B], means over problems and digits, and gradients with the names and shapes of
        ``params``.
    """
    x = _one_hot(problems[..., :-1], params)
    states, gates = _states(params, x)
    hidden = torch.stack(states[-answer:], dim=2)  # [B, H, A, N]
    flat = hidden.flatten(2)
    logits = _readout(params, flat)  # [B, C, A * N]
    targets = problems[..., -answer:].transpose(1, 2).flatten(1)  # [B, A * N]
    log_p = logits.log_softmax(1)
    losses = -log_p.gather(1, targets[:, None]).mean((1, 2))
    d_logits = log_p.exp_()
    d_logits.scatter_add_(1, targets[:, None], torch.full_like(d_logits[:, :1], -1.0))
    d_logits /= targets.shape[1]
    weight = params["readout.weight"]
    d_hidden = torch.bmm(weight.transpose(1, 2), d_logits).view_as(hidden)
    grads = _backward(params, x, states, gates, d_hidden)
    grads |= {
        "readout.weight": torch.bmm(d_logits, flat.transpose(1, 2)),
        "readout.bias": d_logits.sum(2),
    }
    return losses, {name: grads[name] for name in params}


@torch.no_grad()
def answers(params: Params, problems: Tensor, answer: int, chunk: int = 500) -> tuple[Tensor, Tensor]:
    """How well each network answers.

    The network is given the true digits before the one that it has to say. For whole answers that is the same
    as letting it go on from its own: the first wrong digit makes the answer wrong either way.

    Args:
        params: Names of ``ArithmeticRNN`` -> [B, ...].
        problems: Symbols int64 [N, T + 1], the same for all networks.
        answer: Digits A of an answer.
        chunk: Problems per pass, which bounds the memory.

    Returns:
        Fraction of digits that are right and fraction of problems that are answered without a single wrong
        digit, both [B] in [0, 1], float64; where logits are not finite, nothing is right.
    """
    count = len(params["readout.bias"])
    right = torch.zeros(2, count, dtype=torch.float64, device=problems.device)
    for part in problems.split(chunk):
        x = _one_hot(part[None, :, :-1].expand(count, -1, -1), params)
        hidden = torch.stack(_states(params, x)[0][-answer:], dim=2)
        logits = _readout(params, hidden.flatten(2)).unflatten(2, hidden.shape[2:])
        hits = (logits.argmax(1) == part[:, -answer:].T) & logits.isfinite().all(1)  # [B, A, N]
        right += torch.stack([hits.double().mean(1).sum(1), hits.all(1).double().sum(1)])
    digits, whole = right / len(problems)
    return digits, whole


def _one_hot(symbols: Tensor, params: Params) -> Tensor:
    """Characters [B, N, T] as columns: [T, B, V, N]."""
    hot = F.one_hot(symbols.permute(2, 0, 1), len(VOCABULARY))
    return hot.to(params["readout.bias"].dtype).transpose(2, 3).contiguous()


def _readout(params: Params, hidden: Tensor) -> Tensor:
    return torch.baddbmm(params["readout.bias"][:, :, None], params["readout.weight"], hidden)


def _states(params: Params, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """States before the first and after every character, T + 1 of [B, H, N], and the gates, T of [B, 4 H, N].

    Gates are r, z, n (torch.nn.GRU's) and what r is multiplied with.
    """
    w_ih, w_hh = params["gru.weight_ih_l0"], params["gru.weight_hh_l0"]
    size = w_hh.shape[2]
    both = 2 * size
    bias = params["gru.bias_ih_l0"].clone()
    bias[:, :both] += params["gru.bias_hh_l0"][:, :both]
    own = params["gru.bias_hh_l0"][:, both:, None]
    states, gates = [x.new_zeros(x.shape[1], size, x.shape[3])], list[Tensor]()
    for x_t in x:
        h = states[-1]
        parts = h.new_empty(h.shape[0], 4 * size, h.shape[2])
        parts[:, : 3 * size] = torch.baddbmm(bias[:, :, None], w_ih, x_t)
        parts[:, :both].baddbmm_(w_hh[:, :both], h).sigmoid_()
        r, z, n, inner = parts.split(size, dim=1)
        inner.copy_(torch.baddbmm(own, w_hh[:, both:], h))
        n.addcmul_(r, inner).tanh_()
        states.append(torch.lerp(n, h, z))  # h' = (1 - z) n + z h
        gates.append(parts)
    return states, gates


def _backward(
    params: Params, x: Tensor, states: list[Tensor], gates: list[Tensor], d_hidden: Tensor
) -> Params:
    """Gradients of the recurrent params, given those of the last A states [B, H, A, N]."""
    w_hh = params["gru.weight_hh_l0"]
    size = w_hh.shape[2]
    turned = w_hh.transpose(1, 2)
    names = ("gru.weight_ih_l0", "gru.weight_hh_l0")
    d_ih, d_hh = (torch.zeros_like(params[name]) for name in names)
    d_bias = d_hh.new_zeros(d_hh.shape[0], 4 * size)
    d_h = torch.zeros_like(states[0])
    first = len(x) - d_hidden.shape[2]
    for t in reversed(range(len(x))):
        if t >= first:
            d_h = d_h + d_hidden[:, :, t - first]
        h = states[t]
        r, z, n, inner = gates[t].split(size, dim=1)
        d = torch.empty_like(gates[t])  # of the arguments of r, z and n, and of inner
        d_r, d_z, d_n, d_inner = d.split(size, dim=1)
        torch.mul(d_h, (h - n).mul_(z).mul_(1 - z), out=d_z)
        torch.mul(d_h, (1 - z).mul_(1 - n * n), out=d_n)
        torch.mul(d_n, r, out=d_inner)
        torch.mul(d_inner, inner, out=d_r).mul_(1 - r)
        d_bias += d.sum(2)
        d_ih.baddbmm_(d[:, : 3 * size], x[t].transpose(1, 2))
        # d_n goes to the characters only, d_inner to the state only.
        d_n.copy_(d_inner)
        to_state = d[:, : 3 * size]
        d_hh.baddbmm_(to_state, h.transpose(1, 2))
        d_h = torch.baddbmm(d_h * z, turned, to_state)
    both = 2 * size
    return {
        names[0]: d_ih,
        names[1]: d_hh,
        "gru.bias_ih_l0": d_bias[:, : 3 * size],
        "gru.bias_hh_l0": torch.cat([d_bias[:, :both], d_bias[:, 3 * size :]], dim=1),
    }
