"""The networks themselves: they run, and nothing about their weights is special."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.cases import ALL_CASES, FAMILY_CASES, Case
from tests.networks.bad import BAD, ODD, X


def _tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [tensor for part in parts for tensor in _tensors(part)]  # type: ignore[union-attr]


def test_names_are_unique() -> None:
    assert len({case.name for case in ALL_CASES}) == len(ALL_CASES)


@pytest.mark.parametrize("case", FAMILY_CASES, ids=str)
def test_a_network_is_small_and_runs_in_both_modes(case: Case) -> None:
    net, x = case.build(), case.example_input()
    inputs = x if isinstance(x, tuple) else (x,)
    assert sum(p.numel() for p in net.parameters()) < 1500
    for training in (True, False):
        assert all(out.isfinite().all() for out in _tensors(net.train(training)(*inputs)))


@pytest.mark.parametrize("case", FAMILY_CASES, ids=str)
def test_no_weight_is_left_at_a_constant(case: Case) -> None:
    net = case.build()
    moved = [*net.named_parameters(), *((n, b) for n, b in net.named_buffers() if "running" in n)]
    assert not [name for name, tensor in moved if tensor.numel() > 1 and tensor.unique().numel() == 1]


@pytest.mark.parametrize("case", FAMILY_CASES, ids=str)
def test_every_parameter_matters(case: Case) -> None:
    """What the output did not depend on could be claimed to move in any way."""
    if case.name == "positions":
        pytest.skip("that is its point")
    net, x = case.build().double().eval(), case.example_input()
    inputs = [t.double() if t.is_floating_point() else t for t in (x if isinstance(x, tuple) else (x,))]
    params = {name: p.requires_grad_() for name, p in net.named_parameters()}
    total = torch.stack([(out * torch.randn_like(out)).sum() for out in _tensors(net(*inputs))]).sum()
    gradients = torch.autograd.grad(total, list(params.values()), allow_unused=True)
    assert not [name for name, g in zip(params, gradients, strict=True) if g is None or not g.abs().max() > 0]


@pytest.mark.parametrize("build", [*BAD.values(), *ODD.values()], ids=[*BAD, *ODD])
def test_bad_modules_do_run_but_for_the_input_that_does_not_fit(build: Callable[[], nn.Module]) -> None:
    net = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(net, nn.Linear) and net.in_features == 5:
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                net(X)
        else:
            net(X)
