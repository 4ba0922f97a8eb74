"""What throughput.py times: meta-steps, single passes, and both sides of the comparison with the edge list.

Memory and references are measured in separate processes, whose program this file is, so that one leaves
nothing behind for the other.
"""

from __future__ import annotations

import copy
import json
import resource
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import apply_many
from amortopt.meta.schedule import param_groups, update_average
from amortopt.metanets import Conditions, make
from amortopt.symmetry import extract
from amortopt.system.memory import keep_freed_memory
from amortopt.tasks import init_many, make_family
from amortopt.training.muon import Muon
from benchmarks.cost.edge_list import EdgeListGMN

SIDES = ("amortopt", "edge list")


@dataclass(frozen=True)
class Case:
    """A family, and how many networks of it.

    Attributes:
        title: Name in tables.
        family: Arguments of ``make_family``.
        networks: Networks per batch B.
        layers: Layers of the metanet.
        width: Width of the metanet.
        channels: Edge channels of the metanet.
    """

    title: str
    family: dict[str, Any] = field(hash=False)
    networks: int
    layers: int
    width: int = 64
    channels: int = 8

    @property
    def sizes(self) -> dict[str, int]:
        """Arguments of the metanet."""
        return {"width": self.width, "channels": self.channels, "layers": self.layers}


class MetaStep:
    """A step of meta-training as the recipes take it, on random examples.

    Args:
        case: Family, networks, layers.
        examples: Examples N per step.
        autocast: Whether the metanet runs under bfloat16 autocast.
        compiled: Whether the meta-loss is compiled.
    """

    def __init__(self, case: Case, *, examples: int, autocast: bool = False, compiled: bool = False) -> None:
        torch.manual_seed(0)
        family = make_family(**case.family)
        self.network = family.build().requires_grad_(False)
        spec = extract(self.network, family.example_input())
        self.metanet = make("scalegmn", spec, **case.sizes, conditions=["l1"])
        self.metanet.open_gates()
        self.average = copy.deepcopy(self.metanet).requires_grad_(False)
        self.optimizer = Muon(
            param_groups(self.metanet, lr=5e-3, prototype_lr=0.04, scalar_lr=2e-3, correction_lr=3e-4)
        )
        self.params = init_many(family.build, range(case.networks))
        self.x = torch.randn(examples, *family.input_shape)
        self.y = torch.randint(10, (examples,))
        self.l1 = torch.full((case.networks,), 1e-4)
        self.autocast = autocast
        self._loss = torch.compile(self._meta_loss) if compiled else self._meta_loss
        self._steps = 0

    def _meta_loss(self, params: Params, x: Tensor, y: Tensor, l1: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            new = self.metanet(params, Conditions(l1=l1))
        logits = apply_many(self.network, {name: p.float() for name, p in new.items()}, x)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), y.repeat(len(l1)))
        return loss + (l1 * sum(p.abs().flatten(1).sum(1) for p in new.values())).mean()

    def __call__(self) -> None:
        """Loss, gradients, clipping, update, average."""
        self._loss(self.params, self.x, self.y, self.l1).backward()
        nn.utils.clip_grad_norm_(self.metanet.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._steps += 1
        update_average(self.average, self.metanet, self._steps, 0.998)


class Pass:
    """One pass of a metanet over networks, and its backward pass.

    Args:
        side: ``"amortopt"`` or ``"edge list"``.
        case: Family, networks, layers.
    """

    def __init__(self, side: str, case: Case) -> None:
        torch.manual_seed(0)
        family = make_family(**case.family)
        spec = extract(family.build(), family.example_input())
        if side == "edge list":
            self.metanet: nn.Module = EdgeListGMN(spec, width=case.width, layers=case.layers)
        else:
            self.metanet = make("scalegmn", spec, **case.sizes)
        self.params = init_many(family.build, range(case.networks))

    def forward(self, count: int | None = None) -> Params:
        """New params of the first ``count`` networks, by default of all."""
        return self.metanet({name: p[:count] for name, p in self.params.items()})

    @torch.no_grad()
    def infer(self) -> None:
        """A pass that keeps nothing for gradients."""
        self.forward()

    def both(self, count: int | None = None) -> tuple[float, float]:
        """Seconds of a pass, and of a pass with its backward pass."""
        started = time.perf_counter()
        new = self.forward(count)
        passed = time.perf_counter()
        sum(p.square().sum() for p in new.values()).backward()
        done = time.perf_counter()
        self.metanet.zero_grad()
        return passed - started, done - started


def reference_times(case: Case, sides: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Shortest seconds of a pass and of a pass with its backward pass, the sides taking turns.

    Fewer rounds than asked for are run once they have taken half a minute.
    """
    passes = {side: Pass(side, case) for side in sides}
    for each in passes.values():
        each.both(count=1)
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    started = time.perf_counter()
    for _ in range(rounds):
        for side, each in passes.items():
            times[side].append(each.both())
        if time.perf_counter() - started > 30:
            break
    return {
        side: {"forward_s": min(t[0] for t in many), "forward_backward_s": min(t[1] for t in many)}
        for side, many in times.items()
    }


def memory_growth(side: str, case: Case) -> float:
    """Bytes by which the resident set grows, at its peak, in a pass with its backward pass."""
    each = Pass(side, case)
    each.both(count=1)
    before = _resident(peak=False)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    each.both()
    return max(0.0, _resident(peak=True) - before)


def available_memory() -> float:
    """Bytes that can be had without swapping; infinite where the system has no /proc."""
    return _proc_bytes("/proc/meminfo", "MemAvailable") or float("inf")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Measure what is requested.

    Args:
        request: ``threads`` and ``case``, and ``growth``, a side whose memory is measured, or ``sides`` and
            ``rounds``.

    Returns:
        ``{"bytes": ...}`` or the times of every side.
    """
    torch.set_num_threads(request["threads"])
    keep_freed_memory()
    case = Case(**request["case"])
    if "growth" in request:
        return {"bytes": memory_growth(request["growth"], case)}
    return reference_times(case, request["sides"], request["rounds"])


def _resident(*, peak: bool) -> float:
    known = _proc_bytes("/proc/self/status", "VmHWM" if peak else "VmRSS")
    if known is not None:
        return known
    # Elsewhere only the peak is known, in kilobytes, on macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def _proc_bytes(file: str, key: str) -> float | None:
    path = Path(file)
    if not path.is_file():
        return None
    rows = [line.split() for line in path.read_text().splitlines()]
    return next((1024.0 * float(row[1]) for row in rows if row and row[0] == f"{key}:"), None)


if __name__ == "__main__":
    print(json.dumps(answer(json.loads(sys.argv[1]))))
