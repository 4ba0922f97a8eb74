"""What a step of a fleet draws: reads and judges apart, of one problem, widened only where asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from amortopt.meta.one_pass.data import Batch
from amortopt.meta.one_pass.fleet_data import FleetDataModule
from amortopt.tasks import ModuleFamily, register_network
from amortopt.tasks.problem_families import Arrays

CLASSES = 3


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, CLASSES))


def fleet(count: int = 10) -> Arrays:
    """Every input says what it is: problem, example, class and 1; problem k has 12 + k examples to read."""
    problems = []
    for k in range(count):
        parts = []
        for first, size in ((0, 12 + k), (100, 9)):
            y = torch.arange(size) % CLASSES
            columns = (torch.full((size,), float(k)), torch.arange(first, first + size), y, torch.ones(size))
            parts += [torch.stack([column.float() for column in columns], 1), y]
        problems.append(tuple(parts))
    return Arrays(problems, val=0.1, test=0.1)


def loaded(**settings: Any) -> FleetDataModule:
    data = FleetDataModule(fleet(), **{"networks": 40, "read": (3, 12), "examples": 6} | settings)
    data.load(ModuleFamily(register_network(net), (4,)))
    return data


def rows(batch: Batch, b: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs and labels that network b reads and is judged by, without padding."""
    found = []
    for part in (batch.read, batch.examples):
        valid = torch.ones(part.x.shape[1], dtype=torch.bool) if part.mask is None else part.mask[b]
        found += [part.x[b][valid], part.y[b][valid]]
    return tuple(found)  # type: ignore[return-value]


def test_draw_is_a_function_of_seed_step_and_rank() -> None:
    data = loaded(mix_classes=0.5, permute_classes=True)
    batch = loaded(mix_classes=0.5, permute_classes=True).draw(3, 1)
    data.draw(7)
    again = data.draw(3, 1)
    assert torch.equal(again.read.x, batch.read.x) and torch.equal(again.examples.y, batch.examples.y)
    for other in (data.draw(4, 1), data.draw(3, 0)):
        assert other.read.x.shape != batch.read.x.shape or not torch.equal(other.read.x, batch.read.x)


def test_draw_reads_and_judges_different_examples_of_one_problem() -> None:
    data = loaded()
    both = set()
    for step in range(20):
        batch = data.draw(step)
        for b in range(40):
            x, y, judged, labels = rows(batch, b)
            assert len(x) and len(judged)
            assert len({*x[:, 0].tolist(), *judged[:, 0].tolist()}) == 1
            places = x[:, 1].tolist() + judged[:, 1].tolist()
            assert len(set(places)) == len(places)
            assert torch.equal(x[:, 2].long(), y) and torch.equal(judged[:, 2].long(), labels)
            both |= {("read", place >= 100) for place in x[:, 1].tolist()}
            both |= {("judged", place >= 100) for place in judged[:, 1].tolist()}
    # All examples of a problem are one pool.
    assert len(both) == 4


def test_held_out_problems_are_never_drawn_and_are_read_as_given() -> None:
    data = loaded()
    held = {float(part.read.x[k, 0, 0]) for part in (data.validation(), data.testing()) for k in range(1)}
    drawn = {float(k) for step in range(20) for k in data.draw(step).read.x[:, 0, 0]}
    assert len(held) == 2 and len(drawn) == 8 and not held & drawn
    assert bool((data.testing().read.x[..., 1] < 100).all())
    assert bool((data.testing().data["test"].x[..., 1] >= 100).all())


def test_permuted_classes_are_one_order_for_what_is_read_and_judged() -> None:
    batch = loaded(permute_classes=True).draw(0)
    orders = set()
    for b in range(40):
        x, y, judged, labels = rows(batch, b)
        seen = {*zip(x[:, 2].tolist(), y.tolist()), *zip(judged[:, 2].tolist(), labels.tolist())}  # noqa: B905
        assert len(seen) == len(dict(seen)) == len({label for _, label in seen})
        orders.add(tuple(sorted(seen)))
    assert len(orders) > 3


def test_mixed_problems_take_every_class_from_one_problem() -> None:
    batch = loaded(mix_classes=0.5).draw(1)
    several = 0
    for b in range(40):
        x, y, judged, labels = rows(batch, b)
        inputs, targets = torch.cat([x, judged]), torch.cat([y, labels])
        sources = {(int(t), *row) for t, row in zip(targets, inputs[:, [0, 2]].tolist(), strict=True)}
        assert len(sources) == len({label for label, *_ in sources}), "a label has one problem and class"
        assert len({tuple(source) for _, *source in sources}) == len(sources), "and no other label has it"
        assert len({tuple(row) for row in inputs[:, :2].tolist()}) == len(inputs), "no example twice"
        mixed = len({k for _, k, _ in sources}) > 1
        several += mixed
        assert b < 20 or not mixed
    assert several > 10


def test_padding_is_masked_and_never_read() -> None:
    data = loaded(read=(20, 20), mix_classes=0.5)
    batch = data.draw(0)
    assert batch.read.mask is not None and not bool(batch.read.mask.all())
    for b in range(40):
        x, _, judged, _ = rows(batch, b)
        assert bool((x[:, 3] == 1).all()) and bool((judged[:, 3] == 1).all())


def test_few_examples_are_divided() -> None:
    x, y = torch.randn(2, 4), torch.tensor([0, 1])
    data = FleetDataModule(Arrays([(x[:1], y[:1], x[1:], y[1:])] * 5), networks=4)
    data.load(ModuleFamily(register_network(lambda: nn.Linear(4, 2)), (4,)))
    batch = data.draw(0)
    assert batch.read.x.shape[1] == 1 and batch.examples.x.shape[1] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"networks": 0}, "networks: got 0"),
        ({"read": (5, 2)}, r"read: got \[5, 2\]"),
        ({"input_noise": -1.0}, "input_noise: got -1.0"),
        ({"mix_classes": 1.5}, "mix_classes: got 1.5"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FleetDataModule(fleet(), **settings)


def test_classes_of_real_targets_cannot_be_permuted() -> None:
    x, y = torch.randn(4, 4), torch.randn(4)
    with pytest.raises(ValueError, match="has not one class for each input"):
        FleetDataModule(Arrays([(x, y, x, y)] * 3), permute_classes=True)
