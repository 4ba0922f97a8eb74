"""What one_shot refuses: a clear error, and nothing changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.functional.networks import params_of
from amortopt.metanets import Metanet, make
from amortopt.optim import OutOfFamilyWarning, ScaleGMNOptimizer
from amortopt.symmetry import FamilyMismatchError, SymmetrySpec, extract
from amortopt.tasks import make_family
from tests.cases import HandWritten
from tests.optim.metanets import PROBLEM, SPEC, TANH, optimizer

BATCH = (torch.randn(4, 40), torch.randint(10, (4,)))


def refused(
    match: str, models: Any, *reads: str, kind: type[Exception] = ValueError, **arguments: Any
) -> None:
    """Assert the error, and that no bit of the networks was changed, neither in a copy nor in place."""
    many = [m for m in (models if isinstance(models, list) else [models]) if isinstance(m, nn.Module)]
    before = [{name: p.detach().clone() for name, p in m.named_parameters()} for m in many]
    for inplace in (True, False):
        if "inplace" in arguments and not inplace:
            continue
        with pytest.raises(kind, match=match):
            optimizer(*reads).one_shot(models, **{"inplace": inplace, **arguments})
    for model, params in zip(many, before, strict=True):
        for name, p in model.named_parameters():
            if p.device.type != "meta":
                torch.testing.assert_close(p.detach(), params[name], rtol=0, atol=0, equal_nan=True)


class Strange(HandWritten):
    """A cumulative sum, for which there is no rule, between two layers."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cumsum(torch.tanh(self.first(x)), 1)
        return self.head(F.tanh(self.second(x)))


OUTSIDE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "depth": (
        lambda: make_family("mlp", widths=(40, 32, 10)).build(),
        "depth: 3 linear layers expected, got 2",
    ),
    "activation": (lambda: make_family("mlp", activation="relu").build(), "tanh expected, got relu"),
    "operation": (Strange, "linear expected, got cumsum"),
    "output": (
        lambda: make_family("mlp", widths=(40, 32, 32, 11)).build(),
        "output size: 10 expected, got 11",
    ),
    "input": (
        lambda: make_family("mlp", widths=(41, 32, 32, 10)).build(),
        r"1x40 and 41x32.*inputs.*\[N, 40\]",
    ),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_one_shot_outside_the_family_names_the_difference(name: str) -> None:
    build, match = OUTSIDE[name]
    refused(match, build(), kind=FamilyMismatchError)
    refused(rf"models\[1\]: .*{match}", [TANH.build(), build()], kind=FamilyMismatchError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_shot_weights_not_finite_names_network_and_parameter(value: float) -> None:
    odd = TANH.build()
    odd.get_parameter("2.bias").data[3] = value
    refused(r"parameter '2.bias' has 1 NaN or infinite values of 32", odd)
    refused(r"models\[2\]: parameter '2.bias'", [TANH.build(), TANH.build(), odd])


def test_one_shot_empty_list() -> None:
    refused("models: got an empty list, expected at least one network", [])


@pytest.mark.parametrize(
    "models", [None, 3, "model", {}, [TANH.build(), 3], nn.ModuleList([TANH.build()])], ids=str
)
def test_one_shot_not_a_network(models: Any) -> None:
    refused(r"models.*: got \w+, expected a", models)


def test_one_shot_mixed_devices_are_named() -> None:
    model = TANH.build()
    model[2].to("meta")
    refused("mixed devices: '0.weight' is on cpu and '2.weight' on meta", model)


def test_one_shot_meta_device() -> None:
    refused("on the meta device and has no values", TANH.build().to("meta"))


def test_one_shot_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(32), *list(TANH.build().children())[1:])
    with pytest.raises(ValueError, match=r"'0.weight' is lazy .* run the network once"):
        optimizer().one_shot(model)


def square() -> nn.Sequential:
    model = TANH.build()
    assert isinstance(model, nn.Sequential)
    model.insert(2, nn.Linear(32, 32))
    model.insert(2, nn.Tanh())
    return model


def test_one_shot_tied_parameters() -> None:
    model = square()
    model[5].weight = model[3].weight
    refused("parameter '3.weight' and parameter '5.weight' are tied", model)


def test_one_shot_parameters_in_the_same_memory() -> None:
    model = square()
    model[5].weight = nn.Parameter(model[3].weight.data.T)
    refused("parameter '3.weight' and parameter '5.weight' are tied", model)


def test_one_shot_expanded_parameter() -> None:
    model = TANH.build()
    model[2].bias = nn.Parameter(torch.zeros(1).expand(32))
    refused("parameter '2.bias' is an expanded tensor", model)


def test_one_shot_slices_of_one_buffer_are_not_tied() -> None:
    model = TANH.build()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    for p, part in zip(model.parameters(), flat.split([p.numel() for p in model.parameters()]), strict=True):
        p.data = part.view_as(p)
    before = flat.clone()
    optimizer().one_shot(model, inplace=True)
    assert bool((flat != before).all())


