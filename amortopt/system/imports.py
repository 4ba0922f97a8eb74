"""Classes and functions that a user names by import path."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def import_named(name: str, argument: str) -> Any:
    """Import what a user has named, from the current folder too.

    This runs the code of the module. Give it only what the user has typed, never text of a checkpoint.

    Args:
        name: ``package.module:name``.
        argument: What the name was given as, to begin a message with.

    Raises:
        ValueError: It is no such path, or cannot be imported.
    """
    path, colon, attribute = name.partition(":")
    parts = [*path.split("."), *attribute.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ValueError(
            f"{argument}: got {name!r}, expected package.module:name, such as torchvision.models:resnet18"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        target: Any = importlib.import_module(path)
    except Exception as error:
        # A missing module is a wrong name, or something that the file itself imports.
        absent = isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{error.name}.")
        wrong = f"got {name!r}, but there is no module {path!r}; check the name and what is installed"
        failed = f"importing {path} failed, in its own code: {type(error).__name__}: {error}"
        raise ValueError(f"{argument}: {wrong if absent else failed}") from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise ValueError(f"{argument}: got {name!r}, but {path} has no {attribute!r}; check the name")
        target = getattr(target, part)
    return target


def import_path(target: Callable[..., Any]) -> str:
    """``package.module:name`` of a class or function, as text; unique only where a module holds the name."""
    name = getattr(target, "__qualname__", type(target).__qualname__)
    return f"{getattr(target, '__module__', '') or type(target).__module__}:{name}"
