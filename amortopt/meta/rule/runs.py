"""Inner runs: base networks that an update rule trains, kept from one meta step to the next.

Legend: B networks, N elements of all parameters, K inner steps, M parameters of the rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amortopt.meta.rule.inner import InnerProblem
from amortopt.metanets.update_rule.rule import RuleState, UNFRule, is_number

GUARD = 3.0
"""A network whose loss is so many times that of its start has diverged."""


@dataclass(frozen=True)
class Draws:
    """What differs from one inner run to the next, beside initialisation and minibatches.

    Attributes:
        slowest: Smallest learning rate; rates are log-uniform.
        fastest: Largest learning rate.
        cosine: Share of runs whose rate falls to 0 at their end, as a cosine; that of the others is constant.
        constant: What the rates of those others are multiplied with. One half is a rule of thumb: a rate that
            falls as a cosine has half of its first value on average.
        reparametrise: Every block of parameters counts times a random factor, log-uniform between one over
            this and this. The network that such a run starts from is the same, its gradients are not.

    Raises:
        ValueError: An argument is out of its range.
    """

    slowest: float = 0.02
    fastest: float = 0.02
    cosine: float = 1.0
    constant: float = 1.0
    reparametrise: float = 1.0

    def __post_init__(self) -> None:
        if not all(is_number(rate) and 0 < rate < math.inf for rate in (self.slowest, self.fastest)):
            raise ValueError(f"draws: got rates {self.slowest}, {self.fastest}, expected positive numbers")
        if self.slowest > self.fastest:
            raise ValueError(f"draws.slowest: got {self.slowest}, expected at most fastest, {self.fastest}")
        if not is_number(self.cosine) or not 0 <= self.cosine <= 1:
            raise ValueError(f"draws.cosine: got {self.cosine!r}, expected a share in [0, 1]")
        if not is_number(self.constant) or not 0 < self.constant < math.inf:
            raise ValueError(f"draws.constant: got {self.constant!r}, expected a positive number")
        if not is_number(self.reparametrise) or not 1 <= self.reparametrise < math.inf:
            raise ValueError(f"draws.reparametrise: got {self.reparametrise!r}, expected at least 1")


class InnerRuns:
    """Base networks at staggered phases of their training; each starts anew when its horizon is reached.

    Args:
        inner: Problem and family.
        rule: Makes the state of every network; not stored.
        count: Number of networks B.
        horizon: Inner steps of a run. The first runs are shorter, so that networks do not restart together.
        seed: Of initialisations and minibatches.
        shortest: Runs end after so many inner steps to ``horizon``, log-uniformly; None: all at ``horizon``.
            What a rule does in its first steps decides about all that come after.
        copies: Networks that start alike, see the same examples and restart together: 1, or 2 for antithetic
            pairs, which are p and p + B / 2.
        draws: What else differs from run to run.

    Attributes:
        flat: Parameters [B, N].
        scales: What the networks multiply them with, [B, N]; None if all are 1.
        rates: Learning rate of every network [B].
        falling: Whether it falls, as a cosine, bool [B].
        state: The rule's state of every network.
        steps: Inner steps done since the start, int64 [B] on the CPU.
        limits: Inner steps after which a network starts anew, int64 [B] on the CPU.
        first: Loss at the start [B]; infinite before the first step.
        perturbations: Sum of the rule's perturbations since the start, [B / copies, M]; None without.
        diverged: Networks that were restarted because their loss exploded.

    Raises:
        ValueError: ``count`` is not a positive multiple of ``copies``, or ``horizon`` is not positive.
    """

    def __init__(
        self,
        inner: InnerProblem,
        rule: UNFRule,
        count: int,
        horizon: int,
        seed: int,
        *,
        copies: int = 1,
        shortest: int | None = None,
        draws: Draws = Draws(),
    ) -> None:
        if count < 1 or count % copies:
            raise ValueError(f"networks: got {count}, expected a positive multiple of {copies}")
        if horizon < 1:
            raise ValueError(f"horizon: got {horizon}, expected at least 1 inner step")
        self.inner, self.count, self.copies, self.shortest = inner, count, copies, shortest
        self.draws = draws
        self.generator = torch.Generator().manual_seed(seed)
        self.diverged = 0
        self.flat, self.scales, self.rates, self.falling = self._fresh(count // copies)
        self.state: RuleState = rule.init_state(inner.layout, self.flat)
        self.steps = torch.zeros(count, dtype=torch.int64)
        shares = torch.arange(1, count // copies + 1).repeat(copies) / (count // copies)
        self.limits = (shares * horizon).ceil().long()
        self.first = torch.full((count,), math.inf, device=self.flat.device)
        self.perturbations: Tensor | None = None

    def _fresh(self, count: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Parameters, scales, learning rates and whether these fall, of runs that start."""
        d = self.draws
        flat, scales = self.inner.init(count, self.generator), None
        share, chance = torch.rand(2, count, generator=self.generator)
        rates = (d.slowest * (d.fastest / d.slowest) ** share).to(flat)
        falling = (chance < d.cosine).to(flat.device)
        rates = torch.where(falling, rates, d.constant * rates)
        if d.reparametrise > 1:
            places = self.inner.layout.places
            power = 2 * torch.rand(count, len(places), generator=self.generator) - 1
            sizes = torch.tensor([place.stop - place.start for place in places])
            scales = (d.reparametrise**power).repeat_interleave(sizes, dim=1).to(flat)
            flat, scales = flat / scales, scales.repeat(self.copies, 1)
        return flat.repeat(self.copies, 1), scales, rates.repeat(self.copies), falling.repeat(self.copies)

    def rate(self, k: int) -> Tensor:
        """Learning rate of every network in the k-th step from now, [B, 1]."""
        done = (self.steps + k).to(self.rates.device) / self.limits.to(self.rates.device)
        factor = torch.where(self.falling, 0.5 * (1 + torch.cos(math.pi * done.clamp(max=1))), 1.0)
        return (self.rates * factor.to(self.rates.dtype)).unsqueeze(1)

    def _lengths(self, count: int, horizon: int) -> Tensor:
        """Inner steps of runs that start now, int64 [count]."""
        if self.shortest is None or self.shortest >= horizon:
            return torch.full((count,), horizon)
        share = torch.rand(count, generator=self.generator)
        return (self.shortest * (horizon / self.shortest) ** share).round().long()

    def align(self, horizon: int) -> int:
        """Give all networks one number of inner steps, drawn as for runs that start, and return it.

        None of them may have taken a step since it started.
        """
        steps = int(self._lengths(1, horizon))
        self.limits[:] = steps
        return steps

    def draw(self, which: Any = "train") -> tuple[Tensor, Tensor]:
        """A minibatch for every network, the same one for copies: [B, n, ...] and [B, n, ...]."""
        x, y = self.inner.draw(self.count // self.copies, self.generator, which)
        if self.copies == 1:
            return x, y
        return tuple(t.repeat(self.copies, *[1] * (t.ndim - 1)) for t in (x, y))  # pyright: ignore

    def top(self, losses: Tensor) -> Tensor:
        """Loss [B] above which a network has diverged, from the losses [B] before the next step."""
        return GUARD * torch.where(self.first.isfinite(), self.first, losses)

    @torch.no_grad()
    def advance(self, flat: Tensor, state: RuleState, losses: Tensor, horizon: int) -> None:
        """Keep where a truncation has led, and start anew what is at its end or has diverged.

        Args:
            flat: Parameters after it, [B, N].
            state: The rule's state after it.
            losses: Before the first and after every inner step, [K + 1, B].
            horizon: Inner steps of the runs that start now.
        """
        losses = losses.detach()
        self.flat = flat.detach()
        self.state = {key: value.detach() for key, value in state.items()}
        self.first = torch.where(self.first.isfinite(), self.first, losses[0])
        self.steps += len(losses) - 1
        sound = (
            losses.isfinite().all(0) & self.flat.isfinite().all(1) & (losses.mean(0) <= GUARD * self.first)
        )
        diverged = ~sound.cpu()
        self.diverged += int(diverged.sum())
        over = diverged | (self.steps >= self.limits)
        over = over.view(self.copies, -1).any(0)  # [B / copies]
        if over.any():
            places = over.repeat(self.copies).nonzero().squeeze(1)
            on_device = places.to(self.flat.device)
            fresh, scales, rates, falling = self._fresh(int(over.sum()))
            self.flat = self.flat.index_copy(0, on_device, fresh)
            self.rates = self.rates.index_copy(0, on_device, rates)
            self.falling = self.falling.index_copy(0, on_device, falling)
            if self.scales is not None and scales is not None:
                self.scales = self.scales.index_copy(0, on_device, scales)
            self.state = {key: value.index_fill(0, on_device, 0.0) for key, value in self.state.items()}
            self.first = self.first.index_fill(0, on_device, math.inf)
            self.steps[places] = 0
            self.limits[places] = self._lengths(int(over.sum()), horizon).repeat(self.copies)
            if self.perturbations is not None:
                starts = over.nonzero().squeeze(1).to(self.perturbations.device)
                self.perturbations = self.perturbations.index_fill(0, starts, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on bit-exactly: tensors on the CPU."""
        saved: dict[str, Any] = {
            key: getattr(self, key).cpu()
            for key in ("flat", "steps", "limits", "first", "rates", "falling", "scales")
            if getattr(self, key) is not None
        }
        saved["state"] = {key: value.cpu() for key, value in self.state.items()}
        if self.perturbations is not None:
            saved["perturbations"] = self.perturbations.cpu()
        return saved | {"generator": self.generator.get_state(), "diverged": self.diverged}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where another object was.

        Raises:
            ValueError: The state is of other networks.
        """
        if saved["flat"].shape != self.flat.shape or saved["state"].keys() != self.state.keys():
            raise ValueError(
                f"ckpt_path: the state is of inner runs {tuple(saved['flat'].shape)}, expected "
                f"{tuple(self.flat.shape)}; pass what the run was started with, or start anew"
            )
        device = self.flat.device
        self.flat, self.first = saved["flat"].to(device), saved["first"].to(device)
        self.rates, self.falling = saved["rates"].to(device), saved["falling"].to(device)
        self.scales = saved["scales"].to(device) if "scales" in saved else None
        self.state = {key: value.to(device) for key, value in saved["state"].items()}
        self.steps, self.limits = saved["steps"].clone(), saved["limits"].clone()
        held = saved.get("perturbations")
        self.perturbations = None if held is None else held.to(device)
        self.generator.set_state(saved["generator"].cpu())
        self.diverged = int(saved["diverged"])


def horizon_at(progress: float, *, first: int, last: int, share: float, truncation: int) -> int:
    """Inner steps of a run: from ``first`` to ``last``, geometrically, in whole truncations.

    They grow in the first ``share`` of the meta-training budget, of which ``progress`` is used up.
    """
    grown = min(1.0, progress / share) if share > 0 else 1.0
    return max(1, round(first * (last / first) ** grown / truncation)) * truncation
