"""What a checkpoint was trained for: L1 strengths and passes, from the file to the call."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from amortopt.functional.networks import params_of
from amortopt.metanets import L1Range
from amortopt.optim import OutOfRangeWarning, ScaleGMNOptimizer
from tests.optim.metanets import TANH, optimizer

RANGE = L1Range(1e-5, 1e-2)


@pytest.mark.parametrize("l1", [0.0, 1e-5, 1e-3, 1e-2, [0.0, 1e-2], None])
def test_strengths_that_were_trained_do_not_warn(l1: Any) -> None:
    models = [TANH.build(), TANH.build()]
    optimizer("l1", l1_range=RANGE).one_shot(models, l1=l1)


def test_strengths_drawn_in_float32_are_within() -> None:
    ends = torch.tensor([RANGE.low, RANGE.high]).log().exp()
    assert not RANGE.outside(torch.cat([ends, ends.double().float(), torch.zeros(1)])).any()


@pytest.mark.parametrize("l1", [9e-6, 0.011, 1.0, [0.0, 0.5]])
def test_other_strengths_warn_once_with_the_range(l1: Any) -> None:
    models, opt = [TANH.build(), TANH.build()], optimizer("l1", l1_range=RANGE)
    for call in (
        lambda: opt.one_shot(models, l1=l1),
        lambda: opt.one_shot_params({k: torch.stack([p, p]) for k, p in params_of(models[0]).items()}, l1=l1),
    ):
        with pytest.warns(OutOfRangeWarning, match=r"trained for 0 and 1e-05 to 0\.01") as caught:
            call()
        assert len(caught) == 1 and caught[0].filename == __file__


def test_zero_warns_where_it_was_not_trained() -> None:
    opt = optimizer("l1", l1_range=L1Range(1e-4, 1e-2, zero=False))
    for l1 in (None, 0.0):
        with pytest.warns(OutOfRangeWarning, match=r"l1: got 0, .*trained for 0\.0001 to 0\.01"):
            opt.one_shot(TANH.build(), l1=l1)


def test_unknown_range_does_not_warn_and_bad_strengths_stay_errors() -> None:
    optimizer("l1").one_shot(TANH.build(), l1=7.0)
    for bad in (-1e-3, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"l1: got .* expected finite strengths >= 0"):
            optimizer("l1", l1_range=RANGE).one_shot(TANH.build(), l1=bad)


def test_warning_as_an_error_changes_nothing() -> None:
    model = TANH.build()
    before = params_of(model)
    with warnings.catch_warnings(), pytest.raises(OutOfRangeWarning):
        warnings.simplefilter("error")
        optimizer("l1", l1_range=RANGE).one_shot(model, l1=1.0, inplace=True)
    torch.testing.assert_close(params_of(model), before, rtol=0, atol=0)


def test_passes_of_training_are_the_default() -> None:
    model = TANH.build()
    twice = params_of(optimizer().one_shot(model, passes=2))
    trained = optimizer(passes=2)
    torch.testing.assert_close(params_of(trained.one_shot(model)), twice, rtol=0, atol=0)
    torch.testing.assert_close(trained.one_shot_params(params_of(model)), twice, rtol=0, atol=0)
    once = params_of(optimizer().one_shot(model))
    torch.testing.assert_close(params_of(trained.one_shot(model, passes=1)), once, rtol=0, atol=0)
    with pytest.raises(ValueError, match="passes: got 0"):
        optimizer(passes=0)


def test_checkpoint_keeps_range_and_passes(tmp_path: Path) -> None:
    first = optimizer("l1", l1_range=RANGE, passes=3)
    first.save_pretrained(tmp_path / "one")
    second = ScaleGMNOptimizer.from_pretrained(tmp_path / "one")
    second.save_pretrained(tmp_path / "two")
    for opt in (second, ScaleGMNOptimizer.from_pretrained(tmp_path / "two")):
        assert opt.l1_range == RANGE and opt.passes == 3
        assert "l1 trained for 0 and 1e-05 to 0.01; 3 passes" in repr(opt)
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["l1_range"] == {"low": 1e-5, "high": 1e-2, "zero": True} and config["passes"] == 3
    card = (tmp_path / "two" / "README.md").read_text()
    assert "trained for 0 and 1e-05 to 0.01" in card and "one_shot(model, l1=0.00032)" in card


@pytest.mark.parametrize("folder", [3, None, ["a"]], ids=str)
def test_save_pretrained_says_that_it_takes_a_path(folder: Any) -> None:
    with pytest.raises(ValueError, match=f"folder: got {type(folder).__name__}, expected a path"):
        optimizer().save_pretrained(folder)
