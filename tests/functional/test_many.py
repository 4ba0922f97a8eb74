"""Chains of known layers run as batched products, and give what vmap gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from amortopt._types import Params
from amortopt.functional.many import run_many
from amortopt.functional.networks import apply_many
from amortopt.tasks import make_family

B, N = 3, 5


class Shift(nn.Linear):
    """Looks like a linear layer, computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def parametrized(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrize.register_parametrization(layer, "weight", Twice())


def family(name: str, **kwargs: object) -> Callable[[], tuple[nn.Module, tuple[int, ...]]]:
    made = make_family(name, **kwargs)
    return lambda: (made.build(), tuple(made.input_shape))


def chain(shape: tuple[int, ...], *layers: Callable[[], nn.Module]) -> Callable:
    return lambda: (nn.Sequential(*(layer() for layer in layers)).eval(), shape)


CHAINS = {
    "mlp tanh": family("mlp", widths=(6, 4, 5, 3)),
    "mlp sin, images": family("mlp", activation="sin", widths=(12, 4, 3), input_shape=(3, 4)),
    "cnn 1-D": family("cnn", activation="relu", channels=(4, 5), input_shape=(2, 11)),
    "cnn 2-D": family("cnn", channels=(4, 5), input_shape=(2, 9, 7)),
    "no bias, dilation, valid": chain(
        (2, 12),
        lambda: nn.Conv1d(2, 3, 3, dilation=2, bias=False),
        lambda: nn.LeakyReLU(0.1),
        lambda: nn.Conv1d(3, 4, 3, padding="same"),
        nn.Flatten,
        lambda: nn.Linear(32, 3, bias=False),
    ),
    "nested, uneven strides": chain(
        (1, 8, 9),
        lambda: nn.Sequential(nn.Conv2d(1, 3, (3, 2), stride=(1, 2), padding=(0, 1)), nn.GELU()),
        lambda: nn.Dropout(0.5),
        lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()),
        lambda: nn.Linear(2, 3),
    ),
    "windows that overlap and leave inputs out": chain(
        (2, 7, 8),
        lambda: nn.Conv2d(2, 3, 1),
        lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 3), padding=(2, 1), dilation=(2, 1)),
        nn.Tanh,
        lambda: nn.Conv2d(4, 2, 2, bias=False),
        nn.Flatten,
    ),
    "activation and pool first": chain(
        (4, 6), nn.ReLU, lambda: nn.AdaptiveAvgPool1d(1), nn.Flatten, lambda: nn.Linear(4, 3)
    ),
    "linear before any network axis ends": chain((6,), lambda: nn.Linear(6, 3)),
}
OTHERS = {
    "a layer that is not known": chain((4,), lambda: nn.Linear(4, 4), lambda: nn.LayerNorm(4)),
    "a subclass": chain((4,), lambda: Shift(4, 3)),
    "groups": chain((4, 6), lambda: nn.Conv1d(4, 4, 3, groups=2)),
    "circular padding": chain((4, 6), lambda: nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular")),
    "linear along other axes": chain((4, 6), lambda: nn.Linear(6, 3)),
    "pool to two": chain((4, 6), lambda: nn.Conv1d(4, 4, 3), lambda: nn.AdaptiveAvgPool1d(2)),
    "a parametrization": chain((4,), lambda: parametrized(nn.Linear(4, 3))),
}


def drawn(module: nn.Module, count: int = B) -> Params:
    return {name: torch.randn(count, *p.shape, dtype=torch.float64) for name, p in module.named_parameters()}


def by_vmap(module: nn.Module, params: Params, x: Tensor, shared: bool) -> Tensor:
    return vmap(lambda p, xs: functional_call(module, p, (xs,)), in_dims=(0, None if shared else 0))(
        params, x
    )


def batch(shape: tuple[int, ...], shared: bool) -> Tensor:
    return torch.randn(*(() if shared else (B,)), N, *shape, dtype=torch.float64)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", CHAINS)
def test_run_many_is_vmap_to_second_order(name: str, shared: bool) -> None:
    module, shape = CHAINS[name]()
    params, x = drawn(module.double()), batch(shape, shared)
    inputs = [v.requires_grad_() for v in (*params.values(), x)]
    ways = []
    for run in (
        lambda *a: run_many(module, *a, count=B, shared=shared),
        lambda *a: by_vmap(module, *a, shared),
    ):
        out = run(params, x)
        assert out is not None
        first = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        ways.append((out, *first, *second))
    for ours, theirs in zip(*ways, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12 * float(theirs.detach().abs().max()))


@pytest.mark.parametrize("name", OTHERS)
def test_run_many_leaves_other_modules_to_vmap(name: str) -> None:
    module, shape = OTHERS[name]()
    params, x = drawn(module.double()), batch(shape, True)
    assert run_many(module, params, x, count=B, shared=True) is None
    torch.testing.assert_close(apply_many(module, params, x), by_vmap(module, params, x, True))


def test_run_many_leaves_hooks_training_dropout_and_unknown_names_to_vmap() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).double()
    params, x = drawn(module), batch((4,), True)
    assert run_many(module, params, x, count=B, shared=True) is None
    module.eval()
    assert run_many(module, params, x, count=B, shared=True) is not None
    assert run_many(module, params | {"2.weight": torch.zeros(B)}, x, count=B, shared=True) is None
    handle = module[0].register_forward_hook(lambda layer, inputs, out: out * 2)
    assert run_many(module, params, x, count=B, shared=True) is None
    torch.testing.assert_close(apply_many(module, params, x), by_vmap(module, params, x, True))
    handle.remove()
    assert run_many(module, params, x, count=B, shared=True) is not None


