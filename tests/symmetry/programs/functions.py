"""Steps that draw from tables: every elementwise function, comparison and reduction that has a rule.

A function is written such that finite inputs of any size give finite outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.symmetry.programs.base import Program, axis_of, step_of_programs


def _inside(x: Tensor) -> Tensor:
    """Odd, into (-0.9, 0.9)."""
    return 0.9 * torch.tanh(x)


def _above(x: Tensor) -> Tensor:
    """Even, from 1 on."""
    return 1 + x.square()


_special, _aten = torch.special, torch.ops.aten
_SMOOTH: list[Callable[[Tensor], Tensor]] = [
    *(torch.asinh, torch.erf, torch.erfc, torch.cos, torch.sinc, torch.reciprocal, torch.positive),
    *(torch.deg2rad, torch.resolve_conj, torch.resolve_neg, torch.log_softmax, torch.real),
    *(F.silu, F.softplus, F.elu, F.celu, F.selu, F.mish, F.hardswish, F.hardsigmoid, F.logsigmoid, F.relu6),
    *(F.hardshrink, F.softshrink, F.softsign, F.rrelu, lambda x: F.threshold(x, 0.1, -0.2)),
    *(lambda x: x.clamp_min(0), lambda x: x.clamp_max(0), lambda x: x.clamp_min(0.1)),
    lambda x: -x.clamp_max(0.4),
    *(lambda x: torch.asin(_inside(x)), lambda x: torch.acos(_inside(x)), lambda x: torch.atanh(_inside(x))),
    *(lambda x: torch.acosh(1 + _above(x)), lambda x: torch.sinh(_inside(x))),
    lambda x: torch.cosh(_inside(x)),
    *(lambda x: torch.tan(_inside(x)), lambda x: torch.erfinv(_inside(x)), lambda x: torch.exp(_inside(x))),
    *(lambda x: torch.exp2(_inside(x)), lambda x: torch.expm1(_inside(x)), lambda x: torch.log(_above(x))),
    *(lambda x: torch.log2(_above(x)), lambda x: torch.log10(_above(x)), lambda x: torch.log1p(x.abs())),
    *(lambda x: torch.sqrt(_above(x)), lambda x: torch.rsqrt(_above(x)), lambda x: torch.logit(x.sigmoid())),
    *(lambda x: torch.lgamma(_above(x)), lambda x: torch.digamma(_above(x))),
    lambda x: torch.igamma(_above(x), x.abs()),
    *(lambda x: torch.polygamma(1, _above(x)), lambda x: torch.mvlgamma(1 + _above(x), 2)),
    lambda x: torch.igammac(_above(x), x.abs()),
    *(lambda x: _special.gammainc(_above(x), x.abs()), lambda x: _special.gammaincc(_above(x), x.abs())),
    *(lambda x: _special.multigammaln(1 + _above(x), 2), lambda x: _special.zeta(1 + _above(x), 1.0)),
    *(lambda x: _special.ndtri(x.sigmoid()), lambda x: _special.erfcx(_inside(x))),
    lambda x: _special.i0(_inside(x)),
    *(lambda x: _special.entr(x.abs()), lambda x: _special.i1(_inside(x)), lambda x: x.double()),
    *(_special.ndtr, _special.log_ndtr, _special.i0e, _special.i1e, _special.bessel_j0, _special.bessel_j1),
    *(_special.airy_ai, lambda x: _special.bessel_y0(_above(x)), lambda x: _special.bessel_y1(_above(x))),
    *(lambda x: _special.modified_bessel_i0(_inside(x)), lambda x: _special.modified_bessel_i1(_inside(x))),
    *(lambda x: _special.modified_bessel_k0(_above(x)), lambda x: _special.modified_bessel_k1(_above(x))),
    *(lambda x: _special.spherical_bessel_j0(_above(x)), lambda x: torch.float_power(x, 2)),
    lambda x: torch.pow(x, 3),
    *(lambda x: torch.complex(x, x.cos()).imag, lambda x: torch.complex(x, -x).angle()),
    lambda x: x * x.conj(),
    *(lambda x: F.dropout(x, 0.3, False), lambda x: F.alpha_dropout(x, 0.3, False)),
    *(lambda x: F.feature_alpha_dropout(x, 0.3, False), lambda x: torch.feature_dropout(x, 0.3, False)),
    *(lambda x: _aten._softmax(x, -1, False), lambda x: _aten._log_softmax(x, 1, False)),
    lambda x: F.softmin(x, -1),
]  # fmt: skip
# Steps, such as those of a quantizer, and truth values as a mask.
_STEPPED: list[Callable[[Tensor], Tensor]] = [
    *(torch.sign, torch.sgn, torch.round, torch.ceil, torch.frac, lambda x: x * x.isreal()),
    *(lambda x: x * x.isfinite(), lambda x: x * x.isnan().logical_not(), lambda x: x * ~x.isinf()),
    *(lambda x: x * x.signbit(), lambda x: x + x.isposinf(), lambda x: x * ~x.isneginf()),
    lambda x: x * (x != 0),
    *(lambda x: x * (x <= 0), lambda x: x * (x >= 0.1), lambda x: x * (x < 0), lambda x: x * (x == 0) - x),
    *(lambda x: x * (x > 0).type_as(x), lambda x: torch.heaviside(x, x.new_ones(())) * x),
    lambda x: x * x.bool(),
    lambda x: x * torch.bucketize(x, torch.tensor([-0.5, 0.0, 0.5])),
    *(lambda x: x + torch.searchsorted(torch.tensor([-0.5, 0.5]), x), lambda x: x * x.gt(0).logical_not()),
]  # fmt: skip
_OF_TWO: list[Callable[[Tensor, Tensor], Tensor]] = [
    *(torch.fmax, torch.fmin, torch.copysign, torch.logaddexp, torch.logaddexp2, torch.rsub, torch.nextafter),
    *(lambda x, y: torch.fmod(x, _above(y)), lambda x, y: torch.floor_divide(x, _above(y))),
    *(lambda x, y: torch.remainder(x, _above(y)), lambda x, y: torch.ldexp(x, _inside(y))),
    *(lambda x, y: torch.xlogy(x, _above(y)), lambda x, y: _special.xlog1py(x, y.square())),
    *(lambda x, y: _special.zeta(1 + _above(x), _above(y)), lambda x, y: torch.complex(x, y).abs()),
    *(lambda x, y: torch.heaviside(x, y), lambda x, y: x * torch.isclose(x, y, rtol=0.3)),
    lambda x, y: x * (x == y),
    *(lambda x, y: x * (x != y), lambda x, y: x * (x >= y), lambda x, y: y * (x <= y)),
    lambda x, y: x * (x < y),
    *(lambda x, y: x * torch.logical_and(x > 0, y > 0), lambda x, y: x * torch.logical_or(x > 0, y > 0)),
    *(lambda x, y: x * torch.logical_xor(x > 0, y > 0), lambda x, y: x * torch.bitwise_or(x > 0, y > 0)),
    *(lambda x, y: x * torch.bitwise_and(x > 0, y > 0.1), lambda x, y: x * torch.bitwise_xor(x > 0, y > 0)),
    lambda x, y: y * ((x > 0) ^ (y > 0)),
    lambda x, y: x * ~(y > 0),
    *(lambda x, y: x * (x > 0).__or__(y > 0), lambda x, y: x + F.pairwise_distance(x, y, keepdim=True)),
    *(lambda x, y: x * torch.dist(x, y).tanh(), lambda x, y: torch.min(x, y)),
    lambda x, y: torch.where(x > y, y, x),
    *(lambda x, y: torch.clamp(x, y.tanh() - 1, y.tanh() + 1), lambda x, y: x.clone().copy_(y) + x.tanh()),
]  # fmt: skip
_REDUCED: list[Callable[[Tensor, int], Tensor]] = [
    *(torch.nanmean, torch.nansum, torch.prod, torch.std, torch.count_nonzero),
    *(lambda x, axis: x.median(axis)[0], lambda x, axis: x.nanmedian(axis)[0]),
    lambda x, axis: x.mode(axis)[0],
    *(lambda x, axis: torch.std_mean(x, axis)[0], lambda x, axis: torch.std_mean(x, axis)[1] + 1),
    *(lambda x, axis: x.min(axis)[0], lambda x, axis: x.kthvalue(1, axis)[0], lambda x, axis: x.argmax(axis)),
    *(lambda x, axis: x.argmin(axis), lambda x, axis: (x > 0).all(axis), lambda x, axis: (x > 0).any(axis)),
    *(lambda x, axis: x.nanquantile(0.4, axis), lambda x, axis: (x > 0).sum(axis)),
    lambda x, axis: x.norm(1, axis),
    *(lambda x, axis: _aten.frobenius_norm(x, [axis]), lambda x, axis: x.topk(1, axis)[0].squeeze(axis)),
    *(lambda x, axis: _aten.norm(x, 2, [axis]), lambda x, axis: torch.fmax(x.amin(axis), x.mean(axis))),
    *(lambda x, axis: F.one_hot(x.argmax(axis), x.shape[axis]).sum(-1), lambda x, axis: x.norm(0, axis)),
]  # fmt: skip


@step_of_programs(4)
def smooth(p: Program, x: Tensor, r: Random) -> Tensor:
    function = r.choice(_SMOOTH)
    return function(x, -1) if function is torch.log_softmax else function(x)


@step_of_programs(2)
def stepped(p: Program, x: Tensor, r: Random) -> Tensor:
    return r.choice(_STEPPED)(x)


@step_of_programs(3)
def of_another(p: Program, x: Tensor, r: Random) -> Tensor:
    return r.choice(_OF_TWO)(x, p.another(x, r))


@step_of_programs(2)
def reduced_to(p: Program, x: Tensor, r: Random) -> Tensor:
    axis = axis_of(x, r)
    y = r.choice(_REDUCED)(x, axis).to(x.dtype).unsqueeze(axis)
    return x + y if x.ndim == 2 or r.random() < 0.5 else y.squeeze(axis)


@step_of_programs()
def counts(p: Program, x: Tensor, r: Random) -> Tensor:
    form = r.randrange(4)
    if form == 3:
        return (
            x.flatten(1)
            * torch.linalg.matrix_norm(x.flatten(1, -2) if x.ndim > 2 else x[:, None])[:, None].tanh()
        )
    if form == 0:
        return x * torch.histc(x, 3, -2, 2)[0].tanh()
    if form == 1:
        return x * torch.bincount(x.flatten(1).argmax(1), minlength=x[0].numel()).to(x.dtype).std()
    return x + F.one_hot(x.argmax(-1), x.shape[-1])
