"""One call's passes over networks of any mix of shapes: what is read, what is kept back, what is reported.

Legend: B networks, N examples.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.functional.networks import l1_norm
from amortopt.metanets import Metanet, Rounds
from amortopt.optim.limits import WORSE, find_limits, find_replaced
from amortopt.optim.networks import Network, OutOfFamilyWarning
from amortopt.optim.report import NetworkReport
from amortopt.optim.running import Batch, Fleet, device_of, improve, wide
from amortopt.release import FamilyStatistics
from amortopt.tasks import Examples, Objective

_NETWORKS = 1024
"""Networks that a metanet reads at once, which bounds its memory."""
_JUDGED = 1024
"""Examples at most on which losses are taken for warnings alone."""


@dataclass(frozen=True, eq=False)
class Call:
    """What one call reads beside the networks.

    Attributes:
        metanet: The metanet.
        batch: For gradients, if the metanet reads them.
        function: What the networks' own answers are for, if they are read.
        held: Examples that are kept back to decide whether a result is taken; None: all are taken.
        l1: L1 strengths of all networks [B], if the metanet reads them.
        passes: How often the metanet is applied in a row.
        rounds: Gradients in a pass; None: all that the metanet has.
        statistics: Of the checkpoint's family; None if they were not measured.
        exact: Whether losses are taken on all examples, for a report.
        inputs: Inputs [n, ...] by which networks for classes are compared before and after, where no batch is
            read; None: they are not.
    """

    metanet: Metanet
    batch: Batch | None
    function: Objective | None
    held: Batch | None
    l1: Tensor | None
    passes: int
    rounds: int | None
    statistics: FamilyStatistics | None
    exact: bool
    inputs: Tensor | None = None

    def of(self, networks: list[int]) -> Call:
        """The same for some networks, by their positions."""
        return replace(
            self,
            batch=None if self.batch is None else self.batch.of(networks),
            held=None if self.held is None else self.held.of(networks),
            l1=None if self.l1 is None else self.l1[networks],
        )


def improve_stack(
    call: Call, fleet: Fleet, params: Params, label: Callable[[int, str], str]
) -> tuple[Params, list[NetworkReport]]:
    """New params [B, ...] of networks of equal shapes, and a report on each.

    Args:
        call: What is read.
        fleet: What runs the networks.
        params: The family's names -> [B, ...], on the metanet's device; not modified.
        label: Text that names network b and a parameter, to begin an error with.

    Raises:
        ValueError: Weights, gradients or results are not finite.
    """
    started = time.perf_counter()
    improved = improve(
        call.metanet,
        fleet,
        params,
        call.batch,
        call.l1,
        label,
        function=call.function,
        passes=call.passes,
        rounds=call.rounds,
        most=None if call.exact else _JUDGED,
    )
    new, reports = improved.params, [NetworkReport() for _ in range(fleet.count)]
    if call.batch is not None and improved.given is not None:
        notes, found = find_limits(
            call.batch,
            params,
            improved,
            call.l1,
            call.statistics,
            comparable=_reads_as_measured(call.metanet, call.rounds),
        )
        counts = call.batch.examples.counts(fleet.count).tolist()
        reports = [
            NetworkReport(
                examples=int(counts[b]),
                given=float(improved.given[b]),
                losses=tuple(float(values[b]) for values in improved.losses),
                gradients=tuple(float(values[b]) for values in improved.gradients),
                notes=tuple(notes[b]),
                warnings=tuple(found[b]),
            )
            for b in range(fleet.count)
        ]
    elif call.inputs is not None:
        found = find_replaced(fleet, params, new, call.inputs)
        reports = [NetworkReport(warnings=tuple(texts)) for texts in found]
    if call.held is not None:
        before, after = (_objective(call, fleet, at).tolist() for at in (params, new))
        reports = [
            replace(
                report,
                held=(old, now),
                accepted=now < old,
                # A result that is not taken is no cause for alarm.
                warnings=tuple(text for text in report.warnings if now < old or WORSE not in text),
            )
            for report, old, now in zip(reports, before, after, strict=True)
        ]
    seconds = (time.perf_counter() - started) / fleet.count
    return new, [replace(report, seconds=seconds) for report in reports]


def _reads_as_measured(metanet: Metanet, rounds: int | None) -> bool:
    """Whether rounds read as many examples as when statistics were measured, in passes with all rounds."""
    portions = isinstance(metanet, Rounds) and metanet.config["portion"] is not None
    return not portions or rounds in (None, metanet.rounds)


def _objective(call: Call, fleet: Fleet, params: Params) -> Tensor:
    """Loss on what was kept back plus L1 strength times L1 norm, [B]."""
    assert call.held is not None
    at = {name: wide(p) for name, p in params.items()}
    losses = fleet.losses(at, call.held).double().cpu()
    return losses if call.l1 is None else losses + call.l1.to(losses) * l1_norm(at).to(losses)


def improve_networks(
    call: Call, networks: Sequence[Network], where: Callable[[int], str]
) -> tuple[list[Params], list[NetworkReport]]:
    """New values for networks of any mix of widths; those of equal shapes and dtypes run as one batch.

    Args:
        call: What is read.
        networks: B networks; not modified.
        where: Text that names network i in an error, in front of the message.

    Returns:
        For every network values by its own parameter names, in its dtypes, on the metanet's device; and a
        report.

    Raises:
        ValueError: Weights, gradients or results are not finite.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, network in enumerate(networks):
        alike.setdefault(tuple((p.shape, p.dtype) for p in network.params.values()), []).append(i)
    better: list[Params] = [{} for _ in networks]
    reports = [NetworkReport() for _ in networks]
    device = device_of(call.metanet)
    stacks = [some[k : k + _NETWORKS] for some in alike.values() for k in range(0, len(some), _NETWORKS)]
    for members in stacks:
        group = [networks[i] for i in members]
        params = {name: torch.stack([n.params[name].to(device) for n in group]) for name in group[0].params}

        def label(b: int, name: str, members: list[int] = members) -> str:
            return f"{where(members[b])}parameter {networks[members[b]].match.params[name]!r}"

        new, found = improve_stack(call.of(members), Fleet.of(group), params, label)
        for b, i in enumerate(members):
            better[i] = networks[i].match.of_network({name: value[b] for name, value in new.items()})
            reports[i] = found[b]
    return better, reports


