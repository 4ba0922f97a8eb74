"""benchmarks/weights: what its readers respect, on networks of every task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from amortopt.symmetry import act, extract, sample
from amortopt.tasks import init_many, make_family
from benchmarks.weights import generalisation, inr
from benchmarks.weights.readers import OF_PICTURES, READERS, Networks

CNN: dict[str, Any] = {"name": "cnn", "channels": (4, 3), "input_shape": (1, 8, 8)}
KINDS: dict[str, tuple[dict[str, Any], type[Networks]]] = {
    "siren": ({"name": "siren", "widths": (2, 6, 5, 1), "w0": 30.0}, inr.Networks),
    "cnn-relu": (CNN | {"activation": "relu"}, generalisation.Networks),
    "cnn-tanh": (CNN | {"activation": "tanh"}, generalisation.Networks),
}


@pytest.mark.parametrize(
    ("reader", "kind"),
    [(r, kind) for r in READERS for kind in KINDS if kind == "siren" or r not in OF_PICTURES],
)
def test_reader_respects_what_it_says(reader: str, kind: str) -> None:
    config, networks = KINDS[kind]
    family = make_family(**config)
    spec = extract(family.build(), family.example_input())
    params = {name: p.double() for name, p in init_many(family.build, range(3)).items()}
    torch.manual_seed(0)
    made = READERS[reader](spec, family, networks.head, networks.swept).double().eval()
    g = sample(spec, generator=torch.Generator().manual_seed(0), batch=3)
    moved = act(spec, g, params, batched=True)
    invariant = torch.allclose(made(moved), made(params), rtol=1e-9, atol=1e-9)
    assert invariant == reader.startswith(("scalegmn", "probed", "picture"))
    unscaled = replace(g, scales={name: torch.ones_like(q) for name, q in g.scales.items()})
    permuted = act(spec, unscaled, params, batched=True)
    assert torch.allclose(made(permuted), made(params), rtol=1e-9, atol=1e-9) == (reader != "mlp")
