"""Families build ordinary modules; initial params are each a function of their own seed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from amortopt.functional.networks import apply, unstack
from amortopt.symmetry import extract
from amortopt.tasks import Family, family_names, init_many, make_family

CASES: list[dict[str, Any]] = [
    {"name": "mlp"},
    {"name": "mlp", "activation": "relu", "widths": [784, 16, 10], "input_shape": [1, 28, 28]},
    {"name": "cnn"},
    {"name": "cnn", "activation": "relu", "input_shape": [1, 16, 16]},
    {"name": "cnn", "activation": "sin", "channels": [4], "num_classes": 3, "kernel_size": 5, "stride": 1},
    {"name": "siren", "widths": [2, 8, 8, 10], "w0": 20.0},
    {"name": "char_rnn", "embedding": 3, "hidden": 5, "num_classes": 10, "input_shape": [4]},
    {"name": "transformer", "width": 4, "heads": 2, "num_classes": 10, "input_shape": [4]},
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(str(v) for v in case.values()))
def family(request: pytest.FixtureRequest) -> Family:
    return make_family(**request.param)


def test_family_config_is_json_and_makes_the_same_family(family: Family) -> None:
    assert make_family(**json.loads(json.dumps(family.to_config()))) == family


def test_family_network_takes_the_example_input(family: Family) -> None:
    module = family.build()
    assert not module.training
    assert family.example_input().shape == (1, *family.input_shape)
    positions = () if family.example_input().is_floating_point() else family.input_shape
    assert module(family.example_input()).shape == (1, *positions, getattr(family, "num_classes", 10))


def test_mlp_is_a_plain_sequential() -> None:
    module = make_family("mlp").build()
    assert [n for n, _ in module.named_parameters()] == [
        f"{i}.{p}" for i in (0, 2, 4) for p in ("weight", "bias")
    ]
    assert isinstance(module, nn.Sequential) and isinstance(module[1], nn.Tanh)


def test_cnn_of_the_small_cnn_zoo_has_its_4970_weights() -> None:
    module = make_family("cnn", input_shape=(1, 16, 16)).build()
    assert sum(p.numel() for p in module.parameters()) == 4970


def test_family_names_are_all_makeable() -> None:
    makeable = [name for name in family_names() if name != "module"]  # that one needs its module
    assert [make_family(name).name for name in makeable] == makeable


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        (
            {"name": "rnn"},
            "unknown family 'rnn', expected one of arithmetic_rnn, char_rnn, cnn, mlp, module, siren, tr",
        ),
        ({"name": "mlp", "width": 3}, r"width: family 'mlp' has no such argument; it has activation, widths"),
        ({"name": "mlp", "activation": "tan"}, "activation: got 'tan', expected one of tanh, relu"),
        ({"name": "mlp", "widths": (40,)}, "widths: got"),
        ({"name": "mlp", "widths": (40, 0, 10)}, "widths: got"),
        ({"name": "mlp", "widths": (40, 10), "input_shape": (3, 4)}, "expected 12 for input_shape"),
        ({"name": "siren", "widths": (2, 1)}, "widths: got"),
        ({"name": "siren", "w0": 0.0}, "w0: got 0.0, expected a positive angular frequency"),
        ({"name": "siren", "activation": "tanh"}, "activation: got 'tanh', expected 'sin'"),
        ({"name": "cnn", "input_shape": (40,)}, "input_shape: got"),
        ({"name": "cnn", "input_shape": (1, 2, 3, 4)}, "input_shape: got"),
        ({"name": "cnn", "channels": ()}, "channels: got"),
        ({"name": "char_rnn", "hidden": 0}, "embedding, hidden, num_classes: got"),
        ({"name": "char_rnn", "activation": "sinh"}, "activation: got 'sinh'"),
        ({"name": "char_rnn", "input_shape": (4, 4)}, r"input_shape: got \(4, 4\), expected \(length,\)"),
        ({"name": "transformer", "width": 32, "heads": 5}, "heads: got 5 for width 32, expected a divisor"),
    ],
)
def test_make_family_bad_input_is_named(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_family(**kwargs)


# What every network starts with: gains and shifts of layer norms, the identity of the recurrent matrix.
FIXED = ("norm", "recurrent")


def test_init_many_networks_depend_on_their_own_seed_only(family: Family) -> None:
    together = unstack(init_many(family.build, [3, 1, 2], [0.5, 1.0, 2.0]))
    alone = unstack(init_many(family.build, [2], [2.0]))[0]
    for name, value in alone.items():
        assert torch.equal(value, together[2][name])
        assert torch.equal(value, together[0][name]) == any(part in name for part in FIXED)


def test_init_many_has_pytorchs_range_or_the_layers_own(family: Family) -> None:
    params = init_many(family.build, range(50), 0.5)
    layers = dict(family.build().named_modules())
    for name, value in params.items():
        layer = layers[name.rpartition(".")[0]]
        if isinstance(layer, nn.Embedding):
            assert value.std().item() == pytest.approx(0.5, rel=0.1)
            assert value.abs().max() > 1
        elif not any(part in name for part in FIXED):
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)
            bound = 0.5 * weight[0].numel() ** -0.5
            if name.endswith("weight"):
                bound = 0.5 * float(getattr(layer, "init_bound", 2 * bound))
            assert value.abs().max() <= bound
            assert value.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_init_many_starts_the_recurrent_matrix_as_the_identity() -> None:
    params = init_many(make_family("char_rnn", hidden=5).build, [0, 1], 3.0)
    assert torch.equal(params["recurrent"], torch.eye(5).expand(2, 5, 5))


def test_init_many_runs_in_the_family(family: Family) -> None:
    module = family.build()
    one = unstack(init_many(family.build, [0]))[0]
    assert [(n, p.shape) for n, p in module.named_parameters()] == [(n, p.shape) for n, p in one.items()]
    assert apply(module, one, family.example_input()).isfinite().all()


def test_init_many_keeps_what_is_not_linear_or_convolutional() -> None:
    params = init_many(lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), [0, 1], 3.0)
    assert torch.equal(params["1.weight"], torch.ones(2, 4)) and torch.equal(
        params["1.bias"], torch.zeros(2, 4)
    )


def test_init_many_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    init_many(make_family("mlp").build, [0, 1])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("seeds", "scale"), [([], 1.0), ([1, 2], [1.0])])
def test_init_many_needs_a_scale_per_seed(seeds: list[int], scale: Any) -> None:
    with pytest.raises(ValueError, match="scales for"):
        init_many(make_family("mlp").build, seeds, scale)


def test_siren_inputs_of_every_sine_have_a_spread_of_about_one() -> None:
    family = make_family("siren", widths=(2, 256, 256, 256, 1))
    x = 2 * torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) - 1
    (params,) = unstack(init_many(family.build, [0]))
    network = family.build().requires_grad_(False)
    network.load_state_dict(params)
    for layer in network.children():
        x = layer(x)
        if isinstance(layer, nn.Linear) and layer.in_features == layer.out_features:
            assert 0.8 < 30 * float((x - layer.bias).std()) < 1.2


def test_siren_scales_name_the_layers_that_a_sine_follows() -> None:
    family = make_family("siren", widths=(2, 4, 4, 1), w0=20.0)
    assert family.scales() == {f"{i}.{kind}": 1 / 20 for i in (0, 2) for kind in ("weight", "bias")}


def test_siren_of_another_frequency_is_another_function() -> None:
    specs = [extract(make_family("siren", w0=w0).build(), torch.zeros(1, 2)) for w0 in (20.0, 30.0)]
    assert specs[0].operations != specs[1].operations