def test_one_shot_inplace_parameters_shared_across_the_list() -> None:
    one, two = TANH.build(), TANH.build()
    two[2].weight = one[2].weight
    refused(
        r"inplace: models\[0\]'s '2.weight' and models\[1\]'s '2.weight' are tied", [one, two], inplace=True
    )
    refused(r"inplace: models\[0\]'s '.*' and models\[2\]'s", [one, TANH.build(), one], inplace=True)


def test_one_shot_frozen_parameters() -> None:
    model = TANH.build()
    model.get_parameter("2.weight").requires_grad_(False)
    refused(r"frozen parameters .*: 2.weight; pass frozen='keep'", model)
    refused("frozen: got 'skip', expected 'error' or 'keep'", TANH.build(), frozen="skip")


def test_one_shot_result_that_half_precision_cannot_hold() -> None:
    model = TANH.build().half()
    model.get_parameter("2.bias").data[0] = 60000
    refused("the result for parameter '2.bias' has 1 NaN or infinite values of 32", model)


def test_one_shot_l1() -> None:
    model = TANH.build()
    refused("l1: this checkpoint does not read an L1 strength", model, l1=0.1)
    for bad in (-1.0, float("nan"), float("inf")):
        refused("l1: got .* expected finite strengths >= 0", model, "l1", l1=bad)
    refused(r"l1: got shape \(2,\), expected a number or 1", model, "l1", l1=[0.1, 0.2])
    refused("l1: got 'much', expected a number", model, "l1", l1="much")


