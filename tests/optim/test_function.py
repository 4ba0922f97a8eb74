"""Passes that read what the network itself answers, alone or beside a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from amortopt.functional.networks import params_of
from amortopt.metanets import Conditions, Rounds, make
from amortopt.optim import ScaleGMNOptimizer
from amortopt.tasks import CrossEntropy, answers_many, loss_and_grad_many, make_problem_family
from tests.optim.metanets import SPEC, TANH, optimizer

CURVES = make_problem_family("curves")
READ = CURVES.draw("test", 0, 1, 20, 1)[0]
BATCH = (READ.x[0], READ.y[0])


def reader(*conditions: str) -> ScaleGMNOptimizer:
    torch.manual_seed(0)
    shapes = {name: list(p.shape) for name, p in TANH.build().named_parameters()}
    metanet = make(
        "rounds", SPEC, shapes=shapes, rounds=2, channels=2, hidden=4,
        conditions=conditions, probes=8, input_shape=[40],
    )  # fmt: skip
    if "function" in conditions:
        metanet.probes.normal_()
        for name, p in metanet.named_parameters():
            if "rules.function" in name or "rules.both" in name:
                p.data.add_(0.01 * torch.randn_like(p))  # so that readings differ
    return ScaleGMNOptimizer(metanet, family=TANH, problem=CURVES.to_config(), name="reader")


def expected(opt: ScaleGMNOptimizer, model: nn.Module, *, batch: bool, function: bool) -> dict[str, Any]:
    """The pass by hand, of one network."""
    assert isinstance(opt.metanet, Rounds) and opt.metanet.probes is not None
    params = {name: p[None] for name, p in params_of(model).items()}
    answers = answers_many(model, params, opt.metanet.probes)
    objective = CrossEntropy(10)

    def by_batch(at: Any) -> Any:
        return loss_and_grad_many(model, at, READ, objective)[1]

    def by_function(at: Any) -> Any:
        return loss_and_grad_many(model, at, answers, objective.matching())[1]

    conditions = Conditions(
        by_batch if batch else None,
        None,
        torch.full((1,), 20.0) if batch else None,
        by_function if function else None,
    )
    with torch.no_grad():
        return {name: p[0] for name, p in opt.metanet(params, conditions).items()}


@pytest.mark.parametrize(
    ("arguments", "reads"),
    [
        ({}, {"batch": False, "function": True}),
        ({"batch": BATCH}, {"batch": True, "function": False}),
        ({"batch": BATCH, "function": False}, {"batch": True, "function": False}),
        ({"batch": BATCH, "function": True}, {"batch": True, "function": True}),
    ],
    ids=["neither", "batch", "batch alone", "both"],
)
def test_one_shot_reads_what_is_asked_for(arguments: dict[str, Any], reads: dict[str, bool]) -> None:
    opt = reader("batch", "function")
    models = [TANH.build() for _ in range(3)]
    for model, better in zip(models, opt.one_shot(models, **arguments), strict=True):
        torch.testing.assert_close(params_of(better), expected(opt, model, **reads), rtol=1e-4, atol=1e-5)
    alone = opt.one_shot_params(params_of(models[0]), **arguments)
    torch.testing.assert_close(alone, expected(opt, models[0], **reads), rtol=1e-4, atol=1e-5)


def test_one_shot_function_alone_has_a_report_without_losses() -> None:
    _, report = reader("function").one_shot(TANH.build(), return_report=True)
    assert report.networks[0].given is None and report.networks[0].examples == 0


def test_one_shot_function_is_each_networks_own_whatever_its_class() -> None:
    class Other(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    models = [TANH.build() for _ in range(4)]
    mixed = [Other(m) if i % 2 else m for i, m in enumerate(models)]
    opt = reader("function")
    for a, b in zip(opt.one_shot(models), opt.one_shot(mixed), strict=True):
        torch.testing.assert_close(list(params_of(a).values()), list(params_of(b).values()))


REFUSED: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "no function": (("batch",), {"batch": BATCH, "function": True}, "does not read what networks answer"),
    "no batch": (("function",), {"batch": BATCH}, "batch: this checkpoint reads what networks answer"),
    "nothing": (("batch", "function"), {"function": False}, r"nothing to read; pass batch=\(x, y\)"),
    "flag": (("batch", "function"), {"function": "yes"}, "function: got 'yes', expected True, False or None"),
    "holdout": (("batch", "function"), {"accept": "holdout"}, "no batch is read to keep a part of back"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_shot_of_what_is_not_read_is_refused_and_changes_nothing(name: str) -> None:
    conditions, arguments, message = REFUSED[name]
    model = TANH.build()
    before = params_of(model)
    with pytest.raises(ValueError, match=message):
        reader(*conditions).one_shot(model, inplace=True, **arguments)
    torch.testing.assert_close(params_of(model), before, rtol=0, atol=0)


def test_one_shot_function_of_a_metanet_that_reads_weights() -> None:
    with pytest.raises(ValueError, match="function: this checkpoint does not read what networks answer"):
        optimizer().one_shot(TANH.build(), function=True)
