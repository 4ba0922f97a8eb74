"""SGD and Adam on a cell: learning rate and schedule chosen on tuning networks, then the numbers.

Legend: B networks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any, TypeAlias

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.functional.networks import num_networks
from amortopt.tasks import evaluate_many
from amortopt.zoo.baseline import Schedule, finetune
from comparison.cells import Cell, Method
from comparison.store import summary, values

Advance: TypeAlias = Callable[[str, float], None]
"""Called with what is being done and the network-epochs that were done since."""
_SCHEDULES: tuple[Schedule, ...] = ("constant", "cosine")
_MEASURED = ("networks", "order_seed", "batch_size")
_TUNED = ("tuning", "factor", "reach", "widen")


@dataclass(frozen=True)
class State:
    """Networks at a stop.

    Attributes:
        loss: Problem's loss in nats [B].
        accuracy: In [0, 1] [B].
        norm: L1 norm [B].
        zeros: Share of weights that are exactly zero [B].
    """

    loss: Tensor
    accuracy: Tensor
    norm: Tensor
    zeros: Tensor


@dataclass(frozen=True)
class Trial:
    """A setting, and what it came to on the tuning networks and validation data.

    Attributes:
        l1: Strength λ.
        schedule: Of the learning rate.
        epochs: Length.
        k: Place of the learning rate in the grid.
        learning_rate: The rate.
        accuracy: Mean, in %.
        objective: Mean of loss + λ times L1 norm.
    """

    l1: float
    schedule: Schedule
    epochs: int
    k: int
    learning_rate: float
    accuracy: float
    objective: float

    def better_by(self, method: Method) -> float:
        """The higher the better: accuracy for plain cross-entropy, the objective with L1."""
        value = -self.objective if method.l1 else self.accuracy
        return value if math.isfinite(value) else -math.inf


def look(cell: Cell, params: Params, which: str) -> State:
    """Measure networks on a part of the data."""
    loss, accuracy = evaluate_many(cell.module(), params, cell.problem.split(which), cell.problem.objective)  # type: ignore[arg-type]
    flat = torch.cat([p.flatten(1) for p in params.values()], 1)
    return State(loss, accuracy, flat.abs().sum(1).double(), (flat == 0).double().mean(1))


def described(state: State, start: State, l1: float | None) -> dict[str, Any]:
    """Per network: accuracy in %, loss, cut of the L1 norm in %; with λ the objective; share of zeros."""
    result: dict[str, Any] = {
        "accuracy": values(100 * state.accuracy, 2),
        "loss": values(state.loss, 4),
        "cut": values(100 * (1 - state.norm / start.norm), 2),
        "zeros": float(state.zeros.mean()),
    }
    if l1 is not None:
        result["objective"] = values(state.loss + l1 * state.norm, 4)
    return result


def condensed(row: dict[str, Any]) -> dict[str, Any]:
    """The row with a summary in place of every list of numbers per network."""
    return {key: summary([value]) if isinstance(value, list) else value for key, value in row.items()}


class Baselines:
    """The fine-tuning of one cell.

    Args:
        cell: The cell.
        advance: For a progress bar.
    """

    def __init__(self, cell: Cell, advance: Advance) -> None:
        self.cell, self.plan, self.advance = cell, cell.plan, advance
        self._start: dict[str, Params] = {}
        self._before: State | None = None

    # What a measurement depends on.

    def identity(self, part: str, method: Method | None = None) -> dict[str, Any]:
        """Of the parts ``start``, ``rows``, ``curve`` and ``timing``."""
        plan, cell = self.plan, self.cell
        found = cell.identity() | plan.part("networks")
        if part == "start":
            found |= {"l1": cell.setting.l1}
        if method is not None:
            found |= plan.part(*_MEASURED, *_TUNED, method.optimizer)
            found |= {"method": method, "noise": cell.setting.noise if method.noisy else 0.0}
        if part == "rows" and method is not None:
            found |= {"lengths": plan.lengths_of(method), "l1": cell.setting.l1 if method.l1 else 0.0}
        if part == "curve":
            found |= plan.part("strengths", "low", "high", "curve_networks", "curve_tuning")
            found |= {"lengths": plan.lengths[-1:]}
        if part == "timing":
            found |= plan.part("timed", "batch_size") | {"noise": cell.setting.noise}
        return found

    # What is measured.

    def start(self) -> dict[str, Any]:
        """The networks as they start."""
        self.advance("networks", 0.0)
        state = self._before_state()
        return described(state, state, self.cell.setting.l1) | {"norm": values(state.norm, 2)}

    def rows(self, method: Method) -> dict[str, Any]:
        """A row per length, tuned for it."""
        plan, l1 = self.plan, self.cell.setting.l1 if method.l1 else 0.0
        lengths = plan.lengths_of(method)
        trials = self.tune(method, [l1], lengths, _SCHEDULES, plan.tuning)
        rows = []
        for epochs in lengths:
            best = _best(method, trials, l1, epochs)
            (state,) = self._train(
                self.networks("test", plan.networks), method, best.schedule, epochs, (epochs,), "test",
                rates=[best.learning_rate], strengths=[l1],
            ).values()  # fmt: skip
            rows.append(
                {"epochs": epochs, "schedule": best.schedule, "learning_rate": best.learning_rate}
                | described(state, self._before_state(), l1 if method.l1 else None)
            )
        return {"rows": rows, "tuning": _compact(trials)}

    def curve(self, method: Method) -> dict[str, Any]:
        """A point per λ, tuned for it."""
        plan, epochs = self.plan, self.plan.lengths[-1]
        grid, count = plan.grid(plan.strengths), plan.curve_networks
        trials = self.tune(method, grid, (epochs,), ("cosine",), plan.curve_tuning)
        best = [_best(method, trials, l1, epochs) for l1 in grid]
        start = {name: p[:count] for name, p in self.networks("test", plan.networks).items()}
        (state,) = self._train(
            start, method, "cosine", epochs, (epochs,), "test",
            rates=[trial.learning_rate for trial in best], strengths=grid,
        ).values()  # fmt: skip
        before, points = look(self.cell, start, "test"), []
        for i, trial in enumerate(best):
            mine = slice(i * count, (i + 1) * count)
            one = State(state.loss[mine], state.accuracy[mine], state.norm[mine], state.zeros[mine])
            point = condensed(described(one, before, grid[i]))
            points.append({"l1": grid[i], "learning_rate": trial.learning_rate} | point)
        return {"epochs": epochs, "points": points, "tuning": _compact(trials)}

    def timing(self) -> dict[str, Any]:
        """Seconds of an epoch, for all networks together and for a single one."""
        plan, result = self.plan, {}
        kinds = [Method("sgd"), Method("adam"), Method("sgd", l1=True), Method("adam", l1=True)]
        kinds += [Method("sgd", l1=True, proximal=True), Method("adam", l1=True, proximal=True)]
        for method in kinds:
            together = self._epoch_seconds(method, plan.networks, plan.timed)
            result[method.key] = {
                "together": together,
                "networks": plan.networks,
                "per_network": together / plan.networks,
                "alone": self._epoch_seconds(method, 1, max(3, plan.timed)),
            }
        return result

    def tune(
        self,
        method: Method,
        strengths: Sequence[float],
        lengths: Sequence[int],
        schedules: Sequence[Schedule],
        count: int,
    ) -> list[Trial]:
        """Try learning rates and schedules; where the best rate is the last of its grid, go on beyond it."""
        plan, trials = self.plan, []
        first = {(l1, k) for l1 in strengths for k in range(-plan.reach, plan.reach + 1)}
        wanted = {
            (schedule, epochs): set(first)
            for schedule in schedules
            # A constant rate passes the shorter lengths on its way to the longest one.
            for epochs in (lengths if schedule == "cosine" else lengths[-1:])
        }
        for _ in range(1 + plan.widen):
            for (schedule, epochs), pairs in wanted.items():
                stops = lengths if schedule == "constant" else (epochs,)
                trials += self._try(method, schedule, epochs, stops, sorted(pairs), count)
            wanted = _beyond(method, trials, strengths, lengths)
            if not wanted:
                break
        return trials

    def _try(
        self,
        method: Method,
        schedule: Schedule,
        epochs: int,
        stops: Sequence[int],
        pairs: Sequence[tuple[float, int]],
        count: int,
    ) -> list[Trial]:
        """All pairs of λ and rate at once."""
        rates = [self.plan.rate(method.optimizer, k) for _, k in pairs]
        strengths = [l1 for l1, _ in pairs]
        start = {name: p[:count] for name, p in self.networks("val", self.plan.tuning).items()}
        states = self._train(start, method, schedule, epochs, stops, "val", rates=rates, strengths=strengths)
        trials = []
        for stop, state in states.items():
            for i, (l1, k) in enumerate(pairs):
                mine = slice(i * count, (i + 1) * count)
                accuracy = 100 * float(state.accuracy[mine].mean())
                objective = float((state.loss[mine] + l1 * state.norm[mine]).mean())
                trials.append(Trial(l1, schedule, stop, k, rates[i], accuracy, objective))
        return trials

    def _train(
        self,
        start: Params,
        method: Method,
        schedule: Schedule,
        epochs: int,
        stops: Iterable[int],
        which: str,
        *,
        rates: Sequence[float],
        strengths: Sequence[float],
    ) -> dict[int, State]:
        """Train the networks once per (rate, λ), stacked, some at a time; stop -> what they are then."""
        plan, cell, count = self.plan, self.cell, num_networks(start)
        stacked = {name: p.repeat(len(rates), *[1] * (p.ndim - 1)) for name, p in start.items()}
        rate, l1 = (torch.tensor(list(some)).repeat_interleave(count) for some in (rates, strengths))
        parts: dict[int, list[State]] = defaultdict(list)
        total = len(rate)
        pieces = math.ceil(total / plan.chunk)

        def on_stop(epoch: int, _: float, params: Params) -> None:
            parts[epoch].append(look(cell, params, which))

        for rows in torch.arange(total).tensor_split(pieces):
            some = {name: p[rows] for name, p in stacked.items()}
            self.advance(
                f"{method.key}, {schedule}, {epochs} epochs, {'tuning' if which == 'val' else 'test'}", 0
            )
            finetune(
                cell.module(), some, cell.problem.split("train"), cell.problem,
                optimizer=method.optimizer, learning_rate=rate[rows], schedule=schedule, epochs=epochs,
                seed=plan.order_seed, batch_size=plan.batch_size,
                input_noise=cell.setting.noise if method.noisy else 0.0,
                l1=l1[rows], proximal=method.proximal, stops=tuple(stops),
                on_stop=on_stop, on_epoch=partial(self._advance, len(rows)),
            )  # fmt: skip
        return {epoch: _joined(states) for epoch, states in parts.items()}

    def _epoch_seconds(self, method: Method, count: int, epochs: int) -> float:
        """Median time of an epoch of so many networks at once."""
        start = {name: p[:count] for name, p in self.networks("test", self.plan.networks).items()}
        self.advance(f"{method.key}, timing", 0)
        cell, so_far = self.cell, [0.0]
        finetune(
            cell.module(), start, cell.problem.split("train"), cell.problem, optimizer=method.optimizer,
            learning_rate=1e-3, epochs=epochs, seed=self.plan.order_seed, batch_size=self.plan.batch_size,
            input_noise=cell.setting.noise, l1=cell.setting.l1 if method.l1 else 0.0,
            proximal=method.proximal,
            stops=range(1, epochs + 1), on_stop=lambda _, seconds, __: so_far.append(seconds),
            on_epoch=partial(self._advance, count),
        )  # fmt: skip
        return median(after - before for before, after in pairwise(so_far))

    def _advance(self, networks: int, _: int) -> None:
        self.advance("", networks)

    def networks(self, which: str, count: int) -> Params:
        """Starting networks, drawn once."""
        if which not in self._start:
            self._start[which] = self.cell.networks(count, tuning=which == "val")
        return self._start[which]

    def _before_state(self) -> State:
        if self._before is None:
            self._before = look(self.cell, self.networks("test", self.plan.networks), "test")
        return self._before


def network_epochs(cell: Cell, part: str, method: Method | None = None) -> float:
    """Projected work of a part, in epochs of one network; grids that are widened cost more."""
    plan = cell.plan
    rates = 2 * plan.reach + 1
    if part == "rows" and method is not None:
        lengths = plan.lengths_of(method)
        return plan.networks * sum(lengths) + rates * plan.tuning * (sum(lengths) + lengths[-1])
    if part == "curve":
        return plan.lengths[-1] * plan.strengths * (plan.curve_networks + rates * plan.curve_tuning)
    if part == "timing":
        return 6 * (plan.networks * plan.timed + max(3, plan.timed))
    return plan.networks * 7.0


def _best(method: Method, trials: Sequence[Trial], l1: float, epochs: int) -> Trial:
    return max((t for t in trials if (t.l1, t.epochs) == (l1, epochs)), key=lambda t: t.better_by(method))


def _beyond(
    method: Method, trials: Sequence[Trial], strengths: Sequence[float], lengths: Sequence[int]
) -> dict[tuple[Schedule, int], set[tuple[float, int]]]:
    """What to try next: (schedule, epochs) -> pairs of λ and the rate beyond a best one that is the last."""
    wanted: dict[tuple[Schedule, int], set[tuple[float, int]]] = defaultdict(set)
    for l1 in strengths:
        for epochs in lengths:
            best = _best(method, trials, l1, epochs)
            mine = (best.schedule, epochs, l1)
            tried = {t.k for t in trials if (t.schedule, t.epochs, t.l1) == mine}
            step = 1 if best.k == max(tried) else -1 if best.k == min(tried) else 0
            if step:
                run = lengths[-1] if best.schedule == "constant" else epochs
                wanted[best.schedule, run].add((l1, best.k + step))
    return dict(wanted)


def _compact(trials: Sequence[Trial]) -> dict[str, Any]:
    """The tuning table: columns and rows."""
    columns = ["l1", "schedule", "epochs", "learning_rate", "val_accuracy", "val_objective"]
    rows = [
        [t.l1, t.schedule, t.epochs, t.learning_rate, round(t.accuracy, 2), round(t.objective, 4)]
        for t in trials
    ]
    return {"columns": columns, "rows": rows}


def _joined(states: Sequence[State]) -> State:
    names = ("loss", "accuracy", "norm", "zeros")
    return State(*(torch.cat([getattr(state, name) for state in states]) for name in names))
