"""ScaleGMNOptimizer.one_shot on modules: what comes out, and what is kept."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amortopt.functional.networks import params_of
from amortopt.optim import OutOfFamilyWarning, ScaleGMNOptimizer
from amortopt.tasks import make_family
from tests.cases import HandWritten
from tests.optim.metanets import PROBLEM, SPEC, TANH, Scale, optimizer, scaled

BITS = {"rtol": 0, "atol": 0}


def mlp(*widths: int) -> nn.Module:
    return make_family("mlp", widths=widths).build()


def assert_params(
    module: nn.Module, expected: dict[str, Tensor], rtol: float = 1e-6, atol: float = 0
) -> None:
    torch.testing.assert_close(params_of(module), expected, rtol=rtol, atol=atol)


class Wrapped(nn.Module):
    """The family's network below another name, in double where asked, with a buffer and dropout."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(7))
        self.dropout = nn.Dropout(dropout)
        self.inner = TANH.build()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.dropout(x))


def test_one_shot_matches_reference_and_leaves_the_model() -> None:
    model = TANH.build()
    before = params_of(model)
    better = optimizer().one_shot(model)
    assert better is not model and type(better) is type(model)
    assert_params(better, scaled(model))
    assert_params(model, before, **BITS)


def test_one_shot_matches_a_hand_written_class_by_structure() -> None:
    model = HandWritten()
    expected = {}
    for i, name in enumerate(
        ["first.weight", "first.bias", "second.weight", "second.bias", "head.weight", "head.bias"]
    ):
        expected[name] = (1.5 + i / 8) * model.get_parameter(name).detach()
    assert_params(optimizer().one_shot(model), {name: expected[name] for name, _ in model.named_parameters()})


class Sliced(nn.Module):
    """The family's network, weights [in, out] and biases in one list that forward takes slices of."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        params = list(params_of(like).values())
        self.all = nn.ParameterList([*(p.T.clone() for p in params[::2]), *params[1::2]])

    @property
    def weights(self) -> list[Tensor]:
        return [p.T for p in list(self.all)[:3]]

    @property
    def biases(self) -> list[Tensor]:
        return list(self.all)[3:]

    def forward(self, x: Tensor) -> Tensor:
        for weight, bias in zip(self.all[:2], self.all[3:-1], strict=True):
            x = torch.tanh(x @ weight + bias)
        return x @ self.all[2] + self.all[-1]


class Rows(nn.Module):
    """The family's network with einsum and other products, its biases as rows [1, n]."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        params = list(params_of(like).values())
        self.weights, self.rows = (
            nn.ParameterList(params[::2]),
            nn.ParameterList(b[None] for b in params[1::2]),
        )

    @property
    def biases(self) -> list[Tensor]:
        return [row[0] for row in self.rows]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(torch.einsum("ni,oi->no", x, self.weights[0]) + self.rows[0])
        x = torch.tanh(torch.addmm(self.rows[1], x, self.weights[1].T))
        return torch.inner(x, self.weights[2]) + self.rows[2]


