"""Learned optimizers built on the symmetry of weight space.

Names are imported when they are first used: PyTorch alone takes seconds, and a command's ``--help`` needs
none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from amortopt._version import __version__ as __version__

if TYPE_CHECKING:
    from amortopt import metanets as metanets
    from amortopt import symmetry as symmetry
    from amortopt import testing as testing
    from amortopt.meta.fleet import meta_train as meta_train
    from amortopt.optim.networks import OutOfFamilyWarning as OutOfFamilyWarning
    from amortopt.optim.one_shot import ScaleGMNOptimizer as ScaleGMNOptimizer
    from amortopt.optim.prune import prune as prune
    from amortopt.optim.stepwise import UNFOptimizer as UNFOptimizer
    from amortopt.reading import load as load
    from amortopt.reading import predict as predict
    from amortopt.release import Release as Release
    from amortopt.release import list_shipped as list_shipped
    from amortopt.release import load_release as load_release
    from amortopt.release import save_release as save_release
    from amortopt.symmetry.match import FamilyMismatchError as FamilyMismatchError

__all__ = [
    "FamilyMismatchError",
    "OutOfFamilyWarning",
    "Release",
    "ScaleGMNOptimizer",
    "UNFOptimizer",
    "__version__",
    "list_shipped",
    "load",
    "load_release",
    "meta_train",
    "metanets",
    "predict",
    "prune",
    "save_release",
    "symmetry",
    "testing",
]

_HOME = {
    "FamilyMismatchError": "amortopt.symmetry",
    "OutOfFamilyWarning": "amortopt.optim",
    "ScaleGMNOptimizer": "amortopt.optim",
    "UNFOptimizer": "amortopt.optim",
    "load": "amortopt.reading",
    "meta_train": "amortopt.meta.fleet",
    "prune": "amortopt.optim.prune",
    "predict": "amortopt.reading",
    "Release": "amortopt.release",
    "list_shipped": "amortopt.release",
    "load_release": "amortopt.release",
    "save_release": "amortopt.release",
}


def __getattr__(name: str) -> Any:
    if name in ("metanets", "symmetry", "testing"):
        return importlib.import_module(f"amortopt.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'amortopt' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
