"""Inputs and outputs as users have them, and modules that keep something from one run to the next."""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.symmetry import extract
from amortopt.symmetry.inputs import Inputs, apart, outputs_of
from amortopt.symmetry.proof.running import Runner

X = torch.linspace(-1, 1, 20).view(5, 4)


class Net(nn.Module):
    """A function of a hidden layer's module, an output layer's, and what forward gets."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(4, 6), nn.Linear(6, 2), function

    def hidden(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x))

    def forward(self, x: Any, mask: Tensor | None = None, scale: Any = 1.0, names: Any = ()) -> Any:
        return self.function(self, x, mask, scale, names)


@dataclasses.dataclass
class Record:
    x: Tensor
    label: str = ""


class Thing:
    def __init__(self, x: Any) -> None:
        self.x = x


class Pair(NamedTuple):
    x: Tensor
    n: int


class LayerCache:
    """Keys and values of a decoder, of a class that torch does not know."""

    def __init__(self, keys: Tensor) -> None:
        self.layers = [Thing(keys)]


def _computed(net: Net, x: Any, mask: Tensor | None, scale: Any, names: Any) -> Tensor:
    del names
    if isinstance(x, dict):
        x = x["x"]
    elif isinstance(x, list):
        x = sum(x)
    elif not isinstance(x, Tensor):
        x = x.x
    h = net.hidden(x) if mask is None else net.hidden(x) * mask
    return net.b(h * scale)


INPUTS: dict[str, Any] = {
    "tensor": X,
    "none inside": (X, None, 2.0),
    "number without a dimension": (X, None, torch.tensor(2.0)),
    "whole number": (X, torch.ones(5, 1), 2),
    "keywords": {"x": X, "mask": torch.ones(5, 1), "names": ["a", None, 3]},
    "arguments and keywords": ((X,), {"scale": 3, "mask": None}),
    "keywords only": ((), {"x": X}),
    "list": [X, 2 * X],
    "list in a tuple": ([X, X], None),
    "dict in a tuple": ({"x": X, "id": 3},),
    "dataclass": (Record(X, "one"),),
    "named tuple": Pair(X, 3),
    "object": Thing(X),
}


@pytest.mark.parametrize("name", INPUTS)
def test_example_input_of_any_form_gives_the_same_symmetry(name: str) -> None:
    net = Net(_computed)
    spec = extract(net, INPUTS[name], strict=True)
    assert (spec.group("h1").kind, spec.group("h1").permutable) == ("positive", True)
    assert spec.verify(net, INPUTS[name]).holds


def test_a_dict_that_is_no_keywords_is_the_only_argument() -> None:
    assert Inputs.of({"y": X}, Net(_computed)).args == ({"y": X},)
    assert Inputs.of({"x": X}, Net(_computed)).kwargs == {"x": X}


def test_inputs_with_other_tensors_keep_everything_else() -> None:
    given = Inputs.of((Record(X, "one"), [X, (X, 3)]), Net(_computed))
    other = given.with_tensors([X + 1, X + 2, X + 3])
    assert [float(x[0, 0]) for x in other.tensors] == [0.0, 1.0, 2.0]
    assert other.args[0].label == "one" and other.args[1][1][1] == 3
    assert all(torch.equal(x, X) for x in given.tensors)


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dict": lambda y, h: {"y": y, "n": 3, "none": None},
    "dataclass": lambda y, h: Record(y),
    "named tuple": lambda y, h: Pair(y, 3),
    "object": lambda y, h: Thing([y]),
    "cache beside it": lambda y, h: OrderedDict(logits=y, past_key_values=LayerCache(h)),
    "cache in a tuple": lambda y, h: (y, LayerCache(h)),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_any_form_give_the_same_symmetry(name: str) -> None:
    net = Net(lambda net, x, *_: OUTPUTS[name](net.b(net.hidden(x)), net.hidden(x)))
    spec = extract(net, X, strict=True)
    assert spec.group("h1").permutable and spec.verify(net, X).holds


def test_what_is_no_cache_counts_as_an_output() -> None:
    net = Net(lambda net, x, *_: (net.b(net.hidden(x)), Thing(net.hidden(x))))
    assert not any(group.permutable for group in extract(net, X).groups)
    assert len(outputs_of((X, Thing(X), LayerCache(X)))) == 2 and len(outputs_of(LayerCache(X))) == 1


# What is kept from one run to the next


class Keeping(nn.Module):
    """Stores what it computes from its weights in the first run, in an attribute and in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
        self.turned: Tensor | None = None
        self.store: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.turned is None:
            self.turned = self.a.weight.t() * 1.0
        if "out" not in self.store:
            self.store["out"] = self.b.weight * 1.0
        return F.linear(torch.relu(x @ self.turned + self.a.bias), self.store["out"])


def test_a_module_that_keeps_tensors_is_proved_on_copies() -> None:
    net = Keeping()
    spec = extract(net, X, strict=True)
    proof = spec.verify(net, X, probes=None)
    assert proof.holds and not proof.larger and spec.group("h1").permutable
    assert net.turned is None and not net.store


def test_what_a_module_has_kept_before_stays() -> None:
    net = Keeping()
    net(X)
    kept, stored = net.turned, net.store["out"]
    assert extract(net, X).verify(net, X).holds
    assert net.turned is kept and net.store["out"] is stored and kept is not None
    assert kept.dtype == torch.float32


@functools.cache
def _table(count: int) -> Tensor:
    return torch.arange(1.0, count + 1)[:, None]


