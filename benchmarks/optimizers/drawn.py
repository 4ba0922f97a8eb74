"""Drawn tasks, by which the default rate and the step length of ``unf-small`` were chosen.

Its ramp of five steps is level here with shorter ones and with ten, which were behind in the suite.

No drawn task is in the suite. They are small networks of eight kinds, with sizes, initialisations, batches
and lengths that are drawn by seed: MLPs, CNNs and linear classifiers, regressions on random functions,
autoencoders, SIRENs on random images, recurrent networks and transformers. Every optimizer takes the same
minibatches from the same start, at every rate of a list with a cosine to zero, and at some that are constant.
Keys of the records are ``drawn/TASKS/CANDIDATE``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from amortopt.meta.rule.inner import InnerProblem
from amortopt.meta.rule.problems import RandomFunction, RandomImage
from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.tasks import Family, Problem, make_family, make_problem
from amortopt.training import Stepper
from benchmarks.harness.command import Advance, Part
from benchmarks.harness.numbers import summary
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import plus_minus, table
from benchmarks.optimizers.parts import numbers_of
from benchmarks.optimizers.settings import TEXT
from benchmarks.optimizers.steppers import Learned
from benchmarks.optimizers.training import Starts, train, train_loss

TASKS = 33
KINDS = (
    "mlp",
    "mlp",
    "regression",
    "regression",
    "autoencoder",
    "linear",
    "cnn",
    "siren",
    "siren",
    "rnn",
    "transformer",
)
"""Of the tasks, in turn."""
WIDTHS = (16, 24, 32, 48, 64, 96)
RATES = (0.006, 0.02, 0.06, 0.2)
"""Of Muon and every rule, where the best of them counts."""
SMALLEST = 1e-6
"""Losses below it count as equal."""
HOW = {"cosine": "falling", "constant": "constant"}
"""Schedule -> the attribute of a candidate that has its rates."""
CLIP = 1.5
"""Largest absolute value of a logarithm of a ratio of losses in a mean over tasks."""
NUMBERS: dict[str, Any] = {
    "mix": (0.3, 0.0, 0.7, 0.0),
    "vector_rate": 0.4,
    "table_rate": 0.4,
    "floor": 0.0625,
    "ramp": 5,
}
"""Of ``unf-small``."""


@dataclass(frozen=True)
class Drawn:
    """A task.

    Attributes:
        title: Seed, kind and initialisation.
        inner: Base networks and data.
        steps: Steps of a run.
        start: How weights are drawn: ``default``, torch's; ``kaiming``; ``small``, as transformers have it;
            ``scaled``: torch's times a factor between 1/4 and 3.
        seed: Of everything.
    """

    title: str
    inner: InnerProblem
    steps: int
    start: str
    seed: int


class DrawnStarts(Starts):
    """One initialisation of a drawn task."""

    def __init__(self, task: Drawn) -> None:
        super().__init__(task.inner, f"drawn {task.seed}", 1)
        generator = torch.Generator().manual_seed(task.seed)
        self.params = {name: _drawn_again(p, name, task.start, generator) for name, p in self.params.items()}


@dataclass(frozen=True)
class Candidate:
    """An optimizer with its rates.

    Attributes:
        title: For people.
        rule: None is AdamW.
        falling: Rates that fall to zero as a cosine.
        constant: Rates that stay.
    """

    title: str
    rule: UNFRule | None = None
    falling: tuple[float, ...] = RATES
    constant: tuple[float, ...] = ()

    def stepper(self, inner: InnerProblem, rates: Sequence[float], schedule: Any) -> Stepper | Learned:
        """The optimizer of as many networks as there are rates."""
        rate = torch.tensor(rates, dtype=torch.float64)
        if self.rule is None:
            return Stepper("adamw", rate, schedule, weight_decay=torch.full_like(rate, 0.01))
        return Learned(self.rule, inner.layout, rate, schedule)


ADAMW = Candidate("AdamW", None, (0.001, 0.003, 0.01, 0.03), (0.001,))
MUON = Candidate("Muon and Adam", UNFRule("none"))
SHIPPED = Candidate(
    "`unf-small`", UNFRule("none", **NUMBERS), (0.006, 0.02, 0.03, 0.04, 0.05, 0.06, 0.2), (0.02, 0.04)
)


def _changed(title: str, **numbers: Any) -> Candidate:
    return Candidate(title, UNFRule("none", **{**NUMBERS, **numbers}), (0.02, 0.03, 0.04, 0.06))


CANDIDATES = (
    *(ADAMW, MUON, SHIPPED),
    _changed("steps of one length", floor=1.0),
    *(_changed(f"ramp of {steps} steps", ramp=steps) for steps in (3, 10, 30)),
    _changed("no ramp", ramp=1),
    _changed("embeddings and heads at .8", table_rate=0.8),
    _changed("vectors at .8", vector_rate=0.8),
    _changed("both at .6", vector_rate=0.6, table_rate=0.6),
    _changed("gradient .2", mix=(0.2, 0.0, 0.8, 0.0)),
    _changed("gradient .4", mix=(0.4, 0.0, 0.6, 0.0)),
)


def draw_task(seed: int) -> Drawn:
    """The task of a seed."""
    chance = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    activation = chance.choice(("relu", "tanh", "gelu"))
    start = chance.choice(("default", "default", "default", "kaiming", "small", "scaled"))
    batch, steps = chance.choice((16, 32, 64, 128)), chance.choice((200, 300, 450))
    hidden = [chance.choice(WIDTHS) for _ in range(chance.choice((1, 2, 3)))]
    problem, family = _problem_and_family(kind, seed, activation, hidden, chance)
    if kind in ("rnn", "transformer"):
        batch, steps = 8, 200
    if kind in ("siren", "rnn"):  # drawn in a way of its own; whose kernel is recurrent
        start = "default"
    inner = InnerProblem(problem, family, max(batch, 64) if kind == "siren" else batch)
    return Drawn(f"{seed}, {kind}, {start}", inner, steps, start, seed)


def _problem_and_family(
    kind: str, seed: int, activation: str, hidden: list[int], chance: random.Random
) -> tuple[Problem, Family]:
    common = {"activation": activation}
    if kind in ("mlp", "linear"):
        name, inputs, shape = chance.choice((("mnist1d", 40, [40]), ("digits", 256, [1, 16, 16])))
        widths = [inputs, *(hidden if kind == "mlp" else ()), 10]
        return make_problem(name), make_family("mlp", widths=widths, input_shape=shape, **common)
    if kind == "regression":
        inputs = chance.choice((3, 6, 12, 20))
        family = make_family("mlp", widths=[inputs, *hidden, 1], **common)
        noise = chance.choice((0.0, 0.1, 0.3))
        return RandomFunction(seed, chance.choice((400, 2000)), inputs, noise), family
    if kind == "autoencoder":
        widths = [256, hidden[0], 8, hidden[0], 256]
        return make_problem("digits_autoencoder"), make_family("mlp", widths=widths, **common)
    if kind == "cnn":
        channels = [chance.choice((8, 12, 16))] * chance.choice((2, 3))
        return make_problem("digits"), make_family(
            "cnn", channels=channels, input_shape=[1, 16, 16], **common
        )
    if kind == "siren":
        widths = [2, *[min(hidden[0], 48)] * len(hidden), 1]
        family = make_family("siren", widths=widths, w0=chance.choice((10.0, 20.0, 30.0)))
        return RandomImage(seed, chance.choice((32, 48)), chance.choice((1.0, 1.5, 2.0))), family
    text = make_problem(**TEXT)
    if kind == "rnn":
        return text, make_family("char_rnn", embedding=24, hidden=chance.choice((32, 48)))
    shape = {"width": 24, "heads": 2, "blocks": chance.choice((1, 2)), "ratio": 2}
    return text, make_family("transformer", **shape, **common)


def _drawn_again(p: Tensor, name: str, start: str, generator: torch.Generator) -> Tensor:
    """A parameter [1, ...] of one network, with the initialisation ``start``."""
    if p.ndim < 3:
        return torch.zeros_like(p) if start in ("kaiming", "small") and name.endswith("bias") else p
    inputs = math.prod(p.shape[2:])
    if start == "kaiming":
        return torch.randn(p.shape, generator=generator) * math.sqrt(2 / inputs)
    if start == "small":
        return torch.randn(p.shape, generator=generator) * (0.02 if inputs >= 64 else 0.05)
    if start == "scaled":
        return p * 2 ** (float(torch.rand((), generator=generator)) * 3.5 - 2)
    return p


def drawn_parts(*, quick: bool) -> list[Part]:
    """A part per candidate."""
    tasks, shrink = (3, 10) if quick else (TASKS, 1)
    candidates = CANDIDATES[:3] if quick else CANDIDATES
    return [
        Part(
            f"drawn/{tasks}/{candidate.title}",
            {
                "numbers": None if candidate.rule is None else numbers_of(candidate.rule),
                **{"falling": candidate.falling, "constant": candidate.constant, "shrink": shrink},
            },
            partial(measured, candidate, tasks, shrink),
            float(tasks),
        )
        for candidate in candidates
    ]


def measured(candidate: Candidate, tasks: int, shrink: int, advance: Advance = lambda _: None) -> Record:
    """Per task and schedule the final training losses, one for every rate."""
    found: Record = {}
    for seed in range(tasks):
        task = draw_task(seed)
        found[task.title] = {}
        for schedule, name in HOW.items():
            if not (rates := getattr(candidate, name)):
                continue
            stepper, steps = candidate.stepper(task.inner, rates, schedule), task.steps // shrink
            run = train(DrawnStarts(task), stepper, steps, repeats=len(rates))
            losses = train_loss(task.inner, run.params[steps], 1024).tolist()
            found[task.title][schedule] = [loss if math.isfinite(loss) else None for loss in losses]
        advance(1.0)
    return found


def drawn_table(records: Records) -> str:
    """Markdown of the records of drawn tasks; empty without those of AdamW, Muon and ``unf-small``."""
    found = {key.split("/", 2)[2]: record for key, record in records.items() if key.startswith("drawn/")}
    if not {ADAMW.title, MUON.title, SHIPPED.title} <= set(found):
        return ""
    rivals = {
        "AdamW, .001 constant": _losses(found[ADAMW.title], "constant", (0.001,)),
        "AdamW, best of 4 rates": _losses(found[ADAMW.title], "cosine", ADAMW.falling),
        "Muon, best of 4 rates": _losses(found[MUON.title], "cosine", RATES),
        "`unf-small`, best of 4 rates": _losses(found[SHIPPED.title], "cosine", RATES),
    }
    order, rows = [candidate.title for candidate in CANDIDATES], []
    for title in sorted(found, key=lambda title: order.index(title) if title in order else len(order)):
        record = found[title]
        identity = record["identity"]
        ways = {f"{rate:g} {how}": (how, (rate,)) for how in HOW for rate in identity[HOW[how]]}
        if set(RATES) <= set(identity[HOW["cosine"]]):
            ways["best of 4 rates"] = ("cosine", RATES)
        for way, (how, chosen) in ways.items():
            losses = _losses(record, how, chosen)
            rows.append([f"{title}, {way}", *(_against(losses, rival) for rival in rivals.values())])
    return table(["", *rivals], rows)


def losses_at(rates: Sequence[float], tasks: Record, how: str, chosen: Sequence[float]) -> list[float]:
    """Of every task, at the best of some of the rates that were measured."""
    places = [list(rates).index(rate) for rate in chosen]
    many = [[task[how][place] for place in places] for task in tasks.values()]
    return [min(math.inf if loss is None else loss for loss in losses) for losses in many]


def _losses(record: Record, how: str, chosen: Sequence[float]) -> list[float]:
    return losses_at(record["identity"][HOW[how]], record["result"], how, chosen)


def log_ratios(losses: Sequence[float], rival: Sequence[float]) -> list[float]:
    """Of losses on the same tasks; those below ``SMALLEST`` are equal, and outliers are cut at ``CLIP``."""

    def log(loss: float) -> float:
        return math.log(min(max(loss, SMALLEST), 1 / SMALLEST))

    return [
        max(-CLIP, min(CLIP, log(ours) - log(theirs))) for ours, theirs in zip(losses, rival, strict=True)
    ]


def _against(losses: list[float], rival: list[float]) -> str:
    """On how many tasks they are lower, and the mean logarithm of the ratio with its interval."""
    both = zip(losses, rival, strict=True)
    lower = sum(ours < theirs or ours <= SMALLEST for ours, theirs in both)
    return f"{lower}: {plus_minus(summary([log_ratios(losses, rival)]), 2, sign='+')}"
