"""Learned optimizers built on the symmetry of weight space.

Names are imported when they are first used: PyTorch alone takes seconds, and a command's ``--help`` needs
none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from amortopt._version import __version__ as __version__

if TYPE_CHECKING:
    from amortopt import symmetry as symmetry
    from amortopt import testing as testing
    from amortopt.checkpoints import list_shipped as list_shipped
    from amortopt.checkpoints import load_release as load_release
    from amortopt.checkpoints import save_release as save_release
    from amortopt.optim.learned import UNFOptimizer as UNFOptimizer
    from amortopt.optim.one_shot import ScaleGMNOptimizer as ScaleGMNOptimizer
    from amortopt.optim.structure import OutOfFamilyWarning as OutOfFamilyWarning
    from amortopt.rule_release import load_rule as load_rule
    from amortopt.rule_release import save_rule as save_rule
    from amortopt.symmetry.match import FamilyMismatchError as FamilyMismatchError

__all__ = [
    "FamilyMismatchError",
    "OutOfFamilyWarning",
    "ScaleGMNOptimizer",
    "UNFOptimizer",
    "__version__",
    "list_shipped",
    "load_release",
    "load_rule",
    "save_release",
    "save_rule",
    "symmetry",
    "testing",
]

_HOME = {
    "FamilyMismatchError": "amortopt.symmetry",
    "OutOfFamilyWarning": "amortopt.optim",
    "ScaleGMNOptimizer": "amortopt.optim",
    "UNFOptimizer": "amortopt.optim",
    "list_shipped": "amortopt.checkpoints",
    "load_release": "amortopt.checkpoints",
    "load_rule": "amortopt.rule_release",
    "save_release": "amortopt.checkpoints",
    "save_rule": "amortopt.rule_release",
}


def __getattr__(name: str) -> Any:
    if name in ("symmetry", "testing"):
        return importlib.import_module(f"amortopt.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'amortopt' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