def test_a_cache_of_the_process_gets_real_tensors() -> None:
    net = Net(lambda net, x, *_: net.b(net.hidden(x) * _table(5)))
    assert extract(net, X, strict=True).verify(net, X).holds
    assert type(_table(5)) is Tensor and _table(5).dtype == torch.float32


def test_a_copy_shares_the_tensors_of_its_module() -> None:
    net = Keeping()
    other = apart(net)
    assert isinstance(other, Keeping) and other.a.weight is net.a.weight and other.store is not net.store


class Halving(nn.Module):
    """Halves its hidden weights at every call, by an operation that tracing sees or past it."""

    def __init__(self, seen: bool) -> None:
        super().__init__()
        self.a, self.b, self.seen = nn.Linear(4, 6), nn.Linear(6, 2), seen

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            (self.a.weight if self.seen else self.a.weight.data).mul_(0.5)
        return self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_that_a_forward_writes_to_are_left_alone(seen: bool, dtype: torch.dtype) -> None:
    net, x = Halving(seen).to(dtype), X.to(dtype)
    before = copy.deepcopy(net.state_dict())
    if seen:
        assert extract(net, x).verify(net, x).holds
    else:
        with pytest.raises(ValueError, match="comes from outside of torch's operations"):
            extract(net, x)
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())


def test_a_key_that_an_input_lacks_is_named() -> None:
    net = Net(lambda net, x, *_: net.b(net.hidden(x["z"])))
    with pytest.raises(
        ValueError, match=r"\[\{'x': \(5, 4\)\}\]: it asks for the key 'z', which is not there"
    ):
        extract(net, ({"x": X},))


# Values that decide what is run


def _sized(by: Callable[[Tensor], int]) -> Net:
    return Net(lambda net, x, *_: net.b(torch.relu(net.a(x)) if by(x) > 2 else torch.tanh(net.a(x))))


@pytest.mark.parametrize(
    "by",
    [
        lambda x: len(x[x[:, 0] > 0]),
        lambda x: x[:, 0].nonzero().numel(),
        lambda x: torch.masked_select(x, x > 0).shape[0],
        lambda x: torch.unique(x).numel(),
    ],
)
def test_a_branch_on_a_size_that_depends_on_values_is_refused(by: Callable[[Tensor], int]) -> None:
    with pytest.raises(ValueError, match=r"number of elements of aten.*depends on inputs or parameters"):
        extract(_sized(by), X)


def test_rows_chosen_by_value_are_no_branch() -> None:
    def rows(net: Net, x: Tensor, *_: Any) -> Tensor:
        index = torch.where(x[:, 0] > 0)[0]
        return torch.zeros(len(x), 2).index_add_(0, index, net.b(net.hidden(x[index])))

    spec = extract(Net(rows), X, strict=True)
    assert spec.group("h1").permutable and spec.verify(Net(rows), -X).holds


def test_constants_written_in_forward_are_constants() -> None:
    mask = [True, False, True, True, True]
    net = Net(lambda net, x, *_: (net.b(net.hidden(x)) * torch.tensor([1.0, 2.0]))[torch.tensor(mask)])
    assert extract(net, X, strict=True).group("h1").permutable


def test_randomness_does_not_make_a_symmetry_look_larger() -> None:
    def sampled(net: Net, x: Tensor, *_: Any) -> Tensor:
        h = net.hidden(x)
        return net.b(h + h.exp() * torch.randn_like(h))

    net = Net(sampled)
    spec = extract(net, X)
    proof = spec.verify(net, X, probes=None)
    assert proof.holds and not proof.larger and any("random numbers" in note for note in proof.notes)


def test_a_module_without_modes_is_refused_with_what_to_pass() -> None:
    exported = torch.export.export(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), (X,)).module()
    with pytest.raises(ValueError, match=r"cannot change between training and eval mode.*was exported"):
        extract(exported, X)


def test_random_numbers_from_outside_of_torch_are_the_same_in_every_run() -> None:
    def masked(net: Net, x: Tensor, *_: Any) -> Tensor:
        h = net.hidden(x)
        return net.b(h * torch.tensor(np.random.rand(5, 1) + random.random(), dtype=h.dtype))

    before = np.random.get_state()[1][:3].tolist(), random.getstate()  # type: ignore[index]
    runner = Runner(Net(masked), X)
    (first,), (second,) = (runner.run({})[0] for _ in range(2))
    assert torch.equal(first, second)
    assert before == (np.random.get_state()[1][:3].tolist(), random.getstate())  # type: ignore[index]


def test_a_truth_value_that_only_warns_decides_nothing() -> None:
    def warned(net: Net, x: Tensor, *_: Any) -> Tensor:
        if (x > 2).any() or 1.0 in x[:, 1:]:
            warnings.warn("large", RuntimeWarning, stacklevel=2)
        return net.b(net.hidden(x))

    assert extract(Net(warned), X, strict=True).group("h1").permutable


@pytest.mark.parametrize("above", [-2.0, 2.0])
def test_a_truth_value_that_decides_is_refused(above: float) -> None:
    def branched(net: Net, x: Tensor, *_: Any) -> Tensor:
        h = net.a(x)
        return net.b(torch.relu(h) if (x > above).any() else torch.tanh(h))

    with pytest.raises(ValueError, match="takes a number out of a tensor"):
        extract(Net(branched), X)


def test_a_truth_value_of_parameters_that_is_a_number_is_refused() -> None:
    net = Net(lambda net, x, *_: net.b(net.hidden(x)) * (2.0 if torch.equal(x, 2 * x) else 3.0))
    with pytest.raises(ValueError, match="takes a number out of a tensor"):
        extract(net, X)
