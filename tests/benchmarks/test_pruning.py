"""The baselines of the pruning benchmark: masks hold, sparsities are what they are called."""

from __future__ import annotations

import pytest
import torch

from amortopt.functional.networks import apply_many
from amortopt.training import Stepper
from benchmarks.one_shot.baselines import Setting
from benchmarks.pruning.run import L1, SPARSITY, cell_of, fleets
from benchmarks.pruning.training import Masked, iterative, masks_of, pruned, trained, zeros


def test_masked_steps_leave_zeros_where_they_are() -> None:
    params = {"w": torch.randn(3, 4, 5), "b": torch.randn(3, 4)}
    masks = {"w": torch.rand(3, 4, 5) < 0.5}
    params["w"] *= masks["w"]
    before = {name: p.clone() for name, p in params.items()}
    stepper = Masked(Stepper("sgd", torch.tensor([0.1, 0.2, 0.3])), masks)
    some = stepper.of(torch.tensor([2, 0]))
    assert torch.equal(some.masks["w"], masks["w"][[2, 0]])
    grads = {name: torch.ones_like(p) for name, p in params.items()}
    stepper.step(params, grads, stepper.start(params))
    assert bool((params["w"][~masks["w"]] == 0).all())
    assert bool((params["w"][masks["w"]] != before["w"][masks["w"]]).all())
    assert bool((params["b"] != before["b"]).all())


def test_pruned_networks_have_the_sparsity() -> None:
    params = {"w": torch.randn(3, 10, 10), "b": torch.randn(3, 10)}
    torch.testing.assert_close(zeros(pruned(params, 0.8)), torch.full((3,), 0.8).double())
    assert torch.equal(pruned(params, 0.8)["b"], params["b"])


@pytest.mark.parametrize("l1", [0.0, 0.01])
def test_iterative_pruning_ends_at_the_sparsity_and_l1_training_does_not_lose_it(l1: float) -> None:
    cell = cell_of(True)
    _, test = fleets(cell, 200)
    setting = Setting("sgd", 0.05, 0.0, l1, proximal=l1 > 0)
    sparse = iterative(cell, test, test.start, setting, SPARSITY, 1)
    assert bool((zeros(sparse) >= SPARSITY - 1e-3).all())
    again = trained(cell, test, sparse, setting, 1, masks_of(sparse, SPARSITY))
    assert bool((zeros(again) >= SPARSITY - 1e-3).all())


def test_pretrained_fleets_have_one_function_and_the_same_examples() -> None:
    cell = cell_of(True)
    for usual, pretrained in zip(fleets(cell, 200), fleets(cell, 200, L1), strict=True):
        assert torch.equal(usual.read.x, pretrained.read.x)
        answers = apply_many(cell.module, pretrained.start, usual.read.x[0, :5])
        torch.testing.assert_close(answers, answers[:1].expand_as(answers), rtol=1e-4, atol=1e-4)
        assert any(not torch.equal(p, usual.start[name]) for name, p in pretrained.start.items())
