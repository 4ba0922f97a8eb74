from __future__ import annotations

import pytest
import torch
from torch import nn

from amortopt.metanets.update_rule.layout import CLASSES, UpdateLayout
from amortopt.symmetry import Axis, Block, NeuronGroup, SymmetrySpec, extract
from tests.cases import ALL_CASES, Case
from tests.metanets.update_rule.common import extracted, layout_of, random_params


@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.name)
def test_layout_packs_every_parameter_once(case: Case) -> None:
    _, _, layout = extracted(case)
    numbers = iter(range(layout.size))
    params = {
        name: torch.tensor([next(numbers) for _ in range(shape.numel())]).reshape(shape)
        for name, shape in ((n, torch.Size(s)) for n, s in layout.shapes.items())
    }
    flat = layout.pack(params)
    assert flat.sort().values.tolist() == list(range(layout.size))
    back = layout.unpack(flat)
    assert list(back) == list(params)
    assert all(torch.equal(back[name], value) for name, value in params.items())


def test_layout_keeps_batch_axes() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    layout = layout_of(network, extract(network, torch.zeros(1, 3)))
    params = random_params(layout, 0, 5, 2)
    flat = layout.pack(params)
    assert flat.shape == (5, 2, 3 * 4 + 4 + 4 * 2 + 2)
    assert all(torch.equal(value, params[name]) for name, value in layout.unpack(flat).items())


def test_layout_treats_blocks_of_one_shape_and_class_in_one_bucket() -> None:
    layers = [module for _ in range(25) for module in (nn.Linear(6, 6), nn.ReLU())]
    network = nn.Sequential(*layers)
    layout = layout_of(network, extract(network, torch.zeros(1, 6)))
    kinds = [(CLASSES[bucket.kind], bucket.shape, bucket.count) for bucket in layout.buckets]
    # The last one writes the outputs.
    assert kinds == [("vector", (6,), 25), ("table", (6, 6), 1), ("matrix", (6, 6), 24)]


def test_layout_takes_parameters_that_the_spec_lacks() -> None:
    layout = UpdateLayout(SymmetrySpec((), ()), {"a": (2, 3), "b": ()})
    params = random_params(layout, 0)
    assert layout.size == 7
    assert all(torch.equal(value, params[name]) for name, value in layout.unpack(layout.pack(params)).items())


def test_layout_refuses_a_spec_of_another_model() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    spec = extract(network, torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"spec: it is about 2\.weight, 2\.bias, which the model lacks"):
        UpdateLayout(spec, {"0.weight": (4, 3), "0.bias": (4,)})
    wider = {"0.weight": (5, 3), "0.bias": (5,), "2.weight": (2, 5), "2.bias": (2,)}
    with pytest.raises(ValueError, match=r"block '0\.weight' has shape \(4, 3\).*has shape \(5, 3\)"):
        UpdateLayout(spec, wider)
    turned = {"0.weight": (3, 4), "0.bias": (4,), "2.weight": (2, 4), "2.bias": (2,)}
    with pytest.raises(ValueError, match=r"block '0\.weight' has shape \(4, 3\).*has shape \(3, 4\)"):
        UpdateLayout(spec, turned)


def test_layout_refuses_blocks_that_leave_elements_out() -> None:
    group = NeuronGroup("h", 2, "none", True, "here")
    spec = SymmetrySpec((group,), (Block("w", (Axis("h", 1, 2),), ((0, 2),)),))
    with pytest.raises(ValueError, match="the blocks of 'w' cover 2 of its 3 elements"):
        UpdateLayout(spec, {"w": (3,)})


def test_layout_refuses_other_params() -> None:
    layout = UpdateLayout(SymmetrySpec((), ()), {"a": (2, 3)})
    with pytest.raises(ValueError, match=r"params: got none for 'a'"):
        layout.pack({})
    with pytest.raises(ValueError, match=r"params: got \(3, 2\) for 'a'"):
        layout.pack({"a": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match="flat: got 5 elements, expected 6"):
        layout.unpack(torch.zeros(5))
    with pytest.raises(ValueError, match="shapes: got no parameters"):
        UpdateLayout(SymmetrySpec((), ()), {})
