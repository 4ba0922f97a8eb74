"""Run a metanet on the weights of networks: batching, number format, gradients. Writes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from amortopt._types import Params
from amortopt.functional.networks import eval_mode
from amortopt.metanets import Metanet
from amortopt.optim.checks import check_finite
from amortopt.symmetry import Match
from amortopt.tasks import Examples, Objective, loss_and_grad_many


@dataclass(frozen=True)
class Data:
    """What gradients are computed from.

    Attributes:
        examples: Inputs and targets that all networks share.
        objective: What is differentiated.
    """

    examples: Examples
    objective: Objective

    def gradients(self, module: nn.Module, params: Params) -> Params:
        """Gradients [B, ...] at params [B, ...] of the module in eval mode, which is left as it was."""
        first = next(iter(params.values()))
        examples = self.examples.to(first.device, first.dtype)
        with eval_mode(module):
            return loss_and_grad_many(module, params, examples, self.objective)[1]


@dataclass(frozen=True)
class Network:
    """A user's network beside the family's names.

    Attributes:
        model: The network.
        match: Which of its parameters is which of the family's.
        params: Its tensors, detached, by the family's names.
    """

    model: nn.Module
    match: Match
    params: Params


def improve(
    metanet: Metanet,
    networks: Sequence[Network],
    *,
    data: Data | None,
    l1: Tensor | None,
    passes: int,
    where: Callable[[int], str],
) -> list[Params]:
    """New values for networks of any mix of widths; those of equal shapes and dtypes run as one batch.

    Args:
        metanet: The metanet.
        networks: B networks; not modified.
        data: For gradients, if the metanet reads them.
        l1: L1 strengths [B], if the metanet reads them.
        passes: How often the metanet is applied in a row.
        where: Text that names network i in an error, in front of the message.

    Returns:
        Values by each network's own parameter names, in its dtypes, on the metanet's device.

    Raises:
        ValueError: Weights, gradients or results are not finite.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, network in enumerate(networks):
        key = tuple((p.shape, p.dtype) for p in network.params.values())
        groups.setdefault(key, []).append(i)
    better: list[Params] = [{} for _ in networks]
    device = device_of(metanet)
    for members in groups.values():
        group = [networks[i] for i in members]
        stacked = {
            name: torch.stack([network.params[name].to(device) for network in group])
            for name in group[0].params
        }

        def text(b: int, name: str, members: list[int] = members) -> str:
            return f"{where(members[b])}parameter {networks[members[b]].match.params[name]!r}"

        def gradients(params: Params, group: list[Network] = group) -> Params:
            assert data is not None
            return _gradients(group, data, params)

        new = run(
            metanet,
            stacked,
            gradients=None if data is None else gradients,
            l1=None if l1 is None else l1[members],
            passes=passes,
            text=text,
        )
        for b, i in enumerate(members):
            names = networks[i].match.params
            better[i] = {names[name]: value[b] for name, value in new.items()}
    return better


def run(
    metanet: Metanet,
    params: Params,
    *,
    gradients: Callable[[Params], Params] | None,
    l1: Tensor | None,
    passes: int,
    text: Callable[[int, str], str],
) -> Params:
    """Apply a metanet to stacked params.

    Computes in float32, or in float64 if a tensor of params or of the metanet has it.

    Args:
        metanet: The metanet; used in eval mode, not modified.
        params: The family's names -> [B, ...]; not modified.
        gradients: From params [B, ...] to gradients, if the metanet reads them.
        l1: L1 strengths [B], if the metanet reads them.
        passes: How often it is applied in a row.
        text: Text that names network b and a parameter, to begin an error with.

    Returns:
        New values in the dtypes of ``params``, on the metanet's device.

    Raises:
        ValueError: Weights, gradients or results are not finite.
    """
    check_finite(params, text, "give the network finite weights, such as a checkpoint from before")
    state = {**dict(metanet.named_parameters()), **dict(metanet.named_buffers())}
    device, dtype = device_of(metanet), torch.float32
    for value in [*params.values(), *(t for t in state.values() if t.is_floating_point())]:
        dtype = torch.promote_types(dtype, value.dtype)
    state = {key: t.to(dtype) if t.is_floating_point() else t for key, t in state.items()}
    new = {name: value.to(device, dtype) for name, value in params.items()}
    with eval_mode(metanet), torch.autocast(device.type, enabled=False):
        for _ in range(passes):
            beside: dict[str, Any] = {} if l1 is None else {"l1": l1.to(device, dtype)}
            if gradients is not None:
                beside["grads"] = gradients(new)
                check_finite(
                    beside["grads"],
                    lambda b, name: f"batch: the gradient of {text(b, name)}",
                    "pass x and y of the checkpoint's problem",
                )
            new = functional_call(metanet, state, (new,), beside)
    new = {name: new[name].to(value.dtype) for name, value in params.items()}
    check_finite(
        new,
        lambda b, name: f"the result for {text(b, name)}",
        "the checkpoint cannot improve such weights and nothing was changed; leave this network out",
    )
    return new


def _gradients(group: Sequence[Network], data: Data, params: Params) -> Params:
    """Gradients at stacked params, with the networks' own code; those that run the same code at once."""
    parts: dict[tuple[Any, ...], list[int]] = {}
    for b, network in enumerate(group):
        # A network with buffers runs alone: buffers are the module's and not stacked.
        own = b if next(network.model.buffers(), None) is not None else None
        device = next(iter(network.params.values())).device
        parts.setdefault((id(network.match), device, own), []).append(b)
    grads = {name: torch.empty_like(value) for name, value in params.items()}
    for (_, device, _), rows in parts.items():
        network = group[rows[0]]
        some = {key: params[name][rows].to(device) for name, key in network.match.params.items()}
        found = data.gradients(network.model, some)
        for name, key in network.match.params.items():
            grads[name][rows] = found[key].to(grads[name].device)
    return grads


def device_of(metanet: Metanet) -> torch.device:
    """Where a metanet runs."""
    return next((p.device for p in metanet.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """No autograd, and ordinary tensors even where the caller is in inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield
