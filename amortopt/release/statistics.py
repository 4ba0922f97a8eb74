"""What the problems of a checkpoint's family look like to it, so that it notices others.

Legend: B networks or problems, N examples, D numbers of one input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets import Conditions, Metanet
from amortopt.tasks import CrossEntropy, Examples, Objective, ProblemFamily, loss_and_grad_many, loss_many
from amortopt.tasks.examples import Gradient

PROBLEMS = 512
"""Problems that are measured, if the family has as many."""
_FEWEST = 16
"""Problems without which nothing is measured."""
_SIZES = (1, 4, 16, 64, 256, 1024)
"""Numbers of examples at which problems are measured."""
_EXAMPLES = 1024
"""Examples at most from which inputs and targets are described."""
_FAR = 3.8
"""Standard deviations: of 20 quantities that are normal, one problem in 350 has one farther out."""
_CHUNK = 2**22
"""Input elements that are run at a time."""

Bounds = tuple[float, float, float]
"""Lowest, median and highest value."""


@dataclass(frozen=True)
class FamilyStatistics:
    """Ranges of what a pass meets on problems of its family, by the number of examples that it reads.

    A quantity is what ``describe`` returns, ``"given"``, the loss of a fresh network, ``"loss 0"``,
    ``"loss 1"``, ..., the loss after so many rounds, on what the next of all rounds reads or, after the last,
    on the batch, or ``"gradient 0"``, ..., the norm of the gradient that is taken there.

    Attributes:
        sizes: Numbers of examples N, ascending.
        bounds: Quantity -> (lowest, median, highest) at every size. The ends are those met on ``problems``
            problems, moved away from the median so far that other problems of the family lie between them.
        problems: Number of problems that were measured.

    Raises:
        ValueError: They are not of these types and sizes, or not finite and in order.
    """

    sizes: tuple[int, ...]
    bounds: Mapping[str, tuple[Bounds, ...]]
    problems: int

    def __post_init__(self) -> None:
        ascending = sorted(set(self.sizes)) == list(self.sizes) and 0 < len(self.sizes) <= 64
        if not ascending or not all(type(n) is int and n > 0 for n in self.sizes):
            raise ValueError(f"statistics: got sizes {self.sizes!r:.80}, expected ascending whole numbers")
        if type(self.problems) is not int or self.problems < 1:
            raise ValueError(f"statistics: got problems {self.problems!r:.80}, expected a whole number")
        if len(self.bounds) > 256:
            raise ValueError(f"statistics: got {len(self.bounds)} quantities, expected at most 256")
        for name, triples in self.bounds.items():
            right = len(triples) == len(self.sizes) and all(
                len(triple) == 3
                and all(type(value) in (int, float) and math.isfinite(value) for value in triple)
                and triple[0] <= triple[1] <= triple[2]
                for triple in triples
            )
            if not isinstance(name, str) or not right:
                raise ValueError(
                    f"statistics: got {triples!r:.80} for {name!r:.40}, expected [lowest, median, highest] "
                    f"for each of {len(self.sizes)} sizes"
                )

    @classmethod
    def from_config(cls, config: Any) -> FamilyStatistics:
        """Undo [to_config][amortopt.release.statistics.FamilyStatistics.to_config].

        Raises:
            ValueError: It is no such mapping.
        """
        try:
            bounds = {name: tuple(tuple(triple) for triple in row) for name, row in config["bounds"].items()}
            return cls(tuple(config["sizes"]), bounds, config["problems"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"statistics: got {config!r:.80}, expected sizes, bounds and problems"
            ) from error

    def to_config(self) -> dict[str, Any]:
        """JSON-able ``{"sizes": ..., "bounds": ..., "problems": ...}``, numbers to five digits."""
        bounds = {
            name: [[float(f"{value:.5g}") for value in triple] for triple in row]
            for name, row in self.bounds.items()
        }
        return {"sizes": list(self.sizes), "bounds": bounds, "problems": self.problems}

    def at(self, name: str, examples: float) -> Bounds | None:
        """Bounds of a quantity for a number of examples, linear in log N between sizes; None if not known."""
        if name not in self.bounds:
            return None
        row = self.bounds[name]
        after = next((k for k, size in enumerate(self.sizes) if size >= examples), len(row) - 1)
        before = max(after - 1, 0)
        low, high = self.sizes[before], self.sizes[after]
        share = 1.0
        if low < high:
            share = min(1.0, max(0.0, math.log(max(examples, 1) / low) / math.log(high / low)))
        first, second = row[before], row[after]
        if name == "classes":  # whole numbers
            return second if share == 1 else first
        low, mid, high = (a + share * (b - a) for a, b in zip(first, second, strict=True))
        return low, mid, high


def describe(examples: Examples, objective: Objective, count: int) -> dict[str, Tensor]:
    """What inputs and targets of B networks look like, whatever the network.

    Args:
        examples: Shared, or per network.
        objective: What the targets are for.
        count: Number of networks B.

    Returns:
        Name -> [B]. Of real inputs: ``mean`` and ``std`` of all their numbers; ``norm low``, ``norm`` and
        ``norm high``, the 10, 50 and 90 % quantiles over examples of an input's root mean square;
        ``kurtosis``; ``roughness``, the mean difference of neighbours on the last axis in units of the
        standard deviation. Of real targets: ``target mean`` and ``target std``. Of classes: ``classes``, how
        many occur.
    """
    step = -(-len(examples) // _EXAMPLES)
    if step > 1:
        examples = examples.take(slice(None, None, step))
    lead = (1,) if examples.shared else ()
    x, y = examples.x.view(*lead, *examples.x.shape), examples.y.view(*lead, *examples.y.shape)
    valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if examples.mask is not None:
        valid = examples.mask.view(x.shape[:2])
    found: dict[str, Tensor] = {}

    def mean(values: Tensor) -> Tensor:
        """Mean over examples and all other axes but the first, [B, N, ...] -> [B]."""
        return torch.where(valid, values.flatten(2).mean(2), 0).sum(1) / valid.sum(1)

    if x.is_floating_point():
        x = x.double().unsqueeze(-1) if x.ndim == 2 else x.double()
        shape = (-1, *[1] * (x.ndim - 1))
        found["mean"] = mean(x)
        centred = x - found["mean"].view(shape)
        found["std"] = mean(centred.square()).sqrt()
        scaled = centred / found["std"].clamp(min=1e-12).view(shape)
        sizes = x.flatten(2).square().mean(2).sqrt().masked_fill(~valid, torch.nan)  # [B, N]
        for name, share in (("norm low", 0.1), ("norm", 0.5), ("norm high", 0.9)):
            found[name] = sizes.nanquantile(share, 1)
        found["kurtosis"] = mean(scaled**4)
        if x.shape[-1] > 1:
            found["roughness"] = mean((scaled[..., 1:] - scaled[..., :-1]).abs())
    if y.is_floating_point():
        y = y.double().unsqueeze(-1) if y.ndim == 2 else y.double()
        found["target mean"] = mean(y)
        centred = y - found["target mean"].view(-1, *[1] * (y.ndim - 1))
        found["target std"] = mean(centred.square()).sqrt()
    elif isinstance(objective, CrossEntropy):
        found["classes"] = torch.stack(
            [y[b][valid[b]].unique().numel() * torch.ones((), dtype=torch.double) for b in range(len(y))]
        )
    return {name: value.cpu().expand(count) for name, value in found.items()}


@torch.no_grad()
def measure_statistics(
    metanet: Metanet,
    network: nn.Module,
    fresh: Params,
    problems: ProblemFamily,
    *,
    count: int = PROBLEMS,
    fewest: int = 1,
    examples: int = 1000,
) -> FamilyStatistics | None:
    """Measure what a metanet meets on validation problems of its family.

    A metanet that reads an L1 strength is measured at 0.

    Args:
        metanet: The metanet, which reads a batch; on the device where it is measured.
        network: A network of the family, whose params do not matter.
        fresh: Untrained networks [n, ...], used in turn.
        problems: The family of problems.
        count: Problems; fewer if the family has fewer for validation.
        fewest: Fewest examples N that are read: of fewer than it was trained for, nothing is to be expected.
        examples: Most examples N that are read.

    Returns:
        The statistics; None if the family has fewer than 16 problems for validation, or the metanet reads no
        batch.
    """
    available = problems.count("val")
    count = count if available is None else min(count, available)
    if count < _FEWEST or "batch" not in metanet.conditions:
        return None
    device = next(iter(metanet.parameters())).device
    sizes = sorted({fewest, examples, *(n for n in _SIZES if fewest < n < examples)})
    width = max(64, math.prod(problems.input_shape))
    at_once = max(1, min(64, _CHUNK // (examples * width)))
    met: dict[int, list[dict[str, Tensor]]] = {n: [] for n in sizes}
    for start in range(0, count, at_once):
        some = min(at_once, count - start)
        # As many again to judge by, so that a problem was standardised by more examples than are read.
        whole = problems.draw("val", start, some, examples, examples)[0]
        rows = torch.arange(start, start + some) % len(next(iter(fresh.values())))
        params = {name: p[rows].to(device) for name, p in fresh.items()}
        for n in sizes:
            read = whole.take(slice(n))
            found = describe(read, problems.objective, some)
            met[n].append(found | _run(metanet, network, params, read.to(device), problems.objective))
    # Ends that further problems stay within: the extremes of so many, moved out as if they were normal, to
    # _FAR standard deviations.
    stretch = _FAR / NormalDist().inv_cdf(1 - 1 / count)
    bounds: dict[str, tuple[Bounds, ...]] = {}
    for name in met[sizes[0]][0]:
        row = []
        for n in sizes:
            values = torch.cat([part[name] for part in met[n]]).double()
            low, mid, high = (float(v) for v in (values.min(), values.median(), values.max()))
            if name != "classes":
                # Inputs that are off by a few percent of the standard deviation do no harm.
                room = 0.05 if name == "mean" else (0.05 if name == "std" else 0.01) * abs(mid) + 1e-6
                low, high = mid - stretch * (mid - low) - room, mid + stretch * (high - mid) + room
            row.append((low, mid, high))
        bounds[name] = tuple(row)
    return FamilyStatistics(tuple(sizes), bounds, count)


def _run(
    metanet: Metanet, network: nn.Module, params: Params, read: Examples, objective: Objective
) -> dict[str, Tensor]:
    """Losses and norms of gradients of one pass, name -> [B]."""
    found: dict[str, Tensor] = {"given": loss_many(network, params, read, objective)}

    def gradient_on(examples: Examples) -> Gradient:
        def gradient(at: Params) -> Params:
            step = sum(name.startswith("gradient") for name in found)
            found[f"loss {step}"], gradients = loss_and_grad_many(network, at, examples, objective)
            squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()])
            found[f"gradient {step}"] = squares.sum(0).sqrt()
            return gradients

        return gradient

    count = len(next(iter(params.values())))
    l1 = next(iter(params.values())).new_zeros(count) if "l1" in metanet.conditions else None
    new = metanet(params, Conditions.of_batch(read, gradient_on, count, l1=l1))
    steps = sum(name.startswith("gradient") for name in found)
    found[f"loss {steps}"] = loss_many(network, new, read, objective)
    return {name: value.cpu() for name, value in found.items()}