@pytest.mark.parametrize("shape", [(5,), (4, 4), ()])
def test_run_many_leaves_inputs_that_do_not_fit_to_the_usual_error(shape: tuple[int, ...]) -> None:
    module = nn.Sequential(nn.Conv1d(4, 3, 2), nn.Flatten(), nn.Linear(3, 2)).double()
    params, x = drawn(module), batch(shape, True)
    with pytest.raises((RuntimeError, ValueError), match=r"shape|size|input|batch"):
        apply_many(module, params, x)


def test_run_many_keeps_the_modules_own_values_for_what_params_leave_out() -> None:
    module, shape = CHAINS["cnn 1-D"]()
    module.double()
    params, x = drawn(module), batch(shape, True)
    del params["0.weight"], params["6.bias"]
    torch.testing.assert_close(
        run_many(module, params, x, count=B, shared=True), by_vmap(module, params, x, True)
    )


def test_run_many_gives_tied_layers_one_weight() -> None:
    twice = nn.Linear(4, 4)
    module = nn.Sequential(twice, nn.Tanh(), twice, nn.Tanh(), nn.Linear(4, 3)).double()
    params, x = drawn(module), batch((4,), True)
    assert "2.weight" not in params
    torch.testing.assert_close(
        run_many(module, params, x, count=B, shared=True), by_vmap(module, params, x, True)
    )


def test_run_many_takes_networks_of_other_widths_than_the_module() -> None:
    module, wider = make_family("mlp", widths=(6, 4, 3)).build(), make_family("mlp", widths=(6, 9, 3)).build()
    params, x = drawn(wider), batch((6,), True)
    torch.testing.assert_close(
        run_many(module, params, x, count=B, shared=True), by_vmap(wider, params, x, True)
    )


def test_run_many_runs_under_vmap() -> None:
    module, shape = CHAINS["cnn 2-D"]()
    params, x = drawn(module.double()), batch(shape, True)
    run = lambda p, xs: run_many(module, p, xs, count=B, shared=True)  # noqa: E731
    many = {name: torch.stack([p, 2 * p]) for name, p in params.items()}
    out = vmap(run, in_dims=(0, None))(many, x)
    torch.testing.assert_close(out[1], run({name: p[1] for name, p in many.items()}, x))
