"""Run a metanet on the weights of networks: conditions, batching, number format. Writes nothing.

Legend: B networks, N examples, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from amortopt._types import Params
from amortopt.functional.networks import eval_mode
from amortopt.metanets import Conditions, L1Range, Metanet
from amortopt.optim.networks import Network
from amortopt.tasks import Examples, Objective, loss_and_grad_many


class OutOfRangeWarning(UserWarning):
    """An L1 strength that the checkpoint was not trained for; nothing is promised there."""


_CHUNK = 4096
"""Examples per network in one forward pass, which bounds the memory of a gradient."""


@dataclass(frozen=True)
class Batch:
    """Examples, shared or per network, and the objective whose gradients are computed on them."""

    examples: Examples
    objective: Objective

    def gradient(self, module: nn.Module, params: Params) -> Params:
        """Gradients [B, ...] at params [B, ...] of the module in eval mode, which is left as it was."""
        first = next(iter(params.values()))
        count = len(first)
        total = self.examples.counts(count).to(first)
        mean = {name: torch.zeros_like(p) for name, p in params.items()}
        with eval_mode(module):
            for part in self.examples.chunks(_CHUNK):
                part = part.to(first.device, first.dtype)
                gradient = loss_and_grad_many(module, params, part, self.objective)[1]
                share = part.counts(count).to(first) / total
                for name, g in gradient.items():
                    mean[name] += share.view(-1, *[1] * (g.ndim - 1)) * g
        return mean

    def of(self, networks: list[int]) -> Batch:
        """The batch of some networks, by their positions."""
        return Batch(self.examples.of(torch.tensor(networks)), self.objective)


def improve(
    metanet: Metanet,
    networks: Sequence[Network],
    batch: Batch | None,
    l1: Tensor | None,
    passes: int,
    where: Callable[[int], str],
) -> list[Params]:
    """New values for networks of any mix of widths; those of equal shapes and dtypes run as one batch.

    Args:
        metanet: The metanet.
        networks: B networks; not modified.
        batch: For gradients, if the metanet reads them.
        l1: L1 strengths [B], if the metanet reads them.
        passes: How often the metanet is applied in a row.
        where: Text that names network i in an error, in front of the message.

    Returns:
        Values by the parameter names of each network, in its dtypes, on the metanet's device.

    Raises:
        ValueError: Weights, gradients or results are not finite.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, network in enumerate(networks):
        alike.setdefault(tuple((p.shape, p.dtype) for p in network.params.values()), []).append(i)
    better: list[Params] = [{} for _ in networks]
    for members in alike.values():
        group = [networks[i] for i in members]
        device = device_of(metanet)
        params = {name: torch.stack([n.params[name].to(device) for n in group]) for name in group[0].params}

        some = None if batch is None else batch.of(members)

        def gradient(params: Params, group: list[Network] = group, some: Batch | None = some) -> Params:
            assert some is not None
            # Networks that run the same code at once, but those with buffers alone: buffers are not stacked.
            same_code: dict[tuple[Any, ...], list[int]] = {}
            for b, network in enumerate(group):
                alone = b if next(network.model.buffers(), None) is not None else None
                device = next(iter(network.params.values())).device
                same_code.setdefault((id(network.match), device, alone), []).append(b)
            gradients = {name: torch.empty_like(value) for name, value in params.items()}
            for (_, device, _), rows in same_code.items():
                match = group[rows[0]].match
                part = match.of_network({name: value[rows].to(device) for name, value in params.items()})
                computed = match.of_family(some.of(rows).gradient(group[rows[0]].model, part))
                for name, value in computed.items():
                    gradients[name][rows] = value.to(gradients[name].device)
            return gradients

        def label(b: int, name: str, members: list[int] = members) -> str:
            return f"{where(members[b])}parameter {networks[members[b]].match.params[name]!r}"

        conditions = Conditions(
            gradient if batch else None,
            None if l1 is None else l1[members],
            None if some is None else some.examples.counts(len(members)),
        )
        new = run(metanet, params, conditions, passes, label)
        for b, i in enumerate(members):
            better[i] = networks[i].match.of_network({name: value[b] for name, value in new.items()})
    return better


