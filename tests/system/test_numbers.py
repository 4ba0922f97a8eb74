"""Checks of numbers that users give."""

from __future__ import annotations

from typing import Any

import pytest

from amortopt.system.numbers import check_counts


@pytest.mark.parametrize("value", [0, -1, 1.0, True, False, "1", None])
def test_what_is_no_number_of_things_is_refused_by_its_name(value: Any) -> None:
    check_counts(width=3)
    with pytest.raises(ValueError, match=f"^width: got {value!r}, expected a whole number of at least 1$"):
        check_counts(depth=1, width=value)
