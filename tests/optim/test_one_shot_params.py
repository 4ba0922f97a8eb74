"""ScaleGMNOptimizer.one_shot_params on plain tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from amortopt._types import Params
from amortopt.functional.networks import params_of, stack
from amortopt.optim import OutOfFamilyWarning, ScaleGMNOptimizer
from amortopt.optim.networks import align
from amortopt.symmetry import extract
from amortopt.tasks import ArrayProblem, make_family
from tests.optim.metanets import SPEC, TANH, Same, optimizer, scaled


def params(**changed: Any) -> Params:
    return params_of(TANH.build()) | {name.replace("_", "."): value for name, value in changed.items()}


def test_one_shot_params_equals_one_shot() -> None:
    model = TANH.build()
    new = optimizer().one_shot_params(params_of(model))
    torch.testing.assert_close(new, params_of(optimizer().one_shot(model)), rtol=0, atol=0)


def test_one_shot_params_batch_equals_one_by_one() -> None:
    models = [TANH.build() for _ in range(3)]
    many = optimizer().one_shot_params(stack([params_of(model) for model in models]))
    torch.testing.assert_close(many, stack([scaled(model) for model in models]))


def test_one_shot_params_takes_own_names_in_order_and_keeps_theirs() -> None:
    given = {f"layer {i}": p for i, p in enumerate(params().values())}
    new = optimizer().one_shot_params(given)
    assert list(new) == list(given)
    torch.testing.assert_close(new["layer 1"], 1.625 * given["layer 1"])


def test_one_shot_params_takes_the_familys_names_in_any_order() -> None:
    given = dict(reversed(params().items()))
    new = optimizer().one_shot_params(given)
    assert list(new) == list(given)
    torch.testing.assert_close(new["0.weight"], 1.5 * given["0.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_one_shot_params_keeps_dtype(dtype: torch.dtype) -> None:
    new = optimizer().one_shot_params({name: p.to(dtype) for name, p in params().items()})
    assert {p.dtype for p in new.values()} == {dtype}


@pytest.mark.parametrize("batched", [False, True])
def test_one_shot_params_never_aliases_its_input(batched: bool) -> None:
    given = stack([params()]) if batched else params()
    new = ScaleGMNOptimizer(Same(SPEC)).one_shot_params(given)
    torch.testing.assert_close(new, given, rtol=0, atol=0)
    assert all(new[name].data_ptr() != given[name].data_ptr() for name in given)


def test_one_shot_params_of_a_live_module_requires_no_grad() -> None:
    new = optimizer().one_shot_params(dict(TANH.build().named_parameters()))
    assert not any(p.requires_grad for p in new.values())


# The metanet of this test makes weights larger, and so the objective with an L1 term worse.
@pytest.mark.filterwarnings("ignore:outside of what this checkpoint:amortopt.OutOfFamilyWarning")
def test_one_shot_params_reads_gradients_and_l1() -> None:
    model, batch = TANH.build(), (torch.randn(8, 40), torch.randint(10, (8,)))
    opt = optimizer("batch", "l1")
    new = opt.one_shot_params(params_of(model), batch=batch, l1=0.25)
    torch.testing.assert_close(new, params_of(opt.one_shot(model, batch=batch, l1=0.25)))


def test_one_shot_batch_of_a_squared_error_problem() -> None:
    model, x, y = TANH.build(), torch.randn(8, 40), torch.randn(8, 10)
    opt = optimizer("batch")
    opt.problem = ArrayProblem((x, y), name="regression")
    nn.functional.mse_loss(model(x), y).backward()
    reference = {
        name: value - p.grad
        for (name, value), p in zip(scaled(model).items(), model.parameters(), strict=True)
        if p.grad is not None
    }
    torch.testing.assert_close(opt.one_shot_params(params_of(model), batch=(x, y)), reference)
    torch.testing.assert_close(params_of(opt.one_shot(model, batch=(x, y))), reference)
    for message, bad in {
        r"and y \(8,\), expected .* targets \[N, 10\] of SquaredError": y[:, 0],
        "got y of torch.int64, expected real numbers": y.long(),
        "y has NaN or infinite values": y / 0,
    }.items():
        with pytest.raises(ValueError, match=f"^batch: .*{message}"):
            opt.one_shot(model, batch=(x, bad))


def test_one_shot_params_other_widths_warn() -> None:
    model = make_family("mlp", widths=(40, 8, 16, 10)).build()
    with pytest.warns(OutOfFamilyWarning, match="has 8 units, the family 32.*has 16 units"):
        new = optimizer().one_shot_params(params_of(model))
    torch.testing.assert_close(new, scaled(model))


def test_align_a_flattened_convolution() -> None:
    def build(channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(1, channels, 3), nn.Tanh(), nn.Flatten(), nn.Linear(channels * 6, 2))

    family = extract(build(4), torch.zeros(1, 1, 8))
    for channels in (4, 3):
        given = params_of(build(channels))
        assert not align(family, given).batched
        assert align(family, stack([given, given])).batched
    with pytest.raises(ValueError, match=r"'3.weight'.*\[2, 19\]"):
        align(family, given | {"3.weight": torch.zeros(2, 19)})


BAD: dict[str, tuple[Any, str]] = {
    "not a dict": (3, "params: got int, expected a dict"),
    "empty": ({}, "params: got dict, expected a dict of name -> tensor, not empty"),
    "not a tensor": (params(**{"0_bias": 1.0}), r"params\['0.bias'\]: got float"),
    "integers": (
        params(**{"0_bias": torch.ones(32, dtype=torch.int64)}),
        "got torch.int64, expected a floating",
    ),
    "missing": ({"0.weight": torch.ones(32, 40)}, "got 1 tensors .*expected 6"),
    "shape": (
        params(**{"2_weight": torch.ones(32, 31)}),
        r"'2.weight'\]: got shape \[32, 31\], expected \[32, 32\]",
    ),
    "widths disagree": (
        params(**{"0_bias": torch.ones(16)}),
        r"'0.bias'\]: got shape \[16\], expected \[32\]",
    ),
    "other order": (
        {
            f"p{i}": params()[f"{layer}.{kind}"]
            for i, (layer, kind) in enumerate(
                [(4, "weight"), (4, "bias"), (2, "weight"), (2, "bias"), (0, "weight"), (0, "bias")]
            )
        },
        r"'p0'\]: got shape \[10, 32\], expected \[32, 40\] as the family's '0.weight'",
    ),
    "input size": (params(**{"0_weight": torch.ones(32, 41)}), r"got shape \[32, 41\], expected \[32, 40\]"),
    "some batched": (params(**{"0_weight": torch.ones(2, 32, 40)}), "network axes"),
    "no networks": ({name: p[None][:0] for name, p in params().items()}, "expected one length B >= 1"),
    "meta": ({name: p.to("meta") for name, p in params().items()}, "meta device"),
    "mixed devices": (params(**{"0_bias": torch.ones(32, device="meta")}), "mixed devices.*'0.bias' on meta"),
    "nan": (params(**{"0_bias": torch.full((32,), torch.nan)}), r"params\['0.bias'\] has 32 NaN"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_shot_params_bad_input(name: str) -> None:
    given, match = BAD[name]
    with pytest.raises(ValueError, match=match):
        optimizer().one_shot_params(given)


def test_one_shot_params_nan_names_the_network() -> None:
    given = stack([params(), params(**{"4_bias": torch.full((10,), torch.nan)})])
    with pytest.raises(ValueError, match=r"params\['4.bias'\], network 1, has 10 NaN"):
        optimizer().one_shot_params(given)


@pytest.mark.parametrize("count", [1, 2])
def test_one_shot_params_stack_of_any_number_is_a_stack(count: int) -> None:
    assert align(SPEC, stack([params()] * count)).batched and not align(SPEC, params()).batched
