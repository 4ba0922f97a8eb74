"""Fingerprints: equal only where two networks compute the same apart from their weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amortopt.optim import networks as structure
from amortopt.optim.networks import fingerprint
from tests.cases import CASES, Case
from tests.optim.metanets import TANH, optimizer


class Net(nn.Module):
    """A network with one attribute of any kind."""

    def __init__(self, attribute: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.attribute = attribute

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Slotted(nn.Module):
    __slots__ = ("hidden",)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fingerprint_is_equal_for_two_networks_of_a_case(case: Case) -> None:
    assert fingerprint(case.build()) == fingerprint(case.build())


def test_fingerprint_is_different_for_every_two_cases() -> None:
    networks = [case.build() for case in CASES]
    assert len({fingerprint(network) for network in networks}) == len(networks)


SAME: dict[str, Callable[[], Any]] = {
    "number": lambda: 3,
    "text": lambda: "tanh",
    "function": lambda: torch.tanh,
    "containers": lambda: {"a": [1, (2.5, None)], "b": {3}},
    "module": lambda: [nn.Tanh()],
}
DIFFERENT: dict[str, tuple[Any, Any]] = {
    "number": (3, 4),
    "kind of number": (1, True),
    "text": ("tanh", "relu"),
    "function": (torch.tanh, torch.relu),
    "partial": (functools.partial(torch.clamp, min=0), functools.partial(torch.clamp, min=0)),
    "order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "nested": ([1, [2, {"k": 3}]], [1, [2, {"k": 4}]]),
    "module": (nn.Tanh(), nn.ReLU()),
    "module's setting": (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
    "hidden module": ([nn.LeakyReLU(0.1)], [nn.LeakyReLU(0.2)]),
    "plain tensor": (torch.ones(2), torch.ones(2)),
    "parameter's shape": (nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))),
    "slots": (Slotted(), Slotted()),
    "sharing": ([[], []], [*[[]] * 2]),
}


@pytest.mark.parametrize("name", SAME)
def test_fingerprint_of_equal_attributes_is_equal(name: str) -> None:
    one, two = Net(SAME[name]()), Net(SAME[name]())
    assert fingerprint(one) == fingerprint(two)


@pytest.mark.parametrize("name", DIFFERENT)
def test_fingerprint_of_other_attributes_differs(name: str) -> None:
    one, two = (Net(value) for value in DIFFERENT[name])
    assert fingerprint(one) != fingerprint(two)


def test_fingerprint_sees_an_instances_own_forward_and_hooks() -> None:
    plain, patched, hooked = Net(0), Net(0), Net(0)
    patched.forward = lambda x: x  # type: ignore[method-assign]
    hooked.register_forward_hook(lambda module, args, output: output.abs())
    assert len({fingerprint(net) for net in (plain, patched, hooked)}) == 3


def test_fingerprint_of_a_cycle_ends() -> None:
    one, two = Net([]), Net([])
    one.attribute.append(one)
    two.attribute.append(two)
    assert fingerprint(one) == fingerprint(two)


def test_one_shot_traces_equal_networks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []
    extract = structure.extract

    def counted(*args: Any) -> Any:
        traced.append(args)
        return extract(*args)

    monkeypatch.setattr(structure, "extract", counted)
    optimizer().one_shot([TANH.build() for _ in range(4)])
    assert len(traced) == 1
