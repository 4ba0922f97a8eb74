"""Networks of libraries: what is measured of one, and the table."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks.symmetry import models_tables
from benchmarks.symmetry.library import LIBRARIES, factories
from benchmarks.symmetry.models import libraries
from benchmarks.symmetry.models_measure import main


class _Sink:
    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}

    def send(self, fields: dict[str, Any]) -> None:
        self.fields |= fields


def _measured(name: str) -> dict[str, Any]:
    sink: Any = _Sink()
    main("written-out", name, {"elements": 1, "probes": 2}, sink)
    return sink.fields


def test_every_library_names_its_networks_without_being_installed() -> None:
    names = Counter(f"{library}_{name}" for library in LIBRARIES for name in factories(library))
    assert len(names) > 230 and set(names.values()) == {1}


def test_a_network_is_extracted_and_proved() -> None:
    fields = _measured("rebasin8_residual_mlp")
    assert fields["proof"]["holds"] and fields["moved_share"] > 0.9 and "error" not in fields


def test_a_network_that_cannot_be_made_is_an_error_of_its_record() -> None:
    assert _measured("no_such_network")["error"].startswith("not built: KeyError")


def test_unknown_libraries_are_named() -> None:
    with pytest.raises(ValueError, match="got keras, expected all or some of timm"):
        libraries("keras")


def test_what_holds_weights_back_is_in_the_report() -> None:
    shares = {"tied": 0.25, "unused": 0.05, "held": {"stem.weight, mask": 0.1}}
    result = {"moved_share": 0.6, "unmoved": shares, "extract_seconds": 1.0, "without_rule": {}}
    record = {"result": result, "identity": {"version": "1"}, "made": {"hardware": "a machine"}}
    text = models_tables.markdown({"timm_net": record})
    assert "| 60.0 | 30.0 |" in text and "10.0 % does not move, along stem.weight, mask" in text


def test_a_claim_that_does_not_hold_is_in_the_report() -> None:
    proof = {"holds": False, "larger": [], "probes": 2}
    result = {"moved_share": 1.0, "extract_seconds": 1.0, "without_rule": {}, "proof": proof}
    record = {"result": result, "identity": {"version": "1"}, "made": {"hardware": "a machine"}}
    text = models_tables.markdown({"timm_net": record})
    assert "does not hold" in text and "| timm | 1 | 1 | 0 | 1 |" in " ".join(text.split())
