"""SGD and Adam on a cell: learning rate and schedule chosen on tuning networks, then the numbers.

Legend: B networks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from statistics import median
from typing import Any, TypeAlias

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.functional.networks import num_networks
from amortopt.tasks import evaluate_many
from amortopt.training import Schedule, Stepper, train_epochs
from benchmarks.harness.command import Advance
from benchmarks.harness.numbers import summary, values
from benchmarks.one_shot.cells import Cell, Method

Run: TypeAlias = tuple[Schedule, int]
"""Schedule and epochs."""

SCHEDULES: tuple[Schedule, ...] = ("constant", "cosine")
TIMED = (
    "ce-sgd-noise",
    "ce-adam-noise",
    "l1-sgd-noise",
    "l1-adam-noise",
    "l1-prox-sgd-noise",
    "l1-prox-adam-noise",
)
"""Methods whose epochs are timed."""
TUNING_COLUMNS = ("l1", "schedule", "epochs", "learning_rate", "val_accuracy", "val_objective")


@dataclass(frozen=True)
class State:
    """Networks after so many epochs.

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

    def __getitem__(self, rows: slice) -> State:
        return State(self.loss[rows], self.accuracy[rows], self.norm[rows], self.zeros[rows])

    @staticmethod
    def joined(states: Sequence[State]) -> State:
        """All networks of several states."""
        return State(*(torch.cat([vars(s)[name] for s in states]) for name in State.__dataclass_fields__))


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

    def score(self, method: Method) -> float:
        """The higher the better: accuracy for plain cross-entropy, the objective with L1."""
        value = -self.objective if method.l1 else self.accuracy
        return value if math.isfinite(value) else -math.inf


