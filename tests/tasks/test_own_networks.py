"""Networks of a user's class: known by name, never imported because of a name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from amortopt.tasks import ModuleFamily, make_family, register_network


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))


def test_registered_class_is_built_by_its_path() -> None:
    path = register_network(Net)
    assert path == f"{__name__}:Net"
    family = make_family("module", module=path, input_shape=[4])
    assert isinstance(family.build(), Net) and not family.build().training
    assert make_family(**family.to_config()) == family


def test_a_name_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_nets.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    family = ModuleFamily("evil_nets:Net", (4,))
    with pytest.raises(ValueError, match=r"nothing is imported because a file names it; .*register_network"):
        family.build()
    assert "evil_nets" not in sys.modules


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (nn.Linear(2, 2), "build_network: got Linear, expected a class or function"),
        (nn.Linear, r"build_network: .*:Linear cannot be called without arguments"),
        (dict, "build_network: builtins:dict makes dict, expected an nn.Module"),
        (None, "build_network: got NoneType"),
    ],
)
def test_what_makes_no_network_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_network(build)


def test_family_without_a_path_or_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"module: got 'Net', expected package\.module:name"):
        ModuleFamily("Net", (4,))
    with pytest.raises(ValueError, match="input_shape"):
        ModuleFamily("nets:Net", ())
