"""Problems, base networks and seeds that optimizers are compared on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

from amortopt.meta.rule.inner import InnerProblem
from amortopt.tasks import make_family, make_problem
from amortopt.training import Schedule

Kind: TypeAlias = Literal["known", "width", "problem"]


@dataclass(frozen=True)
class Setting:
    """A problem with base networks.

    Attributes:
        label: Short name.
        problem: Arguments of ``make_problem``.
        family: Arguments of ``make_family``.
        batch: Examples per step.
        kind: Whether it is one of the four ``known`` tasks, or another width or problem.
        near: Label of the known setting that resembles it most; its learning rates are where tuning starts.
    """

    label: str
    problem: Mapping[str, Any]
    family: Mapping[str, Any]
    batch: int
    kind: Kind = "known"
    near: str = ""

    @cached_property
    def inner(self) -> InnerProblem:
        """Its base networks, vectorised."""
        return InnerProblem(make_problem(**self.problem), make_family(**self.family), self.batch)

    @property
    def identity(self) -> dict[str, Any]:
        """What its numbers depend on."""
        inner = self.inner
        return {"problem": inner.problem.to_config(), "family": inner.family.to_config(), "batch": self.batch}

    @property
    def about(self) -> str:
        """One line for people."""
        texts = []
        for config in (self.identity["family"], self.identity["problem"]):
            items = {key: value for key, value in config.items() if key != "name" and value not in ("", [])}
            texts.append(", ".join([f"`{config['name']}`", *(f"{key} {v}" for key, v in items.items())]))
        return f"{texts[0]}; on {texts[1]}; batch {self.batch}"

    def widened(self, label: str, **family: Any) -> Setting:
        """The same with other base networks."""
        return replace(self, label=label, family={**self.family, **family}, kind="width", near=self.label)


HORIZON = 500
"""Steps T."""
LONGER = 4
"""The known tasks are also run for this multiple of the horizon."""

TEXT = {"name": "pydoc_text", "length": 32}
KNOWN = (
    Setting(
        "mlp", {"name": "mnist1d"}, {"name": "mlp", "activation": "relu", "widths": [40, 32, 32, 10]}, 64
    ),
    Setting("cnn", {"name": "digits"}, {"name": "cnn", "activation": "relu", "input_shape": [1, 16, 16]}, 32),
    Setting("char_rnn", TEXT, {"name": "char_rnn", "embedding": 32, "hidden": 64}, 8),
    Setting("transformer", TEXT, {"name": "transformer", "width": 32, "heads": 4, "blocks": 2}, 8),
)
MLP, CNN, RNN, TRANSFORMER = KNOWN
DIGITS_MLP = {"name": "mlp", "activation": "gelu", "widths": (256, 32, 32, 10), "input_shape": (1, 16, 16)}
MNIST1D_CNN = {"name": "cnn", "activation": "tanh", "channels": (16, 16, 16), "input_shape": (1, 40)}
UNSEEN = (
    MLP.widened("mlp-16", widths=(40, 16, 16, 10)),
    MLP.widened("mlp-64", widths=(40, 64, 64, 10)),
    CNN.widened("cnn-32", channels=(32, 32, 32)),
    RNN.widened("char_rnn-128", hidden=128),
    TRANSFORMER.widened("transformer-64", width=64),
    Setting("mlp-digits", {"name": "digits"}, DIGITS_MLP, 32, "problem", "mlp"),
    Setting("cnn-mnist1d", {"name": "mnist1d", "channel_axis": True}, MNIST1D_CNN, 32, "problem", "cnn"),
)
SETTINGS = {setting.label: setting for setting in (*KNOWN, *UNSEEN)}


@dataclass(frozen=True)
class Plan:
    """How much is measured, with the full plan as default.

    Attributes:
        test_seeds: Initialisations of the numbers.
        tuning_seeds: Others, by which settings of the baselines are chosen.
        finalists: Candidates of every optimizer that are tried on ``final_seeds`` more initialisations.
        final_seeds: More initialisations for the finalists.
        schedules: Schedules that are tried; where something better is known, only that.
        fine: Whether a grid of quarter-decades follows around the best of the half-decades.
        screen: Examples of the train split by which candidates are compared.
        decays: Weight decays of AdamW that are tried.
        stretch: Steps that a point of a curve is the mean of.
        baselines: Optimizers; AdamW follows Adam.
        longer: Whether runs of ``LONGER`` horizons are measured as well.
    """

    test_seeds: int = 5
    tuning_seeds: int = 2
    finalists: int = 3
    final_seeds: int = 6
    schedules: tuple[Schedule, ...] = ("cosine", "warmup", "constant")
    fine: bool = True
    screen: int = 1024
    decays: tuple[float, ...] = (0.01, 0.1)
    stretch: int = 10
    baselines: tuple[str, ...] = ("sgd", "adam", "adamw")
    longer: bool = True

    @property
    def identity(self) -> dict[str, Any]:
        """What the numbers of a baseline depend on."""
        return {key: value for key, value in asdict(self).items() if key not in ("baselines", "longer")}

    def coarse(self, schedule: Schedule) -> Plan:
        """For unseen settings and longer runs: half-decades around what is best elsewhere, its schedule."""
        return replace(self, finalists=0, final_seeds=0, schedules=(schedule,), fine=False)


QUICK = Plan(
    test_seeds=3, tuning_seeds=1, screen=512, baselines=("sgd", "adam"), longer=False,
).coarse("warmup")  # fmt: skip
"""Little of everything."""
QUICK_SETTINGS = ("mlp", "cnn", "char_rnn", "mlp-64", "mlp-digits")
"""Those that are measured in a quick run: without transformers, which take as long as all others."""
