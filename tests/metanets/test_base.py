"""The registry of metanets."""

from __future__ import annotations

import pytest

from amortopt.metanets import make_metanet, metanet_names, register_metanet
from tests.optim.metanets import SPEC, Same, Scale


def test_make_metanet_uses_its_arguments() -> None:
    metanet = make_metanet("test-scale", SPEC, start=0.25, reads=["l1"])
    assert isinstance(metanet, Scale)
    assert metanet.inputs == {"l1"} and metanet.gains[0].item() == 0.25


def test_make_metanet_from_its_own_config_is_equal() -> None:
    metanet = make_metanet("test-scale", SPEC, start=0.25, reads=["l1"])
    again = make_metanet(metanet.name, metanet.spec, **metanet.config)
    assert again.config == metanet.config and again.inputs == metanet.inputs


def test_make_metanet_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown metanet 'no-such'.*test-same, test-scale"):
        make_metanet("no-such", SPEC)


def test_make_metanet_unknown_argument_lists_those_there_are() -> None:
    with pytest.raises(
        ValueError, match="strat: metanet 'test-scale' has no such argument; it has start, reads"
    ):
        make_metanet("test-scale", SPEC, strat=1)


def test_register_metanet_refuses_a_taken_name() -> None:
    with pytest.raises(ValueError, match="'test-same' is already Same"):
        register_metanet("test-same")(Same)
    assert "test-same" in metanet_names()
