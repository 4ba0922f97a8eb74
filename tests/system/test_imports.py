"""What a user names by import path."""

from __future__ import annotations

import pytest
from torch import nn

from amortopt.system.imports import import_named, import_path


def test_class_is_found_by_the_path_that_names_it() -> None:
    assert import_named(import_path(nn.Linear), "module") is nn.Linear


@pytest.mark.parametrize("name", ["torch.nn", "torch.nn:", "a b:c", "no.such.module:Net", "torch.nn:NoSuch"])
def test_what_cannot_be_imported_is_named_with_the_argument(name: str) -> None:
    with pytest.raises(ValueError, match=r"--family.module: got"):
        import_named(name, "--family.module")
