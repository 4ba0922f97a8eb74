"""Checkpoints with untrained metanets, which change nothing, for tests that need some checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from amortopt.metanets import make_metanet
from amortopt.release.metanet import save_release
from amortopt.symmetry import extract
from amortopt.tasks import make_family, make_problem


def untrained_release(root: Path, activation: str = "tanh", **config: object) -> Path:
    """A folder ``root / mnist1d-mlp-ACTIVATION``."""
    family = make_family("mlp", activation=activation)
    name = f"mnist1d-mlp-{activation}"
    torch.manual_seed(0)
    metanet = make_metanet(
        "scalegmn",
        extract(family.build(), family.example_input()),
        **{"width": 8, "channels": 2, "layers": 1, "heads": 2, **config},
    )
    return save_release(
        root / name,
        metanet,
        name=name,
        problem=make_problem("mnist1d").to_config(),
        family=family.to_config(),
        recipe={},
        seeds={},
        results={},
    )