BAD_BATCHES: dict[str, tuple[Any, str]] = {
    "no pair": (BATCH[0], "got Tensor, expected a pair"),
    "three": ([*BATCH, 3], "got list, expected a pair"),
    "lengths": ((BATCH[0], BATCH[1][:3]), r"got x \(4, 40\) and y \(3,\)"),
    "empty": ((BATCH[0][:0], BATCH[1][:0]), r"got x \(0, 40\) .* N > 0 inputs"),
    "one-hot": ((BATCH[0], torch.eye(10)[BATCH[1]]), r"got x .* and y \(4, 10\), expected N > 0.*y\.argmax"),
    "a column": (
        (BATCH[0], BATCH[1][:, None]),
        r"got x .* and y \(4, 1\), expected N > 0 .*y\.squeeze\(-1\)",
    ),
    "arrays": ((BATCH[0].numpy(), BATCH[1].numpy()), r"got a pair of ndarray and ndarray.*torch\.as_tensor"),
    "shape": ((BATCH[0][:, :39], BATCH[1]), r"got x of shape \[4, 39\], expected \[N, 40\]"),
    "axes": ((BATCH[0][:, None], BATCH[1]), r"got x of shape \[4, 1, 40\], expected \[N, 40\]"),
    "bool x": ((BATCH[0] > 0, BATCH[1]), "got x of torch.bool, expected floating-point"),
    "nan": ((BATCH[0].where(BATCH[0] > 9, torch.nan), BATCH[1]), "x has 160 NaN or infinite values of 160"),
    "float labels": ((BATCH[0], BATCH[1].float()), r"got y of torch.float32, expected class .*y.long\(\)"),
    "bool labels": ((BATCH[0], BATCH[1] > 3), "got y of torch.bool, expected class indices"),
    "labels from 1": ((BATCH[0], torch.tensor([1, 2, 10, 3])), "got labels from 1 to 10 in y, .* 0 to 9"),
    "ignored": ((BATCH[0], torch.tensor([1, 2, -100, 3])), "got labels from -100 to 3 in y"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_one_shot_batch_that_does_not_fit(name: str) -> None:
    batch, match = BAD_BATCHES[name]
    refused(f"^batch: {match}", TANH.build(), "batch", batch=batch)
    with pytest.raises(ValueError, match=f"^batch: {match}"):
        optimizer("batch").one_shot_params(params_of(TANH.build()), batch=batch)


def test_one_shot_gradients_that_overflow_are_named() -> None:
    model = TANH.build()
    model.get_parameter("4.weight").data.fill_(3e38)
    refused("batch: the gradient of parameter '0.weight' has", model, "batch", batch=BATCH)


def test_one_shot_batch_exactly_if_it_is_read() -> None:
    refused("batch: this checkpoint reads gradients; pass batch=", TANH.build(), "batch")
    refused("batch: this checkpoint reads weights alone", TANH.build(), batch=BATCH)


@pytest.mark.parametrize("passes", [0, -1, 1.0, True, "2"])
def test_one_shot_passes(passes: Any) -> None:
    refused(
        rf"passes: got {re.escape(repr(passes))}, expected a whole number from 1", TANH.build(), passes=passes
    )


def test_one_shot_accept_without_a_number() -> None:
    refused("accept returned NoneType, expected one number", TANH.build(), accept=lambda model: None)


def test_one_shot_example_input_that_does_not_fit() -> None:
    refused("example_input: Sequential does not take", TANH.build(), example_input=torch.zeros(1, 3))


def test_one_shot_without_copy_says_so() -> None:
    model = TANH.build()
    model[0].note = (model[0].weight * 2).sum()  # a non-leaf tensor: deepcopy refuses it
    with pytest.raises(ValueError, match=r"deepcopy failed on Sequential .* pass inplace=True"):
        optimizer().one_shot(model)
    optimizer().one_shot(model, inplace=True)


def test_one_shot_without_family_or_problem_says_what_to_pass() -> None:
    metanet = make("test-scale", SPEC)
    with pytest.raises(ValueError, match=r"knows no family.*pass a tensor"):
        ScaleGMNOptimizer(metanet).one_shot(TANH.build())
    reads = make("test-scale", SPEC, conditions=["batch"])
    with pytest.raises(ValueError, match="knows no problem"):
        ScaleGMNOptimizer(reads, family=TANH).one_shot(TANH.build(), batch=BATCH)
    with pytest.raises(ValueError, match="knows no family to compute gradients"):
        ScaleGMNOptimizer(reads, problem=PROBLEM).one_shot_params(params_of(TANH.build()), batch=BATCH)


def test_one_shot_accept_has_to_be_callable() -> None:
    refused(r"accept: got 'loss', expected a callable", TANH.build(), accept="loss")


@pytest.mark.parametrize("flag", ["inplace", "return_report"])
@pytest.mark.parametrize("value", ["no", 1, None])
def test_one_shot_flag_that_is_no_bool(flag: str, value: Any) -> None:
    refused(f"{flag}: got {value!r}, expected True or False", TANH.build(), **{"inplace": False, flag: value})


def test_one_shot_example_input_without_values() -> None:
    refused("example_input: got NaN", TANH.build(), example_input=torch.full((1, 40), torch.nan))
    refused(
        r"example_input: .* \[0, 40\], expected at least one", TANH.build(), example_input=torch.zeros(0, 40)
    )


def test_one_shot_params_inside_of_vmap() -> None:
    params = {name: torch.stack([p, p]) for name, p in params_of(TANH.build()).items()}
    with pytest.raises(ValueError, match=r"params: got tensors inside torch.vmap.* leading axis"):
        torch.vmap(optimizer().one_shot_params)(params)


def test_one_shot_params_inside_of_grad() -> None:
    params = params_of(TANH.build())
    with pytest.raises(ValueError, match=r"params: got tensors inside .* another transform of torch.func"):
        torch.func.grad(lambda p: optimizer().one_shot_params(p)["0.weight"].sum())(params)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_from_pretrained_device_that_is_not_there(tmp_path: Path) -> None:
    folder = optimizer().save_pretrained(tmp_path / "one")
    with pytest.raises(
        ValueError, match=r"^device: got 'cuda', which PyTorch cannot use .* pass 'cpu'"
    ) as caught:
        ScaleGMNOptimizer.from_pretrained(folder, device="cuda")
    assert "\n" not in str(caught.value)


def rounds(spec: SymmetrySpec, network: nn.Module) -> Metanet:
    shapes = {name: list(p.shape) for name, p in network.named_parameters()}
    return make("rounds", spec, shapes=shapes, channels=2, hidden=4)


@pytest.mark.parametrize("width", [16, 31, 33, 64])
def test_one_shot_rounds_refuse_other_hidden_widths(width: int) -> None:
    opt = ScaleGMNOptimizer(rounds(SPEC, TANH.build()), family=TANH, problem=PROBLEM)
    model = make_family("mlp", widths=(40, width, 32, 10)).build()
    before = params_of(model)
    for call in (
        lambda: opt.one_shot(model, batch=BATCH, inplace=True),
        lambda: opt.one_shot_params(params_of(model), batch=BATCH),
    ):
        with pytest.raises(
            FamilyMismatchError, match=rf"other hidden widths .* has {width} units, the family 32"
        ):
            call()
    torch.testing.assert_close(params_of(model), before, rtol=0, atol=0)


def test_one_shot_buffers_along_hidden_units_are_refused() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(40, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10)).eval()

    spec = extract(build(), torch.zeros(2, 40))
    opt = ScaleGMNOptimizer(make("test-scale", spec))
    with pytest.raises(
        ValueError, match=r"buffers 1.running_mean, 1.running_var hold numbers of each hidden unit"
    ):
        opt.one_shot(build(), example_input=torch.zeros(2, 40))


@pytest.mark.parametrize("width", [16, 31, 33])
def test_checkpoint_refuses_other_hidden_widths_unless_only_better_is_taken(
    width: int, tmp_path: Path
) -> None:
    # What shipped checkpoints make of other widths is worse than a short training.
    optimizer().save_pretrained(tmp_path / "saved")
    opt = ScaleGMNOptimizer.from_pretrained(tmp_path / "saved")
    model = make_family("mlp", widths=(40, width, 32, 10)).build()
    for call in (lambda: opt.one_shot(model), lambda: opt.one_shot_params(params_of(model))):
        with pytest.raises(FamilyMismatchError, match=rf"has {width} units, the family 32.*accept="):
            call()
    with pytest.warns(OutOfFamilyWarning, match="other hidden widths"):
        same = opt.one_shot(model, accept=lambda net: float(net is not model))
    torch.testing.assert_close(params_of(same), params_of(model), rtol=0, atol=0)
