"""Sparse networks in one pass, by an L1 strength that leaves the wanted number of weights."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, TypeVar, overload

import torch
from torch import Tensor, nn

from amortopt.metanets import Rounds
from amortopt.optim.limits import WORSE
from amortopt.optim.networks import OutOfFamilyWarning, as_list, check_flags, read_networks
from amortopt.optim.one_shot import ScaleGMNOptimizer
from amortopt.optim.running import OutOfRangeWarning
from amortopt.symmetry import FamilyMismatchError, act
from amortopt.symmetry.alignment.scales import balancing
from amortopt.tasks import answers_many, loss_many

if TYPE_CHECKING:
    from typing_extensions import Unpack

M = TypeVar("M", bound=nn.Module)
Pair: TypeAlias = tuple[Tensor, Tensor]
Scope: TypeAlias = Literal["global", "layer"]

PRUNERS = ("curves-cnn-relu-sparse", "curves-cnn-relu-l1")
"""Shipped checkpoints that prune, the better ones first; the last one needs no batch."""
_HALVINGS = 6
"""Of the range of strengths, on a log scale: to within a sixtieth of it."""
_BY_PASS = 0.75
"""Share of the zeros that the pass makes; magnitudes choose the others.

On validation problems, at a sparsity of 0.8 and 200 examples: 60.7 % accuracy where the pass makes all zeros,
74.4 where it makes three quarters of them, 53.6 where it makes none.
"""


@dataclass(frozen=True, eq=False)
class Pruned:
    """What became of one network.

    Attributes:
        masks: Name of every weight (a parameter with two or more axes) -> bool, True where it was kept.
        l1: L1 strength of the pass.
        sparsity: Share of the weights that are zero.
        by_pass: Share that the pass itself made zero, before magnitudes decided on the rest.
        passed: Whether the weights are a pass's; False: without data, the network's own weights without the
            smallest ones stayed closer to its function.
    """

    masks: dict[str, Tensor]
    l1: float
    sparsity: float
    by_pass: float
    passed: bool = True

    def __str__(self) -> str:
        kept, total = (
            sum(count)
            for count in zip(*((int(m.sum()), m.numel()) for m in self.masks.values()), strict=True)
        )
        return (
            f"{kept:,} of {total:,} weights left ({100 * self.sparsity:.1f} % are zero, "
            f"{100 * self.by_pass:.1f} % by the pass), L1 strength {self.l1:.2g}"
        )


class _Options(TypedDict, total=False):
    """Further keyword arguments of ``prune``; see there."""

    optimizer: ScaleGMNOptimizer | str | os.PathLike[str] | None
    scope: Scope
    example_input: Tensor | tuple[Tensor, ...] | None


_Batch: TypeAlias = Pair | Sequence[Pair] | None


@overload
def prune(
    models: M,
    sparsity: float = ...,
    batch: _Batch = ...,
    *,
    return_report: Literal[False] = ...,
    **options: Unpack[_Options],
) -> M: ...
@overload
def prune(
    models: M,
    sparsity: float = ...,
    batch: _Batch = ...,
    *,
    return_report: Literal[True],
    **options: Unpack[_Options],
) -> tuple[M, Pruned]: ...
@overload
def prune(
    models: Sequence[M],
    sparsity: float = ...,
    batch: _Batch = ...,
    *,
    return_report: Literal[False] = ...,
    **options: Unpack[_Options],
) -> list[M]: ...
@overload
def prune(
    models: Sequence[M], sparsity: float = ..., batch: _Batch = ..., *,
    return_report: Literal[True], **options: Unpack[_Options],
) -> tuple[list[M], list[Pruned]]: ...  # fmt: skip
def prune(
    models: Any,
    sparsity: float = 0.8,
    batch: Pair | Sequence[Pair] | None = None,
    *,
    optimizer: ScaleGMNOptimizer | str | os.PathLike[str] | None = None,
    scope: Scope = "global",
    example_input: Tensor | tuple[Tensor, ...] | None = None,
    return_report: bool = False,
) -> Any:
    r"""Make networks sparse in one pass of a checkpoint that reads an L1 strength λ.

    The larger λ is, the more weights a pass returns as exactly zero. A checkpoint with a share of ``zeros``
    for every λ is run once, at the λ of the wanted share. With learned thresholds, the λ is found whose pass
    makes three quarters of the wanted zeros, by bisection; then the smallest magnitudes are set to zero.
    Magnitudes are compared in the scales in which incoming and outgoing weights of every unit have equal
    norms, so the choice does not depend on the network's gauge. Weights are parameters with two or more axes;
    biases stay.

    With a batch, the pass returns weights for the batch's problem, whatever the network was trained on.
    Without one it reads what the network itself answers. Then it is compared with the network's own weights
    without the smallest ones, on the inputs at which functions are read, and what is closer to the network's
    answers is returned.

    Args:
        models: A network, or a list of networks; not modified.
        sparsity: Share of the weights that are to be zero, in [0, 1).
        batch: As for [one_shot][amortopt.ScaleGMNOptimizer.one_shot]: inputs and targets, or a list of
            pairs, one for each network. None: the networks' own answers are read.
        optimizer: A checkpoint, or where [from_pretrained][amortopt.ScaleGMNOptimizer.from_pretrained] finds
            one, that reads ``l1`` and a batch or functions. None: the first shipped one whose family the
            networks belong to.
        scope: Where the smallest magnitudes are looked for: ``"global"``, in all weights of a network
            together, so that layers keep different shares; ``"layer"``, in each weight tensor on its own, so
            that each has the wanted share of zeros, or more where a pass leaves fewer weights.
        example_input: As for ``one_shot``.
        return_report: Return a [Pruned][amortopt.optim.Pruned] for each network too, with masks.

    Returns:
        New networks with ``round(sparsity * n)`` or more of their n weights exactly zero; with
        ``return_report`` a pair of these and the reports. A list for a list.

    Raises:
        FamilyMismatchError: A network is outside of the checkpoint's family. A ValueError.
        ValueError: A sparsity outside of [0, 1), a checkpoint that reads no L1 strength, no data where the
            checkpoint reads no functions or names no family or problem, or what ``one_shot`` raises.
        FileNotFoundError: There is no such checkpoint.

    Warns:
        OutOfFamilyWarning: As ``one_shot``, but for losses that rise.

    Examples:
        >>> net = nn.Sequential(
        ...     *(nn.Conv1d(1, 8, 5, stride=2, padding=2), nn.ReLU()),
        ...     *(nn.Conv1d(8, 16, 5, stride=2, padding=2), nn.ReLU()),
        ...     *(nn.Conv1d(16, 32, 5, stride=2, padding=2), nn.ReLU()),
        ...     *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 10)),
        ... )
        >>> from amortopt.tasks import make_problem_family
        >>> read, _ = make_problem_family("curves", channel_axis=True).draw("test", 0, 1, 100, 1)
        >>> sparse, report = prune(net, 0.9, (read.x[0], read.y[0]), return_report=True)
        >>> sum(int(mask.sum()) for mask in report.masks.values()), f"{report.sparsity:.1f}"
        (356, '0.9')
    """
    check_flags(return_report=return_report)
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise ValueError(
            f"sparsity: got {sparsity!r}, expected a share of the weights in [0, 1), such as 0.8"
        )
    if scope not in ("global", "layer"):
        raise ValueError(f"scope: got {scope!r}, expected 'global' or 'layer'")
    single, many = isinstance(models, nn.Module), as_list(models)
    given: dict[str, Any] = {"batch": batch, "example_input": example_input}
    opt = _pruner(optimizer, many, given)
    if batch is None:
        _check_function(opt)
    strengths = _strengths(opt, many, float(sparsity), given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutOfFamilyWarning)
        results, report = opt.one_shot(many, l1=strengths, return_report=True, **given)
    # A loss that rises for the sake of few weights is what was asked for.
    if left := [text for text in report.warnings if WORSE not in text]:
        listed = "\n- ".join(left)
        warnings.warn(
            f"outside of what this checkpoint was made for:\n- {listed}", OutOfFamilyWarning, stacklevel=2
        )
    reports = [Pruned({}, l1, 0.0, sparsity_of(m)) for m, l1 in zip(results, strengths.tolist(), strict=True)]
    _read_out(opt, results, float(sparsity), scope, example_input)
    if batch is None:
        own = [copy.deepcopy(model) for model in many]
        _read_out(opt, own, float(sparsity), scope, example_input)
        for i, closer in enumerate(_closer(opt, many, results, own, example_input)):
            if not closer:
                results[i], reports[i] = own[i], Pruned({}, 0.0, 0.0, 0.0, passed=False)
    reports = [
        replace(report, masks={k: w != 0 for k, w in weights_of(m).items()}, sparsity=sparsity_of(m))
        for report, m in zip(reports, results, strict=True)
    ]
    if single:
        return (results[0], reports[0]) if return_report else results[0]
    return (results, reports) if return_report else results


def _pruner(
    optimizer: ScaleGMNOptimizer | str | os.PathLike[str] | None,
    models: list[nn.Module],
    given: dict[str, Any],
) -> ScaleGMNOptimizer:
    """The checkpoint; raises a ``ValueError`` if it cannot prune."""
    if optimizer is not None:
        opt = optimizer
        if not isinstance(opt, ScaleGMNOptimizer):
            opt = ScaleGMNOptimizer.from_pretrained(opt)
        conditions = opt.metanet.conditions
        if "l1" not in conditions or not conditions & {"batch", "function"} or opt.l1_range is None:
            raise ValueError(
                f"optimizer: {opt.name} reads {', '.join(sorted(conditions)) or 'weights alone'}, expected "
                f"'l1' beside 'batch' or 'function'; use one such as {PRUNERS[0]!r}"
            )
        return opt
    differences = []
    for name in PRUNERS:
        opt = ScaleGMNOptimizer.from_pretrained(name)
        if given["batch"] is None and "function" not in opt.metanet.conditions:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                opt.one_shot(models, l1=0.0, **given)
        except FamilyMismatchError as error:
            differences.append(f"{name}: {error}")
            continue
        return opt
    raise FamilyMismatchError(
        "models: no shipped checkpoint prunes such networks; meta-train one (recipe curves_cnn_relu_l1) and "
        f"pass optimizer=; {'; '.join(differences)}"
    )


def _check_function(opt: ScaleGMNOptimizer) -> None:
    """Raise a ``ValueError`` unless results can be compared with the networks' own functions."""
    unknown = [name for name in ("family", "problem") if getattr(opt, name) is None]
    if "function" in opt.metanet.conditions and unknown:
        raise ValueError(
            f"batch: got none, and {opt.name} names no {' and no '.join(unknown)}, so what it makes of a "
            "network cannot be compared with the network's own answers; pass batch=(x, y)"
            f"{', and problem= to its constructor' if opt.problem is None else ''}"
        )


