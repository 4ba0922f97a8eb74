"""Networks of one architecture in one gauge, and their average."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.symmetry.action import Element, act_on_some, compose, inverse
from amortopt.symmetry.alignment.activations import correlations
from amortopt.symmetry.alignment.halfway import halfway_scales
from amortopt.symmetry.alignment.scales import balancing, of_layers
from amortopt.symmetry.alignment.solve import Scores, best_element
from amortopt.symmetry.alignment.weights import WeightMatching
from amortopt.symmetry.extract import extract
from amortopt.symmetry.inputs import Inputs, first_line
from amortopt.symmetry.proof.running import Runner
from amortopt.symmetry.spec import SymmetrySpec


def align(
    a: nn.Module,
    b: nn.Module,
    example_input: Any,
    *,
    by: Literal["weights", "activations"] = "weights",
    spec: SymmetrySpec | None = None,
    restarts: int = 0,
    halfway: int = 0,
    seed: int = 0,
) -> nn.Module:
    r"""Bring a network into the gauge of another one of the same architecture; its function stays as it is.

    Two networks that were trained apart have their units in different orders, with different signs and
    scales. Of all weights with b's function that the symmetry reaches, this returns those that correspond
    best to a's:

    - scales of kinds ``positive`` and ``free``: those of a. Both networks have one scaling in which their sum
      of squared weights is smallest; b is brought to its own, and from there as a's leads back. Networks that
      differ in scales only become equal.
    - permutations and signs, ``by="weights"``: the largest inner product of the weights, by coordinate
      descent over the groups with an exact assignment in each (weight matching of Ainsworth et al. 2023),
      from several starts. The weights of a layer count as large as a's are, single units do not.
    - permutations and signs, ``by="activations"``: the largest sum of correlations of what the units compute
      on ``example_input``; groups whose values no operation returns are matched by weights.
    - scales once more, with ``halfway=100``: fitted, so that the average of a and what is returned answers
      on ``example_input`` what a and b answer on average. No labels are needed. This is for networks that
      are to be averaged; those that differ in scales only stay equal.

    Args:
        a: The network whose gauge is taken; not modified.
        b: A network with parameters of the same names and shapes; not modified.
        example_input: What forward takes, as for [extract][amortopt.symmetry.extract]. By activations some
            hundred examples; all values that a forward pass computes on them are held in memory.
        by: What corresponding units have in common.
        spec: Symmetry of both; if it is None, a's is extracted, and b is checked to run the same operations.
        restarts: Further starts of weight matching in random orders, of which the best result is kept.
        halfway: Steps that fit scales for the average of both; each is a forward and a backward pass on
            ``example_input``, which should have some hundred examples. 0 for none.
        seed: Of these orders.

    Returns:
        A copy of b with moved parameters and buffers. Computed on the CPU in float64.

    Raises:
        ValueError: The networks or the spec do not belong together, ``by`` is unknown, by activations they
            run different operations, or ``halfway`` is negative or the network does not run so.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> other = copy.deepcopy(net)
        >>> with torch.no_grad():
        ...     for p in (other[0].weight, other[0].bias, other[2].weight.T):
        ...         _ = p.copy_(-p.flip(0))
        >>> back = align(net, other, torch.randn(5, 4))
        >>> bool((back[0].weight == net[0].weight).all())
        True
    """
    if by not in ("weights", "activations"):
        raise ValueError(f"by: got {by!r}, expected 'weights' or 'activations'")
    for name, count in {"restarts": restarts, "halfway": halfway, "seed": seed}.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"{name}: got {count!r}, expected a whole number of at least 0")
    for name, network in {"a": a, "b": b}.items():
        if not isinstance(network, nn.Module):
            raise ValueError(f"{name}: got {type(network).__name__}, expected an nn.Module")
    if not (spec is None or isinstance(spec, SymmetrySpec)):
        raise ValueError(f"spec: got {type(spec).__name__}, expected a SymmetrySpec, or None to extract it")
    if spec is None:
        spec = extract(a, example_input)
        _check(spec, a, b)
        _check_operations(spec, b, example_input, "b")
    else:
        _check(spec, a, b)
    first, second = (state_of(network, spec) for network in (a, b))
    scores: Scores = {}
    if by == "activations":
        scores = correlations(spec, Runner(a, example_input), Runner(b, example_input))
    g = _element(spec, first, second, scores, restarts, seed)
    moved = act_on_some(spec, g, second)
    if halfway:
        scales = halfway_scales(spec, a, example_input, first, moved, steps=halfway)
        moved = act_on_some(spec, scales, moved)
    aligned = copy.deepcopy(b)
    write_state(aligned, moved)
    return aligned


def aligning_element(
    spec: SymmetrySpec, a: Params, b: Params, *, restarts: int = 0, seed: int = 0
) -> Element:
    """The element that brings b into the gauge of a by weights, for networks that are there as tensors.

    Args:
        spec: Symmetry of both.
        a: Parameters of a, ``spec.params``.
        b: Parameters of b.
        restarts: As for [align][amortopt.symmetry.align].
        seed: As for [align][amortopt.symmetry.align].

    Returns:
        g, so that ``act(spec, g, b)`` has b's function and is close to a.
    """
    return _element(spec, a, b, {}, restarts, seed)


def _element(spec: SymmetrySpec, a: Params, b: Params, scores: Scores, restarts: int, seed: int) -> Element:
    """Scales by norms, groups that have scores by these, and all others by weights."""
    a, b = ({name: p[name].detach().to("cpu", torch.float64) for name in spec.params} for p in (a, b))
    balance_a, balance_b = balancing(spec, a), balancing(spec, b)
    g = best_element(spec, scores)
    # Layers count as large as a's are. Their scale, one for all units of a group, commutes with orders.
    layers = of_layers(spec, inverse(balance_a))
    a = act_on_some(spec, compose(layers, balance_a), a)
    b = act_on_some(spec, compose(layers, compose(g, balance_b)), b)
    matching = WeightMatching(spec, a, b, known={spec.owners(group)[-1] for group in scores})
    h = matching.best(restarts, torch.Generator().manual_seed(seed))
    # b to its own smallest weights, units into a's order, and as a's smallest weights lead back to a
    return compose(inverse(balance_a), compose(h, compose(g, balance_b)))


def merge(
    networks: Sequence[nn.Module],
    example_input: Any,
    *,
    weights: Sequence[float] | None = None,
    inputs: Iterable[Any] | None = None,
    by: Literal["weights", "activations"] = "weights",
    spec: SymmetrySpec | None = None,
    restarts: int = 0,
    halfway: int = 0,
    seed: int = 0,
) -> nn.Module:
    """Average networks of one architecture, each aligned to the first.

    Running statistics of batch norms that are averaged do not fit the averaged weights: give ``inputs``, on
    which they are measured anew.

    Args:
        networks: The networks; not modified.
        example_input: As for [align][amortopt.symmetry.align].
        weights: Share of every network; equal shares if None. They are divided by their sum.
        inputs: Batches, each what forward takes, to measure running statistics on: a list, or a loader.
        by: As for [align][amortopt.symmetry.align].
        spec: Symmetry of all; if it is None, the first one's is extracted, and the others are checked to run
            the same operations.
        restarts: As for [align][amortopt.symmetry.align].
        halfway: As for [align][amortopt.symmetry.align]; each network is fitted to the first.
        seed: As for [align][amortopt.symmetry.align].

    Returns:
        A copy of the first network with the averages as parameters and floating buffers.

    Raises:
        ValueError: There is no network, they do not belong together, or the weights are not one per network
            with a sum other than 0.

    Warns:
        UserWarning: The networks have running statistics, and there are no ``inputs`` to measure them on.
    """
    networks = _listed(networks)
    shares = [1.0] * len(networks) if weights is None else [float(w) for w in weights]
    if len(shares) != len(networks) or not math.isfinite(sum(shares)) or not sum(shares):
        raise ValueError(
            f"weights: got {shares} for {len(networks)} networks, expected one number per network, with a "
            "finite sum other than 0"
        )
    first = networks[0]
    if spec is None:
        spec = extract(first, example_input)
        for number, network in enumerate(networks[1:], start=1):
            _check(spec, first, network)
            _check_operations(spec, network, example_input, f"networks[{number}]")
    others = [
        align(first, network, example_input, by=by, spec=spec, restarts=restarts, halfway=halfway, seed=seed)
        for network in networks[1:]
    ]
    merged = copy.deepcopy(first)
    states = [_tensors(network) for network in (first, *others)]
    share = torch.tensor(shares, dtype=torch.float64) / sum(shares)
    for name, value in states[0].items():
        if value.is_floating_point():
            stacked = torch.stack([state[name].detach().to("cpu", torch.float64) for state in states])
            write_state(merged, {name: torch.tensordot(share, stacked, 1)})
    normed = [part for part in merged.modules() if getattr(part, "running_mean", None) is not None]
    if normed and inputs is None:
        warnings.warn(
            f"merge: {len(normed)} norms have running statistics, which are averaged; those of the merged "
            "network differ: pass inputs=, batches to measure them on, or call measure_batch_norms",
            stacklevel=2,
        )
    if inputs is not None:
        measure_batch_norms(merged, inputs)
    return merged


def _listed(networks: Any) -> list[nn.Module]:
    """The networks; a ``ValueError`` for one network, none, or anything else."""
    if isinstance(networks, nn.Module) or not isinstance(networks, Iterable):
        got, networks = type(networks).__name__, []
    else:
        networks = list(networks)
        others = [x for x in networks if not isinstance(x, nn.Module)]
        got = f"{type(others[0]).__name__} among them" if others else "none" if not networks else ""
    if got:
        raise ValueError(
            f"networks: got {got}, expected a list of nn.Modules of one architecture; pass [a, b]"
        )
    return networks


def measure_batch_norms(network: nn.Module, inputs: Iterable[Any]) -> None:
    """Replace the running statistics of a network's norms by those on some batches, equally weighted.

    Args:
        network: Its buffers are modified; parameters and mode are not.
        inputs: Batches, each what forward takes as for [extract][amortopt.symmetry.extract].

    Raises:
        ValueError: There is no batch.
    """
    if isinstance(inputs, Tensor | dict):
        raise ValueError(
            f"inputs: got one {type(inputs).__name__}, expected batches of what forward takes; pass [inputs]"
        )
    normed: list[Any] = [p for p in network.modules() if getattr(p, "running_mean", None) is not None]
    modes = [(part, part.training) for part in network.modules()]
    momenta = [part.momentum for part in normed]
    count = 0
    try:
        network.eval()
        for part in normed:
            part.reset_running_stats()
            part.momentum = None  # the mean over all batches
            part.train()
        with torch.no_grad():
            for batch in inputs:
                count += 1
                call = Inputs.of(batch, network)
                try:
                    network(*call.args, **call.kwargs)
                except Exception as error:
                    raise ValueError(
                        f"inputs: batch {count} is no input of {type(network).__name__}: "
                        f"{first_line(error)}; got [{call}]{_ADVICE[len(call.tensors) > 1]}"
                    ) from error
    finally:
        for part, mode in modes:
            part.training = mode
        for part, momentum in zip(normed, momenta, strict=True):
            part.momentum = momentum
    if not count:
        raise ValueError("inputs: got no batch, expected at least one of what forward takes")


_ADVICE = (
    "; give batches of several examples",
    ", expected what forward takes without labels; pass [x for x, y in loader]",
)
"""What to do with a batch that forward does not take: one argument, or several."""


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def state_of(network: nn.Module, spec: SymmetrySpec) -> Params:
    """A network's parameters and moved buffers, in float64 on the CPU."""
    tensors = _tensors(network)
    return {name: tensors[name].detach().to("cpu", torch.float64) for name in (*spec.params, *spec.buffers)}


