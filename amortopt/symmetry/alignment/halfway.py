r"""Scales for the network half-way between two: fitted to what both answer, without labels.

The average of two networks answers with smaller numbers than either, since weights that do not correspond
exactly cancel in part. Scales can make up for it. A unit of b with scale q has incoming weights q w and
outgoing weights v / q; averaged with a unit of a that has the same w and v, the product is
:math:`\tfrac14 (1 + q)(1 + 1/q)\, v w`, which is larger than :math:`v w` unless q is 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from amortopt._types import Params
from amortopt.functional.networks import shared_slices
from amortopt.symmetry.action import Element, act_on_some, identity
from amortopt.symmetry.inputs import Inputs, apart, outputs_of
from amortopt.symmetry.proof.running import Expectation, restored

if TYPE_CHECKING:
    from amortopt.symmetry.spec import SymmetrySpec

_RATE = 0.05


def halfway_scales(
    spec: SymmetrySpec, network: nn.Module, example_input: Any, a: Params, b: Params, *, steps: int
) -> Element:
    r"""The scales of b with which the average of a and b answers what a and b answer on average.

    Minimised over log scales, by Adam: :math:`\sum_k \lVert f_{(a + gb)/2} - (f_a + f_b)/2 \rVert^2` over the
    outputs k, each divided by the variance of its target. Norms with running statistics take those of the
    examples, as they do after [measure_batch_norms][amortopt.symmetry.measure_batch_norms].

    Args:
        spec: Symmetry of the network.
        network: Its class and buffers; not modified.
        example_input: As for [extract][amortopt.symmetry.extract], with some hundred examples.
        a: Parameters and moved buffers of the first network, float64.
        b: Those of the second, in a's gauge.
        steps: Of Adam. Each costs a forward and a backward pass.

    Returns:
        An element with scales only, of all points on the way the one with the smallest sum, so no worse than
        the identity. The identity if no scale of the spec is continuous.

    Raises:
        ValueError: The network has no floating output, or does not run on the input in float64.
    """
    best = identity(spec)
    names = [group.name for group in spec.groups if group.kind in ("positive", "free")]
    if not names:
        return best
    answer = _Answers(network, example_input)
    with torch.no_grad():
        targets = [(x + y) / 2 for x, y in zip(answer(a), answer(b), strict=True)]
    if not targets:
        raise ValueError("halfway: the network has no floating output to compare; pass halfway=0")
    variances = [_variance(target) for target in targets]
    logs = {n: torch.zeros(spec.group(n).size, dtype=torch.float64, requires_grad=True) for n in names}
    optimizer = torch.optim.Adam(logs.values(), lr=_RATE)
    smallest = float("inf")
    for _ in range(steps + 1):
        g = identity(spec)
        g.scales.update({name: log.exp() for name, log in logs.items()})
        moved = act_on_some(spec, g, b)
        answers = answer({name: (a[name] + moved[name]) / 2 for name in spec.params})
        errors = [(x - y).square().mean() for x, y in zip(answers, targets, strict=True)]
        loss = torch.stack([e / v for e, v in zip(errors, variances, strict=True)]).sum()
        if not bool(loss.isfinite()):
            break
        if float(loss.detach()) < smallest:
            smallest = float(loss.detach())
            best.scales.update({name: log.detach().exp() for name, log in logs.items()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best


class _Answers:
    """The floating outputs of a network on fixed inputs, at any params; float64 on the CPU."""

    def __init__(self, network: nn.Module, example_input: Any) -> None:
        self.inputs = Inputs.of(example_input, network).map(_cast)
        self.network = apart(network)
        self.buffers = {name: _cast(buffer) for name, buffer in self.network.named_buffers()}

    def __call__(self, params: Params) -> list[Tensor]:
        # Norms write to their buffers.
        buffers = {name: params.get(name, buffer).clone() for name, buffer in self.buffers.items()}
        inputs = self.inputs.map(torch.clone)
        with restored(self.network), shared_slices(self.network):
            self.network.eval()
            for part in self.network.modules():
                if getattr(part, "running_mean", None) is not None:
                    part.train()
            # A forward may write to parameters, and make constants of another type.
            fixed = {name: p.clone() for name, p in params.items() if not p.requires_grad}
            try:
                with Expectation(torch.float64, set(), drawn=False, training=True):
                    state = {**params, **fixed, **buffers}
                    output = functional_call(self.network, state, inputs.args, inputs.kwargs)
            except Exception as error:
                raise ValueError(
                    "halfway: the network does not run on example_input in float64, with norms that measure "
                    f"it: {' '.join(str(error).split())[:300]}; give some hundred examples, or halfway=0"
                ) from error
            return [x for x in outputs_of(output) if x.is_floating_point() and x.numel()]


def _cast(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64) if x.is_floating_point() else x.detach().to("cpu")


def _variance(target: Tensor) -> Tensor:
    """Mean square of what differs between examples, or of all if nothing does; 1 for zeros."""
    centred = target - target.mean(0) if target.ndim else target
    for x in (centred, target):
        if float(variance := x.square().mean()) > 0:
            return variance
    return torch.ones((), dtype=torch.float64)
