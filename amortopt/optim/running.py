"""Run a metanet on the weights of networks: conditions, batching, number format. Writes nothing.

Legend: B networks, N examples, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from amortopt._types import Params
from amortopt.functional.networks import eval_mode
from amortopt.metanets import Conditions, L1Range, Metanet, Rounds
from amortopt.optim.networks import Network
from amortopt.symmetry import Match
from amortopt.tasks import Examples, Objective, answers_many, loss_and_grad_many, loss_many
from amortopt.tasks.examples import Gradient


class OutOfRangeWarning(UserWarning):
    """An L1 strength that the checkpoint was not trained for; nothing is promised there."""


_ELEMENTS = 2**22
"""Input elements of all networks in one forward pass, which bounds the memory of a gradient."""


@dataclass(frozen=True)
class Batch:
    """Examples, shared or per network, and the objective whose gradients are computed on them."""

    examples: Examples
    objective: Objective

    def of(self, networks: list[int]) -> Batch:
        """The batch of some networks, by their positions."""
        return Batch(self.examples.of(torch.tensor(networks)), self.objective)

    def some(self, most: int) -> Batch:
        """At most so many examples, evenly spread over the batch."""
        step = -(-len(self.examples) // most)
        return self if step == 1 else Batch(self.examples.take(slice(None, None, step)), self.objective)


@dataclass(frozen=True)
class Code:
    """Networks of a stack that one module runs.

    Attributes:
        module: What they compute; its own parameters are not read.
        rows: Their positions in the stack.
        match: Which of the module's parameters is which of the family's; None: they have the same names.
        device: Where the module's buffers are.
    """

    module: nn.Module
    rows: list[int]
    match: Match | None
    device: torch.device

    def of_network(self, params: Params) -> Params:
        """Params by the family's names -> by the module's."""
        return params if self.match is None else self.match.of_network(params)

    def of_family(self, params: Params) -> Params:
        """Params by the module's names -> by the family's."""
        return params if self.match is None else self.match.of_family(params)


class Fleet:
    """A stack of networks of equal shapes, whose params go by the family's names, with what runs them."""

    def __init__(self, codes: Sequence[Code]) -> None:
        self.codes = codes
        self.count = sum(len(code.rows) for code in codes)

    @classmethod
    def of(cls, networks: Sequence[Network]) -> Fleet:
        """Those that run the same code go together, but those with buffers alone: buffers are not stacked."""
        rows: dict[tuple[Any, ...], list[int]] = {}
        for b, network in enumerate(networks):
            alone = b if next(network.model.buffers(), None) is not None else None
            device = next(iter(network.params.values())).device
            rows.setdefault((id(network.match), device, alone), []).append(b)
        return cls(
            [
                Code(networks[some[0]].model, some, networks[some[0]].match, device)
                for (_, device, _), some in rows.items()
            ]
        )

    def loss_and_gradient(self, params: Params, batch: Batch) -> tuple[Tensor, Params]:
        """Mean loss of each network on its batch [B], and its gradient [B, ...], at params [B, ...]."""
        gradient = {name: torch.zeros_like(p) for name, p in params.items()}
        losses = next(iter(params.values())).new_zeros(self.count)
        for code, part, examples, share in self._parts(params, batch):
            loss, computed = loss_and_grad_many(code.module, part, examples, batch.objective)
            losses[code.rows] += (share * loss).to(losses)
            for name, g in code.of_family(computed).items():
                gradient[name][code.rows] += (share.view(-1, *[1] * (g.ndim - 1)) * g).to(gradient[name])
        return losses, gradient

    def losses(self, params: Params, batch: Batch) -> Tensor:
        """Mean loss of each network on its batch, [B], at params [B, ...]."""
        losses = next(iter(params.values())).new_zeros(self.count)
        for code, part, examples, share in self._parts(params, batch):
            losses[code.rows] += (share * loss_many(code.module, part, examples, batch.objective)).to(losses)
        return losses

    def answers(self, params: Params, probes: Tensor, objective: Objective) -> Batch:
        """What each network answers at params [B, ...] to the same inputs [n, ...], as a batch to match."""
        many: list[tuple[list[int], Tensor]] = []
        dtype = next(iter(params.values())).dtype
        for code in self.codes:
            part = code.of_network({name: p[code.rows].to(code.device) for name, p in params.items()})
            with eval_mode(code.module):
                answered = answers_many(code.module, part, probes.to(code.device, dtype))
            many.append((code.rows, answered.y.to(probes.device)))
        y = torch.cat([y for _, y in many])
        order = torch.tensor([row for rows, _ in many for row in rows]).argsort()
        x = probes.to(dtype).expand(self.count, *probes.shape)
        return Batch(Examples(x, y[order], shared=False), objective.matching())

    def _parts(self, params: Params, batch: Batch) -> Iterator[tuple[Code, Params, Examples, Tensor]]:
        """What runs at once: code, its params, examples, and their share in each network's batch [b]."""
        dtype = next(iter(params.values())).dtype
        for code in self.codes:
            part = code.of_network({name: p[code.rows].to(code.device) for name, p in params.items()})
            data = batch.of(code.rows).examples
            total = data.counts(len(code.rows)).double()
            width = max(64, data.x[0 if data.shared else (0, 0)].numel())
            size = max(16, min(4096, _ELEMENTS // (len(code.rows) * width)))
            with eval_mode(code.module):
                for examples in data.chunks(size):
                    share = examples.counts(len(code.rows)) / total
                    yield code, part, examples.to(code.device, dtype), share.to(code.device, dtype)


@dataclass(frozen=True, eq=False)
class Improved:
    """What a pass made of B networks of equal shapes.

    Attributes:
        params: New params [B, ...] by the family's names, in the dtypes of the given ones.
        given: Loss on the batch of the networks as given [B]; None without a batch.
        losses: Loss [B] of every proposal that a gradient was taken at, on the examples that it was taken on,
            and last of the result on all.
        gradients: Norm [B] of each of these gradients.
    """

    params: Params
    given: Tensor | None = None
    losses: Sequence[Tensor] = ()
    gradients: Sequence[Tensor] = ()


def improve(
    metanet: Metanet,
    fleet: Fleet,
    params: Params,
    batch: Batch | None,
    l1: Tensor | None,
    label: Callable[[int, str], str],
    *,
    function: Objective | None = None,
    passes: int = 1,
    rounds: int | None = None,
    most: int | None = None,
) -> Improved:
    """Apply a metanet to networks of equal shapes.

    Args:
        metanet: The metanet.
        fleet: What runs the networks.
        params: The family's names -> [B, ...], on the metanet's device; not modified.
        batch: For gradients, if the metanet reads them.
        l1: L1 strengths [B], if the metanet reads them.
        label: Text that names network b and a parameter, to begin an error with.
        function: What the networks' answers to the metanet's probes are for, if the metanet reads them.
        passes: How often the metanet is applied in a row.
        rounds: Gradients in a pass, for metanets with rounds; None: all.
        most: Examples at most on which the losses as given and after are taken; None: all.

    Raises:
        ValueError: Weights, gradients or results are not finite.
    """
    losses: list[Tensor] = []
    norms: list[Tensor] = []

    def gradient_on(read: Batch) -> Gradient:
        def gradient(at: Params) -> Params:
            loss, gradients = fleet.loss_and_gradient(at, read)
            _check_finite(
                gradients,
                lambda b, name: f"batch: the gradient of {label(b, name)}",
                "pass x and y of the checkpoint's problem",
            )
            losses.append(loss)
            squares = [g.flatten(1).square().sum(1) for g in gradients.values()]
            norms.append(torch.stack(squares).sum(0).sqrt())
            return gradients

        return gradient

    def conditions(now: Params) -> Conditions:
        """What a pass reads that begins at these params."""
        toward = None
        if function is not None:
            assert metanet.probes is not None
            answers = fleet.answers(now, metanet.probes, function)
            toward = lambda at: fleet.loss_and_gradient(at, answers)[1]  # noqa: E731
        strengths = None if l1 is None else l1.to(next(iter(now.values())))
        if batch is None:
            return Conditions(l1=strengths, function=toward)
        objective = batch.objective
        return Conditions.of_batch(
            batch.examples,
            lambda examples: gradient_on(Batch(examples, objective)),
            fleet.count,
            l1=strengths,
            function=toward,
        )

    new = run(metanet, params, conditions, passes, label, rounds=rounds)
    if batch is None:
        return Improved(new)
    judged = batch if most is None else batch.some(most)
    given, after = (fleet.losses({n: wide(p) for n, p in at.items()}, judged) for at in (params, new))
    return Improved(new, given, [*losses, after], norms)


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def run(
    metanet: Metanet,
    params: Params,
    conditions: Callable[[Params], Conditions],
    passes: int,
    label: Callable[[int, str], str],
    *,
    rounds: int | None = None,
) -> Params:
    """Apply a metanet, in eval mode, to stacked params.

    Computes in float32, or in float64 if a tensor of params or of the metanet has it.

    Args:
        metanet: The metanet; not modified.
        params: The family's names -> [B, ...]; not modified.
        conditions: From params, on the metanet's device and as it computes, to what a pass reads there.
        passes: How often it is applied in a row.
        label: Text that names network b and a parameter, to begin an error with.
        rounds: Gradients in a pass, for metanets with rounds; None: all.

    Returns:
        New values in the dtypes of ``params``, on the metanet's device.

    Raises:
        ValueError: Weights or results are not finite.
    """
    _check_finite(params, label, "give the network finite weights, such as a checkpoint from before")
    state = {**dict(metanet.named_parameters()), **dict(metanet.named_buffers())}
    device, dtype = device_of(metanet), torch.float32
    for value in [*params.values(), *(t for t in state.values() if t.is_floating_point())]:
        dtype = torch.promote_types(dtype, value.dtype)
    state = {key: t.to(dtype) if t.is_floating_point() else t for key, t in state.items()}
    new = {name: value.to(device, dtype) for name, value in params.items()}
    pass_ = metanet if rounds is None else _Shortened(metanet, rounds)
    prefix = "" if rounds is None else "metanet."
    with eval_mode(metanet), torch.autocast(device.type, enabled=False):
        for _ in range(passes):
            reading = conditions(new)
            new = functional_call(pass_, {prefix + key: t for key, t in state.items()}, (new, reading))
    new = {name: new[name].to(value.dtype) for name, value in params.items()}
    _check_finite(
        new,
        lambda b, name: f"the result for {label(b, name)}",
        "the checkpoint cannot improve such weights and nothing was changed; leave this network out",
    )
    return new


class _Shortened(nn.Module):
    """A metanet that stops after some of its rounds."""

    def __init__(self, metanet: Metanet, rounds: int) -> None:
        super().__init__()
        assert isinstance(metanet, Rounds)
        self.metanet, self.rounds = metanet, rounds

    def forward(self, params: Params, conditions: Conditions) -> Params:
        return self.metanet.after_rounds(params, conditions, self.rounds)[-1]


def check_rounds(rounds: object, metanet: Metanet) -> None:
    """Raise a ``ValueError`` unless the metanet can stop after so many rounds; None is all of them."""
    if rounds is None:
        return
    if not isinstance(metanet, Rounds):
        raise ValueError(f"rounds: got {rounds!r}, but this checkpoint has no rounds; leave rounds out")
    most = metanet.rounds
    if isinstance(rounds, bool) or not isinstance(rounds, int) or not 1 <= rounds <= most:
        raise ValueError(f"rounds: got {rounds!r}, expected a whole number from 1 to {most}, which it has")


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
            "outside of it, so check them, as accept= does",
            OutOfRangeWarning,
            stacklevel=4,  # checked_l1, _call, one_shot
        )
    return values


def function_is_read(function: object, batch: object, metanet: Metanet) -> bool:
    """Whether the networks' own answers are read.

    Args:
        function: What was asked for; None: where there is no batch.
        batch: The user's.
        metanet: Says what it reads.

    Raises:
        ValueError: ``function`` is no bool, or it does not fit what the checkpoint reads.
    """
    if function is not None and not isinstance(function, bool):
        raise ValueError(f"function: got {function!r}, expected True, False or None")
    if "function" not in metanet.conditions:
        if function:
            raise ValueError(
                "function: this checkpoint does not read what networks answer; leave function out"
            )
        return False
    if batch is None:
        if function is False:
            raise ValueError(
                "function: got False and no batch, so there is nothing to read; pass batch=(x, y)"
            )
        return True
    return bool(function)


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
            what = "what networks answer" if "function" in metanet.conditions else "weights alone"
            raise ValueError(f"batch: this checkpoint reads {what}; leave batch out")
        return None
    if batch is None and "function" in metanet.conditions:
        return None
    if batch is None:
        raise ValueError("batch: this checkpoint reads gradients; pass batch=(x, y) with data of its problem")
    if problem is None:
        raise ValueError(
            "batch: this optimizer knows no problem to take the loss from; pass problem= to its constructor"
        )
    if _is_pairs(batch):
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


def _is_pairs(batch: Any) -> bool:
    """Whether a batch is one pair for each network: a list, or a tuple of pairs of tensors."""
    if isinstance(batch, list):
        return not any(isinstance(part, Tensor) for part in batch)
    return isinstance(batch, tuple) and all(
        isinstance(part, tuple | list) and any(isinstance(each, Tensor) for each in part) for part in batch
    )


def _advice(x: Tensor, y: Tensor, targets: tuple[int, ...]) -> str:
    """What to do about targets of another number of axes."""
    if y.ndim > x.ndim == 1 + len(targets) and len(x) == len(y) and not x.is_floating_point():
        return "; x and y seem to be swapped"
    if y.ndim == len(targets):
        return "; add the missing last axis by y.unsqueeze(-1)"
    if y.ndim == len(targets) + 2:
        return "; remove the last axis, by y.argmax(-1) if it is one-hot, else by y.squeeze(-1)"
    return ""


def _checked_pair(
    pair: Any, objective: Objective, shape: Sequence[int] | None, where: str, symbols: bool
) -> tuple[Tensor, Tensor]:
    if not isinstance(pair, tuple | list) or [isinstance(part, Tensor) for part in pair] != [True, True]:
        got = type(pair).__name__
        if isinstance(pair, tuple | list) and len(pair) == 2:
            got = f"a pair of {' and '.join(type(part).__name__ for part in pair)}"
        raise ValueError(
            f"{where}: got {got}, expected a pair of tensors (x, y); torch.as_tensor makes them of arrays"
        )
    x, y = pair
    for name, part in (("x", x), ("y", y)):
        if part.is_sparse or part.is_meta or part.is_nested:
            raise ValueError(
                f"{where}: got {name} that is sparse, nested or on the meta device, expected an ordinary "
                "tensor"
            )
    targets = objective.target_shape
    if targets == (1,) and y.ndim == 1 and y.is_floating_point():
        y = y.unsqueeze(1)  # one number per input may be [N] too, as in meta_train
    if x.ndim == 0 or y.shape != (len(x), *targets) or len(x) == 0:
        raise ValueError(
            f"{where}: got x {tuple(x.shape)} and y {tuple(y.shape)}, expected N > 0 inputs [N, ...] and "
            f"targets [{', '.join(map(str, ('N', *targets)))}] of {objective}{_advice(x, y, targets)}"
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
    if x.is_floating_point() and (bad := int((~x.isfinite()).sum())):
        raise ValueError(
            f"{where}: x has {bad} NaN or infinite values of {x.numel()}; leave those examples out"
        )
    objective.check_targets(y, where)
    y = y.detach().to(x.device)
    return x.detach(), y if y.is_floating_point() else y.long()