def run(
    metanet: Metanet,
    params: Params,
    conditions: Conditions,
    passes: int,
    label: Callable[[int, str], str],
) -> Params:
    """Apply a metanet, in eval mode, to stacked params.

    Computes in float32, or in float64 if a tensor of params or of the metanet has it.

    Args:
        metanet: The metanet; not modified.
        params: The family's names -> [B, ...]; not modified.
        conditions: What the metanet reads, on any device.
        passes: How often it is applied in a row.
        label: Text that names network b and a parameter, to begin an error with.

    Returns:
        New values in the dtypes of ``params``, on the metanet's device.

    Raises:
        ValueError: Weights, gradients or results are not finite.
    """
    _check_finite(params, label, "give the network finite weights, such as a checkpoint from before")
    state = {**dict(metanet.named_parameters()), **dict(metanet.named_buffers())}
    device, dtype = device_of(metanet), torch.float32
    for value in [*params.values(), *(t for t in state.values() if t.is_floating_point())]:
        dtype = torch.promote_types(dtype, value.dtype)
    state = {key: t.to(dtype) if t.is_floating_point() else t for key, t in state.items()}
    compute, l1 = conditions.gradient, conditions.l1

    def gradient(params: Params) -> Params:
        assert compute is not None
        gradients = compute(params)
        _check_finite(
            gradients,
            lambda b, name: f"batch: the gradient of {label(b, name)}",
            "pass x and y of the checkpoint's problem",
        )
        return gradients

    conditions = Conditions(
        gradient if compute else None,
        None if l1 is None else l1.to(device, dtype),
        None if conditions.examples is None else conditions.examples.to(device, dtype),
    )
    new = {name: value.to(device, dtype) for name, value in params.items()}
    with eval_mode(metanet), torch.autocast(device.type, enabled=False):
        for _ in range(passes):
            new = functional_call(metanet, state, (new, conditions))
    new = {name: new[name].to(value.dtype) for name, value in params.items()}
    _check_finite(
        new,
        lambda b, name: f"the result for {label(b, name)}",
        "the checkpoint cannot improve such weights and nothing was changed; leave this network out",
    )
    return new


def device_of(metanet: Metanet) -> torch.device:
    """Where a metanet runs."""
    return next((p.device for p in metanet.parameters()), torch.device("cpu"))


def _check_finite(params: Params, label: Callable[[int, str], str], advice: str) -> None:
    """Raise a ``ValueError`` that names the first network and parameter with NaN or infinity."""
    # One reduction per parameter and one wait for the device; where it failed is looked up only then.
    good = [value.isfinite().all() for value in params.values()]
    if not good or bool(torch.stack(good).all()):
        return
    for name, value in params.items():
        bad = (~value.isfinite()).flatten(1).sum(1)
        if bool(bad.any()):
            b = int(bad.nonzero()[0])
            raise ValueError(
                f"{label(b, name)} has {int(bad[b])} NaN or infinite values of {value[b].numel()}; {advice}"
            )


def checked_l1(l1: Any, count: int, metanet: Metanet, trained: L1Range | None) -> Tensor | None:
    """L1 strength per network: float64 [B] on the CPU, or None if the metanet does not read it.

    Args:
        l1: One for all networks, or one per network; None is 0.
        count: Number of networks B.
        metanet: Says whether it is read.
        trained: Strengths that it was trained for, if that is known.

    Raises:
        ValueError: Given but not read, not one or B values, negative or not finite.

    Warns:
        OutOfRangeWarning: A strength that the metanet was not trained for.
    """
    if "l1" not in metanet.conditions:
        if l1 is not None:
            raise ValueError(
                "l1: this checkpoint does not read an L1 strength; leave l1 out, or use one trained with it"
            )
        return None
    try:
        values = torch.as_tensor(0.0 if l1 is None else l1, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"l1: got {l1!r}, expected a number or one per network") from error
    if values.ndim > 1 or (values.ndim == 1 and len(values) != count):
        raise ValueError(
            f"l1: got shape {tuple(values.shape)}, expected a number or {count}, one per network"
        )
    if not bool((values.isfinite() & (values >= 0)).all()):
        raise ValueError(f"l1: got {values.tolist()}, expected finite strengths >= 0")
    values = values.expand(count)
    outside = [] if trained is None else values[trained.outside(values)].unique().tolist()
    if outside:
        listed = ", ".join(f"{value:g}" for value in outside[:5]) + (", ..." if len(outside) > 5 else "")
        warnings.warn(
            f"l1: got {listed}, but this checkpoint was trained for {trained}; results are not measured "
            "outside of it, check them (accept= does)",
            OutOfRangeWarning,
            stacklevel=3,
        )
    return values


