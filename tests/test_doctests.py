"""Every example in a docstring runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import amortopt

MODULES = [
    "amortopt",
    *(m.name for m in pkgutil.walk_packages(amortopt.__path__, "amortopt.") if "__main__" not in m.name),
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
