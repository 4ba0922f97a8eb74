"""Releases for tests that need some: untrained, so that a metanet of them changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from amortopt import Release, save_release
from amortopt.metanets import L1Range, UNFRule, make
from amortopt.symmetry import extract
from amortopt.tasks import make_family, make_problem, make_problem_family
from tests.optim.metanets import PROBLEM, SPEC, TANH

FILES = ["README.md", "config.json", "model.safetensors"]
KINDS = ["metanet", "functional", "rule"]


def make_release(kind: str, **changed: Any) -> Release:
    """A small release of a kind, with every field filled in."""
    fields: dict[str, Any] = {
        "name": f"a-{kind}",
        "problems": [{"problem": PROBLEM, "family": TANH.to_config()}],
        "recipe": {"steps": 20, "optimizer": {"lr": 0.1}},
        "seeds": {"meta": 1},
        "results": {
            "test accuracy": 0.6175,
            "after": {"mean": 0.61, "max": 0.64},
            "before": {"mean": 0.26},
        },
        "commit": "0123abc",
    }
    if kind == "metanet":
        fields["module"] = make("test-scale", SPEC, start=0.5, conditions=["l1"])
        fields |= {"l1_range": L1Range(1e-4, 1e-2), "passes": 3}
    elif kind == "functional":
        fields["module"] = make(
            "unf_functional", SPEC, head={"name": "classes", "count": 2}, width=2, layers=1, hidden=4
        )
    else:
        fields["module"] = UNFRule(width=4, depth=1)
    return Release(**(fields | changed))


def untrained_release(root: Path, activation: str = "tanh", **config: object) -> Path:
    """A folder ``root / mnist1d-mlp-ACTIVATION``."""
    family = make_family("mlp", activation=activation)
    name = f"mnist1d-mlp-{activation}"
    torch.manual_seed(0)
    metanet = make(
        "scalegmn",
        extract(family.build(), family.example_input()),
        **{"width": 8, "channels": 2, "layers": 1, "heads": 2, **config},
    )
    trained_on = {"problem": make_problem("mnist1d").to_config(), "family": family.to_config()}
    return save_release(root / name, Release(metanet, name, [trained_on]))


def untrained_reader(root: Path, activation: str = "tanh") -> Path:
    """A folder ``root / curves-mlp-ACTIVATION``: rounds that have learned nothing."""
    family = make_family("mlp", activation=activation)
    name = f"curves-mlp-{activation}"
    torch.manual_seed(0)
    network = family.build()
    shapes = {key: list(p.shape) for key, p in network.named_parameters()}
    metanet = make("rounds", extract(network, family.example_input()), shapes=shapes, channels=2, hidden=4)
    trained_on = {"problem": make_problem_family("curves").to_config(), "family": family.to_config()}
    return save_release(root / name, Release(metanet, name, [trained_on]))
