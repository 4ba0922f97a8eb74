"""What every family of problems promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from amortopt.tasks.problem import SPLITS
from amortopt.tasks.problem_families import Curves, GeneratedFamily, Glyphs, Images, make_problem_family

FAMILIES: list[GeneratedFamily] = [Curves(), Curves(seed=3, channel_axis=True, noise=2.0), Glyphs(seed=1)]


@pytest.fixture(params=[*FAMILIES, Images(side=8)], ids=repr)
def family(request: pytest.FixtureRequest) -> GeneratedFamily:
    return request.param


def test_family_draws_the_same_problems_again(family: GeneratedFamily) -> None:
    first, second = family.draw("train", 5, 3, 20, 10), family.draw("train", 5, 3, 20, 10)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


def test_family_draws_a_problem_wherever_a_range_begins(family: GeneratedFamily) -> None:
    size = family.BLOCK
    many, one = family.draw("val", size - 2, 5, 12, 6), family.draw("val", size + 1, 1, 12, 6)
    for a, b in zip(many, one, strict=True):
        assert torch.equal(a.x[3:4], b.x) and torch.equal(a.y[3:4], b.y)


def test_family_shares_no_problem_between_parts(family: GeneratedFamily) -> None:
    drawn = [family.draw(which, 0, 2, 30, 30)[0].y if isinstance(family, Images) else
             family.draw(which, 0, 2, 30, 30)[0].x for which in SPLITS]  # fmt: skip
    assert not any(torch.equal(a, b) for k, a in enumerate(drawn) for b in drawn[:k])


def test_family_draws_its_shapes_and_targets(family: GeneratedFamily) -> None:
    read, judged = family.draw("test", 0, 2, 20, 40)
    for examples, count in ((read, 20), (judged, 40)):
        assert examples.x.shape == (2, count, *family.input_shape) and not examples.shared
        assert examples.y.shape == (2, count, *family.objective.target_shape)
        assert bool(examples.x.isfinite().all())
        family.objective.check_targets(examples.y, "y")


def test_family_config_makes_the_same_family(family: GeneratedFamily) -> None:
    again = make_problem_family(**family.to_config())
    assert repr(again) == repr(family)
    assert torch.equal(again.draw("train", 0, 1, 8, 8)[0].x, family.draw("train", 0, 1, 8, 8)[0].x)


@pytest.mark.parametrize("numbers", [(-1, 1, 1, 1), (0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0)])
def test_family_refuses_numbers_that_ask_for_nothing(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        Curves().draw("train", *numbers)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("curve", {}, "unknown problem family 'curve'"),
        ("curves", {"sed": 1}, "sed: problem family 'curves' has no such argument"),
        ("curves", {"seed": -1}, "seed: got -1"),
        ("curves", {"noise": -1.0}, "noise: got -1.0"),
        ("curves", {"shift": 0}, "shift: got 0"),
        ("images", {"side": 2}, "side: got 2"),
    ],
)
def test_bad_arguments_of_a_family_are_named(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_problem_family(name, **arguments)


def test_classes_are_balanced() -> None:
    read, judged = Curves().draw("train", 0, 2, 150, 50)
    y = torch.cat([read.y, judged.y], 1)
    assert torch.equal(torch.bincount(y[0], minlength=10), torch.full((10,), 20))