class Transposed(nn.Module):
    """The family's network, its weights [in, out] in lists."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        params = list(params_of(like).values())
        self.weights, self.biases = (
            nn.ParameterList(p.T.clone() for p in params[::2]),
            nn.ParameterList(params[1::2]),
        )

    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(self.weights)):
            x = (torch.tanh(x) if i else x) @ self.weights[i] + self.biases[i]
        return x


@pytest.mark.parametrize("inplace", [False, True])
def test_one_shot_of_transposed_weights_is_the_same(inplace: bool) -> None:
    models = [TANH.build(), TANH.build()]
    turned = [Transposed(model) for model in models]
    opt, batch = optimizer("batch"), (torch.randn(16, 40), torch.randint(10, (16,)))
    expected = [list(params_of(better).values()) for better in opt.one_shot(models, batch=batch)]
    for better, params in zip(opt.one_shot(turned, batch=batch, inplace=inplace), expected, strict=True):
        for i, bias in enumerate(better.biases):
            torch.testing.assert_close(better.weights[i].detach(), params[2 * i].T, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(bias.detach(), params[2 * i + 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", [Sliced, Rows])
def test_one_shot_of_another_form_is_the_same(form: Callable[[nn.Module], Any]) -> None:
    model, batch = TANH.build(), (torch.randn(16, 40), torch.randint(10, (16,)))
    opt = optimizer("batch")
    expected, better = opt.one_shot(model, batch=batch), opt.one_shot(form(model), batch=batch)
    params = list(params_of(expected).values())
    for got, wanted in zip(better.weights, params[::2], strict=True):
        torch.testing.assert_close(got.detach(), wanted, rtol=1e-5, atol=1e-6)
    for got, wanted in zip(better.biases, params[1::2], strict=True):
        torch.testing.assert_close(got.detach(), wanted, rtol=1e-5, atol=1e-6)


def test_one_shot_keeps_buffers_modes_and_requires_grad() -> None:
    model = Wrapped().train()
    model.inner.eval()
    better = optimizer().one_shot(model)
    assert better.training and not better.inner.training and better.dropout.training
    assert torch.equal(better.seen, model.seen) and better.seen is not model.seen
    assert all(p.requires_grad and p.is_leaf and p.grad is None for p in better.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_one_shot_keeps_dtype_and_computes_in_at_least_float32(dtype: torch.dtype) -> None:
    model = TANH.build().to(dtype)
    better = optimizer().one_shot(model)
    wide = torch.promote_types(dtype, torch.float32)
    expected = {name: p.to(dtype) for name, p in scaled(copy.deepcopy(model).to(wide)).items()}
    assert_params(better, expected, rtol=0 if dtype != torch.float32 else 1e-6)


def test_one_shot_result_trains() -> None:
    better = optimizer().one_shot(TANH.build())
    better(torch.randn(3, 40)).sum().backward()
    assert all(p.grad is not None for p in better.parameters())


def test_one_shot_in_inference_mode_gives_ordinary_parameters() -> None:
    with torch.inference_mode():
        made_inside = TANH.build()
        results = [optimizer().one_shot(TANH.build()), optimizer().one_shot(made_inside)]
        optimizer().one_shot(made_inside, inplace=True)
    assert not any(p.is_inference() for better in results for p in better.parameters())


def test_one_shot_ignores_autocast() -> None:
    model = TANH.build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        better = optimizer().one_shot(model)
    assert_params(better, scaled(model))


def test_one_shot_list_keeps_order_over_mixed_widths_and_dtypes() -> None:
    models = [
        mlp(40, 32, 32, 10),
        mlp(40, 8, 16, 10),
        mlp(40, 32, 32, 10).double(),
        HandWritten(),
        mlp(40, 8, 16, 10),
    ]
    with pytest.warns(OutOfFamilyWarning):
        many = optimizer().one_shot(models)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutOfFamilyWarning)
        for model, better in zip(models, many, strict=True):
            assert_params(better, params_of(optimizer().one_shot(model)), **BITS)


def test_one_shot_list_of_one_architecture_is_one_batched_pass() -> None:
    opt = optimizer()
    opt.one_shot([TANH.build() for _ in range(5)])
    assert isinstance(opt.metanet, Scale) and opt.metanet.calls == [5]


def test_one_shot_list_may_hold_a_network_twice() -> None:
    model = TANH.build()
    first, second = optimizer().one_shot([model, model])
    assert first is not second and first is not model
    assert_params(first, params_of(second), **BITS)


def test_one_shot_inplace_updates_the_same_tensors() -> None:
    model = TANH.build()
    expected, parameters = scaled(model), list(model.parameters())
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    assert optimizer().one_shot(model, inplace=True) is model
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert_params(model, expected)
    model(torch.randn(3, 40)).sum().backward()
    sgd.step()
    assert not torch.equal(model[0].weight, expected["0.weight"])


def test_one_shot_inplace_list_returns_the_given_modules() -> None:
    models = [TANH.build(), TANH.build()]
    expected = [scaled(model) for model in models]
    results = optimizer().one_shot(models, inplace=True)
    assert all(a is b for a, b in zip(models, results, strict=True))
    for model, params in zip(models, expected, strict=True):
        assert_params(model, params)


def norm(model: nn.Module) -> float:
    return float(sum(p.detach().abs().sum() for p in model.parameters()))


ACCEPTS: dict[str, tuple[Callable[[nn.Module], float], bool]] = {
    "lower": (lambda model: -norm(model), True),
    "higher": (norm, False),
    "equal": (lambda model: 1.0, False),
    "nan": (lambda model: float("nan"), False),
    "tensor": (lambda model: -sum(p.abs().sum() for p in model.parameters()).reshape(1), True),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ACCEPTS)
def test_one_shot_accept_keeps_the_exact_original_unless_lower(name: str, inplace: bool) -> None:
    accept, taken = ACCEPTS[name]
    model = TANH.build()
    before, after = params_of(model), scaled(model)
    better = optimizer().one_shot(model, accept=accept, inplace=inplace)
    assert (better is model) == inplace
    assert_params(better, after if taken else before, **({} if taken else BITS))
    if not inplace:
        assert_params(model, before, **BITS)


def test_one_shot_accept_decides_per_network() -> None:
    models = [TANH.build() for _ in range(4)]
    before = [params_of(model) for model in models]
    originals = {norm(model): i for i, model in enumerate(models)}

    def accept(model: nn.Module) -> float:
        i = originals.get(norm(model))
        return 0.0 if i is None else (1.0 if i % 2 else -1.0)

    for i, better in enumerate(optimizer().one_shot(models, accept=accept)):
        assert_params(better, scaled(models[i]) if i % 2 else before[i])


def test_one_shot_accept_sees_the_models_mode_and_cannot_change_it() -> None:
    model = Wrapped().train()
    modes = []

    def accept(model: nn.Module) -> float:
        modes.append(model.training)
        model.eval()
        model.get_buffer("seen").zero_()
        return -norm(model)

    better = optimizer().one_shot(model, accept=accept)
    assert modes == [True, True] and model.training and better.training
    assert int(model.seen) == int(better.seen) == 7


def test_one_shot_accept_error_inplace_changes_nothing() -> None:
    models = [TANH.build(), TANH.build()]
    before = [params_of(model) for model in models]
    calls = iter([0.0, 1.0])
    with pytest.raises(StopIteration):
        optimizer().one_shot(models, accept=lambda model: next(calls), inplace=True)
    for model, params in zip(models, before, strict=True):
        assert_params(model, params, **BITS)


@pytest.mark.parametrize("inplace", [False, True])
def test_one_shot_frozen_keep_leaves_frozen_parameters(inplace: bool) -> None:
    model = TANH.build()
    model.get_parameter("2.weight").requires_grad_(False)
    expected = scaled(model) | {"2.weight": params_of(model)["2.weight"]}
    better = optimizer().one_shot(model, frozen="keep", inplace=inplace)
    assert_params(better, expected)
    assert [name for name, p in better.named_parameters() if not p.requires_grad] == ["2.weight"]


def test_one_shot_other_widths_warn_once_per_call() -> None:
    models = [mlp(40, 8, 8, 10) for _ in range(3)]
    with pytest.warns(OutOfFamilyWarning, match=r"has 8 units, the family 32") as caught:
        optimizer().one_shot(models)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_one_shot_warning_as_error_changes_nothing() -> None:
    model = mlp(40, 8, 8, 10)
    before = params_of(model)
    with warnings.catch_warnings(), pytest.raises(OutOfFamilyWarning):
        warnings.simplefilter("error")
        optimizer().one_shot(model, inplace=True)
    assert_params(model, before, **BITS)


def test_one_shot_passes_apply_the_metanet_in_a_row() -> None:
    model, opt = TANH.build(), optimizer()
    assert_params(opt.one_shot(model, passes=3), params_of(opt.one_shot(opt.one_shot(opt.one_shot(model)))))


def test_one_shot_l1_reaches_each_network() -> None:
    models = [TANH.build() for _ in range(2)]
    for i, better in enumerate(optimizer("l1").one_shot(models, l1=[0.0, 0.5])):
        assert_params(better, {name: p * (1.0, 0.5)[i] for name, p in scaled(models[i]).items()})


def test_one_shot_without_l1_uses_zero() -> None:
    model = TANH.build()
    assert_params(optimizer("l1").one_shot(model), scaled(model))


def test_one_shot_gradients_are_each_networks_own() -> None:
    models = [TANH.build(), HandWritten(), Wrapped().train(), TANH.build().double()]
    batch = (torch.randn(16, 40), torch.randint(10, (16,)))
    opt = optimizer("batch")
    many = opt.one_shot(models, batch=batch)
    assert models[2].training
    for model, better in zip(models, many, strict=True):
        own = copy.deepcopy(model).eval()
        dtype = next(own.parameters()).dtype
        nn.functional.cross_entropy(own(batch[0].to(dtype)), batch[1]).backward()
        plain = params_of(optimizer().one_shot(model))
        expected = {name: plain[name] - p.grad for name, p in own.named_parameters() if p.grad is not None}
        assert_params(better, expected, rtol=1e-5, atol=1e-6)


def test_one_shot_without_family_takes_example_input() -> None:
    model, opt = TANH.build(), ScaleGMNOptimizer(Scale(SPEC))
    assert_params(opt.one_shot(model, example_input=torch.zeros(2, 40)), scaled(model))


def test_one_shot_tells_networks_apart_by_an_attribute() -> None:
    class Chosen(HandWritten):
        def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.activation = activation

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.activation(self.second(torch.tanh(self.first(x)))))

    opt = optimizer()
    assert len(opt.one_shot([Chosen(torch.tanh), Chosen(torch.tanh)])) == 2
    for odd in (torch.relu, functools.partial(torch.clamp, min=0)):
        with pytest.raises(ValueError, match=r"models\[1\]: .*activation 2: tanh expected, got (relu|clip)"):
            opt.one_shot([Chosen(torch.tanh), Chosen(odd)])


def test_constructor_takes_configs_and_repr_says_what_it_is() -> None:
    opt = ScaleGMNOptimizer(
        Scale(SPEC, conditions=["l1"]), family=TANH.to_config(), problem=PROBLEM, name="mine"
    )
    assert opt.family == TANH and opt.problem is not None and opt.problem.to_config()["name"] == "mnist1d"
    for part in ("'mine'", "test-scale", "6 parameters", "cpu", "weights, l1", "tanh", "Mnist1d"):
        assert part in repr(opt)


@pytest.mark.gpu
def test_one_shot_on_another_device_keeps_it() -> None:
    models = [TANH.build().cuda(), TANH.build()]
    expected = [scaled(model) for model in models]
    for opt in (optimizer(), optimizer()):
        many = opt.one_shot(models)
        for better, params in zip(many, expected, strict=True):
            assert_params(better, params)
        opt.metanet.cuda()
        assert [next(m.parameters()).device.type for m in opt.one_shot(models)] == ["cuda", "cpu"]