def keep_back(batch: Batch, count: int) -> tuple[Batch, Batch]:
    """Split the examples of each network: four fifths to read, a fifth to judge by.

    The choice depends on the examples and not on their order: of these by class, where there are classes, and
    by a projection, about every fifth one is kept back. So a class with six examples is on both sides.

    Args:
        batch: Examples of B networks.
        count: Number of networks B.

    Raises:
        ValueError: A network has fewer than two examples.

    Examples:
        >>> from amortopt.tasks import CrossEntropy
        >>> batch = Batch(Examples(torch.randn(50, 3), torch.arange(50) % 10), CrossEntropy(10))
        >>> read, held = keep_back(batch, 1)
        >>> len(read.examples), len(held.examples), len(held.examples.y.unique())
        (40, 10, 10)
    """
    data = batch.examples
    if data.shared:
        pairs = [(data.x, data.y)]
    else:
        sizes = data.counts(count).long().tolist()
        pairs = [(data.x[b, :n], data.y[b, :n]) for b, n in enumerate(sizes)]
    read, held = [], []
    for b, (x, y) in enumerate(pairs):
        if len(x) < 2:
            where = "" if data.shared else f"[{b}]"
            raise ValueError(
                f"batch{where}: got {len(x)} example, expected at least 2 for accept='holdout', which keeps "
                "one of them back; pass more, or a validation loss as accept"
            )
        order = Examples(x, y).in_order()
        kept = max(1, round(len(x) / 5))
        out = ((torch.arange(kept) + 0.5) * len(x) / kept).long()
        inside = torch.ones(len(x), dtype=torch.bool)
        inside[out] = False
        read.append((x[order[inside]], y[order[inside]]))
        held.append((x[order[out]], y[order[out]]))
    if data.shared:
        return Batch(Examples(*read[0]), batch.objective), Batch(Examples(*held[0]), batch.objective)
    return (
        Batch(Examples.from_list(read), batch.objective),
        Batch(Examples.from_list(held), batch.objective),
    )


def warn_of(reports: Sequence[NetworkReport], single: bool) -> None:
    """Warn once of all that the reports warn of; for callers one level up."""
    where: dict[str, list[int]] = {}
    for i, report in enumerate(reports):
        for text in report.warnings:
            where.setdefault(text, []).append(i)
    if not where:
        return
    lines = []
    for text, networks in where.items():
        some = ", ".join(map(str, networks[:5])) + (", ..." if len(networks) > 5 else "")
        everywhere = single or len(networks) == len(reports)
        lines.append(text if everywhere else f"network{'s' * (len(networks) > 1)} {some}: {text}")
    more = f"\n- and {len(lines) - _LINES} more; return_report=True has all" if len(lines) > _LINES else ""
    warnings.warn(
        "outside of what this checkpoint was made for:\n- " + "\n- ".join(lines[:_LINES]) + more,
        OutOfFamilyWarning,
        stacklevel=3,
    )


_LINES = 10