def _strengths(
    opt: ScaleGMNOptimizer, models: list[nn.Module], sparsity: float, given: dict[str, Any]
) -> Tensor:
    """The strength of every network's pass [B].

    That at which the checkpoint sets so many weights to zero; of checkpoints with learned thresholds the
    lowest whose pass makes three quarters of these zeros, by bisection.
    """
    assert opt.l1_range is not None
    metanet = opt.metanet
    if isinstance(metanet, Rounds) and metanet.config["zeros"] is not None:
        # Better too many of its own zeros than the smallest weights of a dense proposal.
        least, most = metanet.config["zeros"]
        share = min(max(sparsity, least), most) if sparsity else 0.0
        return torch.full((len(models),), metanet.strength_for(share), dtype=torch.float64)
    sparsity = _BY_PASS * sparsity
    low = torch.full((len(models),), math.log(opt.l1_range.low), dtype=torch.float64)
    high = torch.full_like(low, math.log(opt.l1_range.high))

    def enough(logs: Tensor) -> Tensor:
        with warnings.catch_warnings():
            # The last pass warns.
            warnings.simplefilter("ignore", OutOfFamilyWarning)
            warnings.simplefilter("ignore", OutOfRangeWarning)
            results = opt.one_shot(models, l1=logs.exp(), **given)
        return torch.tensor([sparsity_of(model) >= sparsity for model in results])

    dense = enough(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reached = enough(middle)
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    # Where the lowest strength makes too many zeros already, magnitudes decide alone.
    lowest = 0.0 if opt.l1_range.zero else opt.l1_range.low
    return torch.where(dense, lowest, high.exp().clamp(opt.l1_range.low, opt.l1_range.high))


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """What is pruned: parameters with two or more axes, detached."""
    return {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}


def sparsity_of(model: nn.Module) -> float:
    """Share of these weights that are zero."""
    weights = weights_of(model).values()
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


@torch.no_grad()
def _read_out(
    opt: ScaleGMNOptimizer, models: list[nn.Module], sparsity: float, scope: Scope, example_input: Any
) -> None:
    """Set the weights that are smallest in balanced scales to zero, in place."""
    for network in read_networks(opt.spec, models, example_input, opt.family, str):
        wide = {name: p.to("cpu", torch.float64) for name, p in network.params.items()}
        sizes = act(opt.spec, balancing(opt.spec, wide), wide)
        masks = smallest_left_out({k: p for k, p in sizes.items() if p.ndim > 1}, sparsity, scope)
        ones = {name: torch.ones_like(p) for name, p in sizes.items()}
        kept = network.match.of_network(ones | {k: mask.double() for k, mask in masks.items()})
        for name, weight in network.model.named_parameters():
            weight.mul_(kept[name].to(weight))


def _closer(
    opt: ScaleGMNOptimizer, given: list[nn.Module], first: list[Any], second: list[Any], example_input: Any
) -> list[bool]:
    """Whether each first network answers more like the given one than the second does, at the probes."""
    assert opt.metanet.probes is not None and opt.family is not None and opt.problem is not None
    matching, losses = opt.problem.objective.matching(), []
    networks = [
        read_networks(opt.spec, models, example_input, opt.family, str) for models in (given, first, second)
    ]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        module = opt.family.build().to(opt.metanet.probes.device)
        params = [
            {
                name: torch.stack([n.params[name].to(opt.metanet.probes) for n in some])
                for name in opt.spec.params
            }
            for some in networks
        ]
        answers = answers_many(module, params[0], opt.metanet.probes)
        losses = [loss_many(module, each, answers, matching) for each in params[1:]]
    return (losses[0] < losses[1]).tolist()


def smallest_left_out(weights: dict[str, Tensor], sparsity: float, scope: Scope) -> dict[str, Tensor]:
    """Masks that are False at the smallest magnitudes.

    Args:
        weights: Name -> tensor.
        sparsity: Share that is left out, in [0, 1).
        scope: ``"global"`` or ``"layer"``, as for [prune][amortopt.prune].

    Returns:
        Name -> bool, ``round(sparsity * n)`` of them False, of all n or of each tensor's n; of equal
        magnitudes the first.
    """
    if scope == "layer":
        return {name: _largest(w.abs().flatten(), sparsity).view_as(w) for name, w in weights.items()}
    flat = _largest(torch.cat([w.abs().flatten() for w in weights.values()]), sparsity)
    parts = flat.split([w.numel() for w in weights.values()])
    return {name: part.view_as(w) for (name, w), part in zip(weights.items(), parts, strict=True)}


def _largest(sizes: Tensor, sparsity: float) -> Tensor:
    mask = torch.ones_like(sizes, dtype=torch.bool)
    mask[sizes.argsort(stable=True)[: round(sparsity * len(sizes))]] = False
    return mask
