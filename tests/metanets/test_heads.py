"""Heads: losses against the formulas, and targets that cannot be."""

from __future__ import annotations

import pytest
import torch

from amortopt.metanets.heads import Classes, Regression, make_head


def test_regression_interval_loss_is_smallest_at_the_target() -> None:
    head = Regression(low=-1.0, high=3.0)
    target = torch.tensor([0.0, 2.5])
    raw = torch.special.logit((target + 1) / 4)[:, None].requires_grad_()
    torch.testing.assert_close(head(raw)[:, 0], target)
    (grad,) = torch.autograd.grad(head.loss(raw, target), raw)
    assert grad.abs().max() < 1e-6


def test_regression_without_an_interval_is_in_units_of_the_targets() -> None:
    head = Regression(2)
    target = torch.tensor([[1.0, 100.0], [3.0, 300.0]])
    head.observe(target)
    torch.testing.assert_close(head(torch.zeros(1, 2)), torch.tensor([[2.0, 200.0]]))
    torch.testing.assert_close(head.loss(torch.zeros(2, 2), target), torch.tensor(1.0))


def test_classes_knows_what_it_saw() -> None:
    head = Classes(4)
    with pytest.raises(ValueError, match=r"classes: got 0, which no network .* none: it is untrained"):
        head.probabilities(torch.zeros(1, 4), [0])
    head.observe(torch.tensor([0, 2, 2]))
    torch.testing.assert_close(head.probabilities(torch.zeros(1, 4), [2, 0]), torch.full((1, 2), 0.25))
    with pytest.raises(ValueError, match=r"classes: got 3, which no network had .* it knows 0, 2"):
        head.probabilities(torch.zeros(1, 4), [3])
    with pytest.raises(ValueError, match="classes: got 9"):
        head.probabilities(torch.zeros(1, 4), [9])
    with pytest.raises(ValueError, match=r"classes: got 0\.5"):
        head.probabilities(torch.zeros(1, 4), [0.5])  # type: ignore[list-item]


def test_classes_seen_is_in_the_state() -> None:
    head, other = Classes(4), Classes(4)
    head.observe(torch.tensor([0, 2]))
    other.load_state_dict(head.state_dict())
    assert other.seen.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("head", "target", "message"),
    [
        (Classes(3), torch.tensor([1, 1]), r"labels: all 2 networks have class \[1\]"),
        (Classes(3), torch.tensor([0, 3]), "labels: got 0 to 3, expected 0 to 2: the head has 3 classes"),
        (Classes(3), torch.tensor([0.0, 1.0]), "labels: got torch.float32, expected whole numbers"),
        (Regression(), torch.tensor([0.5, 0.5]), r"targets: all 2 are \[0.5\], expected numbers that differ"),
        (Regression(), torch.tensor([0.5, torch.nan]), "targets: got NaN or infinite"),
        (
            Regression(low=0.0, high=1.0),
            torch.tensor([0.5, 1.5]),
            r"targets: got 0.5 to 1.5, expected numbers in the head's interval \[0, 1\]",
        ),
        (Regression(), torch.zeros(0), "targets: got none"),
    ],
)
def test_observe_refuses_targets_that_teach_nothing(
    head: Classes, target: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        head.observe(target)


def test_loss_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"target: got shape \(3,\), expected \(2,\) for 2 networks"):
        Classes(3).loss(torch.zeros(2, 3), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"target: got shape \(3, 2\), expected \(3, 1\)"):
        Regression().loss(torch.zeros(3, 1), torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "classes", "count": 1}, "head.count: got 1"),
        ({"name": "classes", "count": 3, "smoothing": 1.0}, "head.smoothing: got 1.0"),
        ({"name": "regression", "low": 1.0, "high": 0.0}, "head.low, head.high: got 1.0 and 0.0"),
        ({"name": "regression", "low": 1.0}, "head.low, head.high: got 1.0 and None"),
        ({"name": "regression", "outputs": 0}, "head.outputs: got 0"),
        ({"name": "regression", "output": 2}, "output: head 'regression' has no such argument"),
    ],
)
def test_make_head_refuses_what_is_out_of_range(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_head(config)