def checked_batch(
    batch: Any, metanet: Metanet, problem: Any, shape: Sequence[int] | None, count: int, *, symbols: bool
) -> Batch | None:
    """Data for gradients; None if the metanet reads none.

    Args:
        batch: Inputs [N, ...] and targets [N, *target_shape] of the problem's objective, for all networks, or
            a list of such pairs, one for each network and of any sizes; or None.
        metanet: Says whether gradients are read.
        problem: Has the objective; a problem, or a family of problems.
        shape: Shape of one input; None if it is not known.
        count: Number of networks.
        symbols: Whether inputs may be integers, as those of networks over text are.

    Raises:
        ValueError: Missing, given but not read, no such pairs, inputs of another shape or not finite, or
            targets that the objective cannot read.
    """
    if "batch" not in metanet.conditions:
        if batch is not None:
            raise ValueError("batch: this checkpoint reads weights alone; leave batch out")
        return None
    if batch is None:
        raise ValueError("batch: this checkpoint reads gradients; pass batch=(x, y) with data of its problem")
    if problem is None:
        raise ValueError(
            "batch: this optimizer knows no problem to take the loss from; pass problem= to its constructor"
        )
    if isinstance(batch, list) and not any(isinstance(part, Tensor) for part in batch):
        if len(batch) != count:
            raise ValueError(f"batch: got {len(batch)} pairs for {count} networks, expected one for each")
        pairs = [
            _checked_pair(pair, problem.objective, shape, f"batch[{i}]", symbols)
            for i, pair in enumerate(batch)
        ]
        return Batch(Examples.from_list(pairs), problem.objective)
    return Batch(
        Examples(*_checked_pair(batch, problem.objective, shape, "batch", symbols)), problem.objective
    )


def _checked_pair(
    pair: Any, objective: Objective, shape: Sequence[int] | None, where: str, symbols: bool
) -> tuple[Tensor, Tensor]:
    if not isinstance(pair, tuple | list) or [isinstance(part, Tensor) for part in pair] != [True, True]:
        raise ValueError(f"{where}: got {type(pair).__name__}, expected a pair of tensors (x, y)")
    x, y = pair
    targets = objective.target_shape
    if x.ndim == 0 or y.shape != (len(x), *targets) or len(x) == 0:
        raise ValueError(
            f"{where}: got x {tuple(x.shape)} and y {tuple(y.shape)}, expected N > 0 inputs [N, ...] and "
            f"targets [{', '.join(map(str, ('N', *targets)))}] of {objective}"
        )
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        expected = ", ".join(["N", *map(str, shape)])
        raise ValueError(
            f"{where}: got x of shape {list(x.shape)}, expected [{expected}] as the networks take it; pass "
            "example_input if these networks take another form"
        )
    if x.is_complex() or x.dtype == torch.bool or not (symbols or x.is_floating_point()):
        raise ValueError(
            f"{where}: got x of {x.dtype}, expected floating-point inputs; convert with x.float()"
        )
    if x.is_sparse or x.is_meta:
        raise ValueError(f"{where}: got x that is sparse or on the meta device, expected an ordinary tensor")
    if x.is_floating_point() and (bad := int((~x.isfinite()).sum())):
        raise ValueError(
            f"{where}: x has {bad} NaN or infinite values of {x.numel()}; leave those examples out"
        )
    objective.check_targets(y, where)
    return x.detach(), y.detach() if y.is_floating_point() else y.detach().long()