def look(cell: Cell, params: Params, which: str) -> State:
    """Measure networks on a part of the data."""
    data: Any = cell.problem.split(which)  # type: ignore[arg-type]
    loss, accuracy = evaluate_many(cell.module(), params, data, cell.problem.objective)
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
    """

    def __init__(self, cell: Cell) -> None:
        self.cell, self.plan = cell, cell.plan

    @cached_property
    def test(self) -> Params:
        """Starting networks of the numbers."""
        return self.cell.networks(self.plan.networks)

    @cached_property
    def tuning(self) -> Params:
        """Starting networks that rates and schedules are chosen on."""
        return self.cell.networks(self.plan.tuning, tuning=True)

    @cached_property
    def before(self) -> State:
        """The networks of the numbers as they start."""
        return look(self.cell, self.test, "test")

    # What a measurement depends on.

    def identity(self, part: str, method: Method | None = None) -> dict[str, Any]:
        """Of the parts ``start``, ``rows``, ``curve`` and ``timing``."""
        plan, setting = self.plan, self.cell.setting
        identity = self.cell.identity() | plan.part("networks")
        if part == "start":
            identity |= {"l1": setting.l1}
        if method is not None:
            identity |= plan.part("order_seed", "batch_size", "tuning", "factor", "reach", "widen")
            identity |= plan.part(method.optimizer)
            identity |= {"method": method, "noise": setting.noise if method.noisy else 0.0}
        if part == "rows" and method is not None:
            identity |= {"lengths": plan.lengths_of(method), "l1": setting.l1 if method.l1 else 0.0}
        if part == "curve":
            identity |= plan.part("strengths", "low", "high", "curve_networks", "curve_tuning")
            identity |= {"lengths": plan.lengths[-1:]}
        if part == "timing":
            identity |= plan.part("timed", "batch_size") | {"noise": setting.noise}
        return identity

    def cost(self, part: str, method: Method | None = None) -> float:
        """Expected work in epochs of one network; grids that are widened cost more."""
        plan, rates = self.plan, 2 * self.plan.reach + 1
        if part == "rows" and method is not None:
            lengths = plan.lengths_of(method)
            return plan.networks * sum(lengths) + rates * plan.tuning * (sum(lengths) + lengths[-1])
        if part == "curve":
            return plan.lengths[-1] * plan.strengths * (plan.curve_networks + rates * plan.curve_tuning)
        if part == "timing":
            return len(TIMED) * (plan.networks * plan.timed + max(3, plan.timed))
        return plan.networks * 7.0

    # What is measured.

    def start(self, advance: Advance) -> dict[str, Any]:
        """The networks as they start."""
        described_start = described(self.before, self.before, self.cell.setting.l1)
        return described_start | {"norm": values(self.before.norm, 2)}

    def rows(self, method: Method, advance: Advance) -> dict[str, Any]:
        """A row per length, tuned for it."""
        plan, l1 = self.plan, self.cell.setting.l1 if method.l1 else 0.0
        lengths, rows = plan.lengths_of(method), []
        trials = self.tune(method, [l1], lengths, SCHEDULES, plan.tuning, advance)
        for epochs in lengths:
            best = _best(method, trials, l1, epochs)
            run, pairs = (best.schedule, epochs), [(l1, best.learning_rate)]
            state = self._train(method, self.test, run, pairs, "test", advance)[epochs]
            rows.append(
                {"epochs": epochs, "schedule": best.schedule, "learning_rate": best.learning_rate}
                | described(state, self.before, l1 if method.l1 else None)
            )
        return {"rows": rows, "tuning": _compact(trials)}

    def curve(self, method: Method, advance: Advance) -> dict[str, Any]:
        """A point per λ, tuned for it."""
        plan, epochs = self.plan, self.plan.lengths[-1]
        grid, count = plan.grid(plan.strengths), plan.curve_networks
        trials = self.tune(method, grid, (epochs,), ("cosine",), plan.curve_tuning, advance)
        best = [_best(method, trials, l1, epochs) for l1 in grid]
        start, pairs = _first(self.test, count), [(trial.l1, trial.learning_rate) for trial in best]
        state = self._train(method, start, ("cosine", epochs), pairs, "test", advance)[epochs]
        before, points = look(self.cell, start, "test"), []
        for i, (l1, rate) in enumerate(pairs):
            point = condensed(described(state[i * count : (i + 1) * count], before, l1))
            points.append({"l1": l1, "learning_rate": rate} | point)
        return {"epochs": epochs, "points": points, "tuning": _compact(trials)}

    def timing(self, advance: Advance) -> dict[str, Any]:
        """Seconds of an epoch, for all networks together and for a single one."""
        plan, result = self.plan, {}
        for key in dict.fromkeys((*TIMED, *(replace(method, noisy=True).key for method in plan.methods))):
            together = self._epoch_seconds(Method.from_key(key), plan.networks, plan.timed, advance)
            alone = self._epoch_seconds(Method.from_key(key), 1, max(3, plan.timed), advance)
            result[key] = {
                "together": together,
                "networks": plan.networks,
                "per_network": together / plan.networks,
                "alone": alone,
            }
        return result

    def tune(
        self,
        method: Method,
        strengths: Sequence[float],
        lengths: Sequence[int],
        schedules: Sequence[Schedule],
        count: int,
        advance: Advance,
    ) -> list[Trial]:
        """Try learning rates and schedules; where the best rate is the last of its grid, go on beyond it.

        Args:
            method: Kind of fine-tuning.
            strengths: λ; everything is chosen for each of them.
            lengths: Epochs, likewise.
            schedules: Schedules to try.
            count: Tuning networks.
            advance: Moves the progress bar.
        """
        plan, trials = self.plan, []
        start = _first(self.tuning, count)
        grid = {(l1, k) for l1 in strengths for k in range(-plan.reach, plan.reach + 1)}
        # A constant rate passes the shorter lengths on its way to the longest one.
        wanted: dict[Run, set[tuple[float, int]]] = {
            (schedule, epochs): set(grid)
            for schedule in schedules
            for epochs in (lengths if schedule == "cosine" else lengths[-1:])
        }
        for _ in range(1 + plan.widen):
            for run, places in wanted.items():
                schedule, epochs = run
                tried = [(l1, k, plan.rate(method.optimizer, k)) for l1, k in sorted(places)]
                stops = lengths if schedule == "constant" else (epochs,)
                pairs = [(l1, rate) for l1, _, rate in tried]
                states = self._train(method, start, run, pairs, "val", advance, stops)
                for (stop, state), (i, (l1, k, rate)) in (
                    (reached, place) for reached in states.items() for place in enumerate(tried)
                ):
                    one = state[i * count : (i + 1) * count]
                    accuracy, objective = 100 * one.accuracy.mean(), (one.loss + l1 * one.norm).mean()
                    trials.append(Trial(l1, schedule, stop, k, rate, float(accuracy), float(objective)))
            wanted = _beyond(method, trials, strengths, lengths)
        return trials

    def _train(
        self,
        method: Method,
        start: Params,
        run: Run,
        pairs: Sequence[tuple[float, float]],
        which: str,
        advance: Advance,
        stops: Iterable[int] = (),
    ) -> dict[int, State]:
        """Train the networks once per (λ, rate), stacked, some at a time; epochs done -> state then."""
        plan, cell, count = self.plan, self.cell, num_networks(start)
        stacked = {name: p.repeat(len(pairs), *[1] * (p.ndim - 1)) for name, p in start.items()}
        l1, rate = torch.tensor(pairs).repeat_interleave(count, 0).unbind(1)
        stops = tuple(stops) or run[1:]
        states: dict[int, list[State]] = defaultdict(list)
        for rows in torch.arange(len(rate)).tensor_split(math.ceil(len(rate) / plan.chunk)):
            some = {name: p[rows] for name, p in stacked.items()}

            def on_stop(epoch: int, _: float, params: Params) -> None:
                states[epoch].append(look(cell, params, which))

            self._fit(method, some, run, rate[rows], l1[rows], stops, on_stop, advance)
        return {epoch: State.joined(some) for epoch, some in states.items()}

    def _epoch_seconds(self, method: Method, count: int, epochs: int, advance: Advance) -> float:
        """Median time of an epoch of so many networks at once."""
        seconds = [0.0]

        def on_stop(_: int, so_far: float, __: Params) -> None:
            seconds.append(so_far)

        start, l1, stops = _first(self.test, count), self.cell.setting.l1, range(1, epochs + 1)
        self._fit(method, start, ("cosine", epochs), 1e-3, l1, stops, on_stop, advance)
        return median(after - before for before, after in pairwise(seconds))

    def _fit(
        self,
        method: Method,
        params: Params,
        run: Run,
        rate: float | Tensor,
        l1: float | Tensor,
        stops: Collection[int],
        on_stop: Callable[[int, float, Params], None],
        advance: Advance,
    ) -> None:
        cell, (schedule, epochs), count = self.cell, run, num_networks(params)
        strength = l1 if method.l1 else 0.0
        train_epochs(
            cell.module(),
            params,
            cell.problem.split("train"),
            cell.problem.objective,
            Stepper(method.optimizer, rate, schedule, l1=strength, proximal=method.proximal),
            epochs=epochs,
            seed=self.plan.order_seed,
            batch_size=self.plan.batch_size,
            input_noise=cell.setting.noise if method.noisy else 0.0,
            stops=stops,
            on_stop=on_stop,
            on_epoch=lambda _: advance(count * cell.setting.cost),
        )


def _first(params: Params, count: int) -> Params:
    return {name: p[:count] for name, p in params.items()}


def _best(method: Method, trials: Sequence[Trial], l1: float, epochs: int) -> Trial:
    return max((t for t in trials if (t.l1, t.epochs) == (l1, epochs)), key=lambda t: t.score(method))


def _beyond(
    method: Method, trials: Sequence[Trial], strengths: Sequence[float], lengths: Sequence[int]
) -> dict[Run, set[tuple[float, int]]]:
    """What to try next: run -> pairs of λ and the place beyond a best rate that is the last of its grid."""
    wanted: dict[Run, set[tuple[float, int]]] = defaultdict(set)
    for l1 in strengths:
        for epochs in lengths:
            best = _best(method, trials, l1, epochs)
            tried = {t.k for t in trials if (t.schedule, t.epochs, t.l1) == (best.schedule, epochs, l1)}
            step = 1 if best.k == max(tried) else -1 if best.k == min(tried) else 0
            if step:
                run = lengths[-1] if best.schedule == "constant" else epochs
                wanted[best.schedule, run].add((l1, best.k + step))
    return dict(wanted)


def _compact(trials: Sequence[Trial]) -> dict[str, Any]:
    """The tuning table: columns and rows."""
    rows = [
        [t.l1, t.schedule, t.epochs, t.learning_rate, round(t.accuracy, 2), round(t.objective, 4)]
        for t in trials
    ]
    return {"columns": TUNING_COLUMNS, "rows": rows}
