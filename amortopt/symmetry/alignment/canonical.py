"""One network of every orbit: weights in a gauge that depends on the function alone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from amortopt._types import Params
from amortopt.symmetry.action import Element, act_on_some, compose
from amortopt.symmetry.alignment.align import state_of, write_state
from amortopt.symmetry.alignment.phases import without_phases
from amortopt.symmetry.alignment.scales import canonical_scales
from amortopt.symmetry.alignment.weights import WeightMatching
from amortopt.symmetry.extract import extract
from amortopt.symmetry.spec import SymmetrySpec


def canonicalise(
    model: nn.Module,
    example_input: Any = None,
    *,
    spec: SymmetrySpec | None = None,
    reference: Params | None = None,
) -> nn.Module:
    r"""Bring a network into a canonical gauge; its function stays as it is.

    Networks that differ by an element of their symmetry become equal, so whatever reads the result (an MLP
    on flattened weights, a distance, a hash) has the symmetry built in:

    - sines with a bias, in chains of layers: the bias is brought within a quarter of a period of 0, by steps
      of half a period, :math:`\sin(z + \pi) = -\sin z`, with what reads the unit negated at odd steps.
    - kinds ``positive`` and ``free``: the scales with the smallest sum of squared weights, where incoming and
      outgoing weights of a unit have equal norms. A unit without incoming or outgoing weights has no such
      scale; its weights to the others are brought to norm one.
    - permutations and signs, of kinds ``sign`` and ``free``: those that bring the weights closest to a fixed
      reference, group after group from the inputs, each compared by the weights to groups that are settled;
      then by all weights, until nothing improves.

    Where the choice is a tie, the order of units is as it was: units with equal weights to all settled
    groups (zero rows among them), whose other weights do not decide. A unit between two places in the
    reference, or a bias at the edge of its quarter of a period, can jump when weights change a little; a
    ``reference`` that is like the networks, such as one of them, makes jumps rare.

    Args:
        model: The network; not modified.
        example_input: What forward takes, as for [extract][amortopt.symmetry.extract]; needed without
            ``spec``.
        spec: Its symmetry; extracted if it is None.
        reference: Parameter name -> tensor of the parameter's shape, what permutations and signs are
            compared with; by default random numbers, the same for every network with parameters of these
            shapes. It is itself brought to canonical scales.

    Returns:
        A copy with moved parameters and buffers. Computed on the CPU in float64.

    Raises:
        ValueError: Parameters are NaN or infinite, neither ``example_input`` nor ``spec`` is there, or they
            do not fit the network.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        >>> other = copy.deepcopy(net)
        >>> with torch.no_grad():
        ...     for p in (other[0].weight, other[0].bias, other[2].weight.T):
        ...         _ = p.copy_(-p.flip(0))
        >>> a, b = (canonicalise(each, torch.zeros(1, 4)) for each in (net, other))
        >>> torch.equal(a[0].weight, b[0].weight)
        True
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: got {type(model).__name__}, expected one network (nn.Module)")
    if spec is None:
        if example_input is None:
            raise ValueError("example_input: got none, expected what forward takes; pass it, or spec=")
        spec = extract(model, example_input)
    moved = copy.deepcopy(model)
    write_state(moved, canonical_params(spec, state_of(model, spec), reference=reference))
    return moved


def canonical_params(
    spec: SymmetrySpec, params: Params, *, batched: bool = False, reference: Params | None = None
) -> Params:
    """As [canonicalise][amortopt.symmetry.canonicalise], for networks that are there as tensors.

    Args:
        spec: Symmetry of the networks.
        params: All of ``spec.params``, and any of its buffers; with a leading axis B if ``batched``. Not
            modified.
        batched: Whether the tensors have a leading network axis. Networks are done one after the other.
        reference: As for ``canonicalise``.

    Returns:
        New tensors with the names, shapes and dtypes of ``params``, on their devices.

    Raises:
        ValueError: As ``canonicalise``.
    """
    if batched:
        count = {len(p) for p in params.values()}
        if len(count) != 1:
            raise ValueError(
                f"params: got leading axes {sorted(count)}, expected one axis of networks for all"
            )
        each = [
            canonical_params(spec, {name: p[b] for name, p in params.items()}, reference=reference)
            for b in range(count.pop())
        ]
        return {name: torch.stack([one[name] for one in each]) for name in params}
    wide = _checked(spec, params)
    weights = without_phases(spec, wide)
    moved = act_on_some(spec, _element(spec, weights, reference), weights)
    return {name: moved[name].to(p) if name in moved else p.clone() for name, p in params.items()}


def canonical_element(spec: SymmetrySpec, params: Params, *, reference: Params | None = None) -> Element:
    """The element that brings one network's params into the canonical gauge; phases stay as they are.

    Args:
        spec: Symmetry of the network.
        params: All of ``spec.params``; not modified.
        reference: As for ``canonicalise``.

    Returns:
        g, for ``act(spec, g, params)``; float64, on the CPU.

    Raises:
        ValueError: As ``canonicalise``.
    """
    return _element(spec, _checked(spec, params), reference)


def _element(spec: SymmetrySpec, weights: Params, reference: Params | None) -> Element:
    scales = canonical_scales(spec, weights)
    if reference is None:
        generator = torch.Generator().manual_seed(0)
        draw = lambda p: torch.randn(p.shape, generator=generator, dtype=torch.float64)  # noqa: E731
        like = {name: draw(weights[name]) for name in spec.params}
    else:
        like = _checked(spec, reference, "reference")
        like = act_on_some(spec, canonical_scales(spec, like), like)
    matching = WeightMatching(spec, like, act_on_some(spec, scales, weights))
    return compose(matching.from_settled(), scales)


def _checked(spec: SymmetrySpec, params: Params, what: str = "params") -> Params:
    """The spec's params and buffers in float64 on the CPU; raises a ``ValueError`` unless they are right."""
    if missing := [name for name in spec.params if name not in params]:
        raise ValueError(f"{what}: got none of {', '.join(missing)}, expected all of spec.params")
    names = [name for name in (*spec.params, *spec.buffers) if name in params]
    wide = {name: params[name].detach().to("cpu", torch.float64) for name in names}
    for name, value in wide.items():
        if bad := int((~value.isfinite()).sum()):
            raise ValueError(
                f"{what}: {name!r} has {bad} NaN or infinite values of {value.numel()}; a network without "
                "a function has no gauge, leave it out"
            )
    return wide
