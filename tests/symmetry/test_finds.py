from __future__ import annotations

import pytest

from amortopt.symmetry import extract
from tests.symmetry.finds import DO_NOT_RUN, FINDS, SHOW_NOTHING, TRAINING_ONLY, Build

pytestmark = [
    pytest.mark.filterwarnings("ignore::amortopt.symmetry.UnknownOperationWarning"),
    pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter:UserWarning"),
]


@pytest.mark.parametrize("build", FINDS.values(), ids=FINDS)
def test_finds_hold_in_both_modes(build: Build) -> None:
    net, x = build()
    proof = extract(net, x).verify(net, x, probes=0, elements=3)
    assert proof.holds, proof
    assert set(proof.errors) == {"eval", "training"}


@pytest.mark.parametrize("build", TRAINING_ONLY.values(), ids=TRAINING_ONLY)
def test_another_function_in_training_mode_is_noticed(build: Build) -> None:
    net, x = build()
    spec = extract(net, x)
    proof = spec.verify(net, x, probes=0, elements=3, modes=("eval",))
    assert proof.holds, proof
    assert not spec.verify(net, x, probes=0, elements=3).holds


@pytest.mark.parametrize("build", SHOW_NOTHING.values(), ids=SHOW_NOTHING)
def test_without_an_output_to_compare_nothing_is_shown(build: Build) -> None:
    net, x = build()
    proof = extract(net, x).verify(net, x, probes=0, elements=3)
    assert not proof.holds
    assert not proof.errors


@pytest.mark.parametrize("build", DO_NOT_RUN.values(), ids=DO_NOT_RUN)
def test_what_does_not_run_is_said_in_one_line(build: Build) -> None:
    net, x = build()
    spec = extract(net, x)
    with pytest.raises(ValueError, match="does not run on the example input") as error:
        spec.verify(net, x, probes=0, elements=3)
    assert "\n" not in str(error.value)
