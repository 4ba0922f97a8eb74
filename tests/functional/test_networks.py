"""Many networks at once agree with the slow way, one network at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amortopt.functional.networks import (
    apply,
    apply_many,
    finite_networks,
    l1_norm,
    num_networks,
    params_of,
    stack,
    unstack,
)

B, N = 3, 5


def builders() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    return {
        "mlp": (nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), (6,)),
        "cnn": (
            nn.Sequential(
                nn.Conv1d(2, 4, 3, stride=2),
                nn.ReLU(),
                nn.AdaptiveAvgPool1d(1),
                nn.Flatten(),
                nn.Linear(4, 3),
            ),
            (2, 11),
        ),
        "cnn2d with norm": (
            nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
            ).eval(),
            (1, 4, 4),
        ),
    }


@pytest.fixture(params=builders())
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, list[nn.Module], Tensor, Tensor]:
    """One module to run, B modules with the params of each network, inputs and labels."""
    name = request.param
    many = [builders()[name][0].double() for _ in range(B)]
    module, shape = builders()[name]
    return module.double(), many, torch.randn(N, *shape, dtype=torch.float64), torch.arange(N) % 3


def test_apply_is_the_modules_forward(case: tuple) -> None:
    module, many, x, _ = case
    torch.testing.assert_close(apply(module, params_of(many[0]), x), many[0](x))


def test_apply_many_is_each_networks_forward(case: tuple) -> None:
    module, many, x, _ = case
    out = apply_many(module, stack([params_of(m) for m in many]), x)
    torch.testing.assert_close(out, torch.stack([m(x) for m in many]))


def test_apply_many_gives_each_network_its_own_inputs(case: tuple) -> None:
    module, many, x, _ = case
    own = torch.randn(B, *x.shape, dtype=torch.float64)
    out = apply_many(module, stack([params_of(m) for m in many]), own, shared=False)
    torch.testing.assert_close(out, torch.stack([m(o) for m, o in zip(many, own, strict=True)]))


def test_apply_many_gradcheck() -> None:
    module, shape = builders()["mlp"]
    x = torch.randn(N, *shape, dtype=torch.float64)
    params = stack([params_of(module.double())] * 2)
    names = list(params)
    values = [v.requires_grad_() for v in params.values()]
    assert torch.autograd.gradcheck(
        lambda *v: apply_many(module, dict(zip(names, v, strict=True)), x), values
    )


def test_params_of_copies(case: tuple) -> None:
    module = case[0]
    params = params_of(module)
    for name, p in module.named_parameters():
        assert torch.equal(params[name], p) and not params[name].requires_grad
        params[name].fill_(7.0)
        assert not torch.equal(params[name], p)


def test_unstack_undoes_stack(case: tuple) -> None:
    many = [params_of(m) for m in case[1]]
    for before, after in zip(many, unstack(stack(many)), strict=True):
        assert list(before) == list(after)
        assert all(torch.equal(before[n], after[n]) for n in before)


def test_stack_refuses_nothing_and_other_architectures() -> None:
    a, b = params_of(nn.Linear(2, 3)), params_of(nn.Linear(2, 4))
    with pytest.raises(ValueError, match="got no networks"):
        stack([])
    with pytest.raises(ValueError, match=r"many\[1\]\['weight'\]: got shape \(4, 2\), expected \(3, 2\)"):
        stack([a, b])
    with pytest.raises(ValueError, match=r"many\[1\]: parameter names differ from many\[0\] in \['bias'\]"):
        stack([a, {"weight": a["weight"]}])


@pytest.mark.parametrize("params", [{}, {"a": torch.zeros(())}, {"a": torch.zeros(2), "b": torch.zeros(3)}])
def test_num_networks_needs_one_network_axis(params: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="expected one network axis B"):
        num_networks(params)


def test_apply_many_refuses_inputs_for_other_networks() -> None:
    module, shape = builders()["mlp"]
    with pytest.raises(ValueError, match="x: got shape"):
        apply_many(module, stack([params_of(module)] * 2), torch.zeros(3, N, *shape), shared=False)


def test_l1_norm_equals_a_loop() -> None:
    params = {"a": torch.randn(3, 4, 5), "b": torch.randn(3)}
    expected = [sum(float(p[b].abs().sum()) for p in params.values()) for b in range(3)]
    torch.testing.assert_close(l1_norm(params), torch.tensor(expected))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_finite_networks_leaves_out_one_with_a_value_that_is_not(value: float) -> None:
    params = {"a": torch.randn(3, 4, 5), "b": torch.randn(3)}
    params["a"][2, 1, 0] = value
    assert finite_networks(params).tolist() == [True, True, False]


def test_apply_differentiates_what_is_in_a_slice_of_a_list() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factors = nn.ParameterList(nn.Parameter(torch.tensor(float(k))) for k in (2, 3, 5))

        def forward(self, x: Tensor) -> Tensor:
            for factor in self.factors[1:]:
                x = x * factor
            return x

    net = Listed()
    params = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    apply(net, params, torch.ones(1)).sum().backward()
    assert [p.grad if p.grad is None else p.grad.item() for p in params.values()] == [None, 5.0, 3.0]
    assert type(net.factors) is nn.ParameterList


class _Returns(nn.Module):
    def __init__(self, pack: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.pack = nn.Linear(4, 2), pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.layer(x))


@pytest.mark.parametrize("pack", [lambda y: {"logits": y}, lambda y: (y, None), lambda y: [y, 3]])
def test_the_one_tensor_that_forward_returns_is_the_output(pack: Callable[[Tensor], Any]) -> None:
    net, x = _Returns(pack), torch.randn(3, 4)
    params = {name: p.detach()[None] for name, p in net.named_parameters()}
    torch.testing.assert_close(apply_many(net, params, x)[0], net.layer(x))


def test_several_outputs_are_refused_in_one_line() -> None:
    net = _Returns(lambda y: (y, 2 * y))
    params = {name: p.detach()[None] for name, p in net.named_parameters()}
    with pytest.raises(ValueError, match="forward of _Returns returns tuple with 2 tensors, expected one"):
        apply_many(net, params, torch.randn(3, 4))
