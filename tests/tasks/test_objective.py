"""Losses and scores: against PyTorch's, one network at a time, and with padding."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from amortopt.tasks import CrossEntropy, Mean, Objective, SquaredError, make_objective

OBJECTIVES = {
    "classes": CrossEntropy(5),
    "classes per position": CrossEntropy(5, (4,)),
    "squared error": SquaredError((2, 3)),
    "squared error of numbers": SquaredError(()),
    "psnr": SquaredError((2,), "psnr", peak=2.0),
    "mean": Mean(),
}
every = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def drawn(objective: Objective, lead: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Outputs [lead, 7, ...] and targets of as many axes."""
    outputs = torch.randn(*lead, 7, *objective.output_shape, generator=generator, dtype=torch.float64)
    shape = (*lead, 7, *objective.target_shape)
    if isinstance(objective, CrossEntropy):
        return outputs, torch.randint(5, shape, generator=generator)
    return outputs, torch.randn(shape, generator=generator, dtype=torch.float64)


def test_cross_entropy_is_pytorchs(generator: torch.Generator) -> None:
    objective = CrossEntropy(5, (4,))
    outputs, y = drawn(objective, (), generator)
    expected = F.cross_entropy(outputs.flatten(0, 1), y.flatten())
    torch.testing.assert_close(objective.loss(outputs, y), expected)


def test_cross_entropy_score_counts_hits() -> None:
    y = torch.tensor([0, 1, 2, 3])
    logits = F.one_hot(torch.tensor([[0, 1, 2, 3], [0, 1, 0, 0]]), 10).float()
    assert CrossEntropy(10).score(logits, y).tolist() == [1.0, 0.5]
    assert CrossEntropy(10, (4,)).score(logits[:, None], y[None]).tolist() == [1.0, 0.5]


def test_squared_error_is_pytorchs(generator: torch.Generator) -> None:
    outputs, y = drawn(SquaredError((2, 3)), (), generator)
    error = F.mse_loss(outputs, y)
    torch.testing.assert_close(SquaredError((2, 3)).loss(outputs, y), error)
    psnr = SquaredError((2, 3), "psnr", peak=2.0).score(outputs, y)
    assert psnr.item() == pytest.approx(10 * math.log10(4 / error.item()))
    variance = (y - y.mean(0)).square().mean()
    torch.testing.assert_close(SquaredError((2, 3)).score(outputs, y), 1 - error / variance)


def test_squared_error_of_the_mean_has_no_r2(generator: torch.Generator) -> None:
    _, y = drawn(SquaredError((2, 3)), (), generator)
    assert SquaredError((2, 3)).score(y.mean(0).expand_as(y), y).item() == pytest.approx(0, abs=1e-12)
    assert SquaredError((2, 3)).score(y, y).item() == 1


def test_mean_is_the_networks_outputs() -> None:
    outputs = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    assert Mean().loss(outputs, torch.zeros(2)).tolist() == [1.5, 4.0]
    assert Mean().score(outputs, torch.zeros(2)).tolist() == [-1.5, -4.0]


@every
def test_objective_of_many_networks_is_each_ones(objective: Objective, generator: torch.Generator) -> None:
    outputs, y = drawn(objective, (3, 2), generator)
    for measure in (objective.loss, objective.score):
        each = torch.stack([torch.stack([measure(o, y[0, 0]) for o in row]) for row in outputs])
        torch.testing.assert_close(measure(outputs, y[0, 0]), each)
        own = torch.stack([measure(outputs[a, b], y[a, b]) for a in range(3) for b in range(2)])
        torch.testing.assert_close(measure(outputs, y).flatten(), own)
        torch.testing.assert_close(torch.func.vmap(measure)(outputs, y), measure(outputs, y))


@every
def test_objective_with_padding_is_that_without(objective: Objective, generator: torch.Generator) -> None:
    outputs, y = drawn(objective, (2,), generator)
    sizes = (7, 4)
    mask = torch.arange(7) < torch.tensor(sizes)[:, None]
    outputs[1, 4:] = 1e6
    outputs.requires_grad_()
    for measure in (objective.loss, objective.score):
        expected = torch.stack([measure(outputs[b, :n], y[b, :n]) for b, n in enumerate(sizes)])
        torch.testing.assert_close(measure(outputs, y, mask), expected, rtol=1e-12, atol=1e-14)
    (grad,) = torch.autograd.grad(objective.loss(outputs, y, mask).sum(), outputs)
    assert not grad[1, 4:].any() and grad[1, :4].any()


def test_objective_without_any_example_is_zero() -> None:
    assert SquaredError().loss(torch.ones(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.bool)) == 0


@every
def test_objective_config_is_json_and_makes_the_same(objective: Objective) -> None:
    assert make_objective(**json.loads(json.dumps(objective.to_config()))) == objective


@every
def test_objective_refuses_other_shapes(objective: Objective, generator: torch.Generator) -> None:
    outputs, y = drawn(objective, (3,), generator)
    with pytest.raises(ValueError, match=r"targets: got \(.*\), expected \("):
        objective.loss(outputs, y[:, 1:])
    if objective.output_shape:
        with pytest.raises(ValueError, match=r"outputs: got \(.*change the network's last layer"):
            objective.loss(outputs[..., 1:], y)


def test_objective_refuses_targets_that_broadcast() -> None:
    with pytest.raises(ValueError, match=r"targets: got \(7,\), expected \(7, 1\)"):
        SquaredError().loss(torch.zeros(7, 1), torch.zeros(7))


@pytest.mark.parametrize(
    "objective, y, message",
    [
        (CrossEntropy(3), torch.zeros(2), "batch: got y of torch.float32, expected class indices"),
        (CrossEntropy(3), torch.tensor([0, 3]), "batch: got labels from 0 to 3 in y, expected .* 0 to 2"),
        (SquaredError(), torch.zeros(2, 1, dtype=torch.int64), "batch: got y of torch.int64, expected real"),
        (SquaredError(), torch.full((2, 1), math.nan), "batch: y has NaN or infinite values"),
    ],
)
def test_objective_refuses_targets_of_another_kind(objective: Objective, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective.check_targets(y, "batch")


@pytest.mark.parametrize(
    "config, message",
    [
        (
            {"name": "hinge"},
            "unknown objective 'hinge', expected one of cross_entropy, mean, soft_cross_entropy, ",
        ),
        ({"name": "mean", "classes": 3}, "classes: objective 'mean' has no such argument"),
        ({"name": "cross_entropy", "num_classes": 0}, "num_classes: got 0"),
        ({"name": "squared_error", "score_kind": "mae"}, "score_kind: got 'mae', expected r2 or psnr"),
        ({"name": "squared_error", "peak": 0}, "peak: got 0"),
    ],
)
def test_make_objective_refuses_what_does_not_fit(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_objective(**config)