@torch.no_grad()
def write_state(network: nn.Module, values: Params) -> None:
    """Write parameters and buffers in place."""
    tensors = _tensors(network)
    for name, value in values.items():
        tensors[name].copy_(value)


def _check(spec: SymmetrySpec, a: nn.Module, b: nn.Module) -> None:
    """Raise a ``ValueError`` unless both have the parameters and buffers of the spec, in the same shapes."""
    tensors = [_tensors(network) for network in (a, b)]
    shapes = [{name: tuple(t.shape) for name, t in each.items()} for each in tensors]
    for name in (*spec.params, *spec.buffers):
        got = [s.get(name) for s in shapes]
        if got[0] is None or got[0] != got[1]:
            raise ValueError(
                f"b: got {name!r} of shape {got[1]}, expected {got[0]} as in a and the spec; give networks "
                "of one architecture"
            )
        for value, key in ((network.get(name), label) for network, label in zip(tensors, "ab", strict=True)):
            if value is not None and value.is_meta:
                raise ValueError(
                    f"{key}: got {name!r} on the meta device, expected weights with values; load them first, "
                    "with to_empty and load_state_dict"
                )
            if value is not None and value.is_floating_point() and not bool(value.isfinite().all()):
                raise ValueError(f"{key}: got NaN or infinite values in {name!r}, expected finite weights")


def _check_operations(spec: SymmetrySpec, network: nn.Module, example_input: Any, where: str) -> None:
    """Raise a ``ValueError`` unless a network with the parameters of a spec runs the spec's operations."""
    runs = extract(network, example_input).operations
    pairs = zip_longest(spec.operations, runs)
    for number, (expected, got) in enumerate(pairs, start=1):
        kinds = [None if op is None else op.kind for op in (expected, got)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{where}: operation {number} is {kinds[1] or 'missing'}, expected {kinds[0] or 'none'} as "
                "in the first network; what moves the units of the one changes the function of the other: "
                "give networks of one architecture"
            )
