"""What one_shot warns of, with statistics of a family that is measured here."""

from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import params_of
from amortopt.metanets import Conditions, Metanet, make
from amortopt.optim import OutOfFamilyWarning, ScaleGMNOptimizer
from amortopt.release import FamilyStatistics, load_release
from amortopt.tasks import make_problem_family
from tests.optim.metanets import NONE, PROBLEM, SPEC, TANH

CURVES = make_problem_family("curves")
X, Y = (part[0] for part in (lambda e: (e.x, e.y))(CURVES.draw("test", 0, 1, 200, 1)[0]))


def rounds_optimizer(rounds: int = 2, portion: int | None = None) -> ScaleGMNOptimizer:
    torch.manual_seed(0)
    shapes = {name: list(p.shape) for name, p in TANH.build().named_parameters()}
    metanet = make("rounds", SPEC, shapes=shapes, rounds=rounds, portion=portion, channels=2, hidden=4)
    with torch.no_grad():
        for name, p in metanet.named_parameters():
            if name.endswith("slope"):  # step sizes depend on the number of examples
                p.add_(0.1 * torch.randn_like(p))
    return ScaleGMNOptimizer(metanet, family=TANH, problem=CURVES.to_config(), name="reader")


@pytest.fixture(scope="module")
def opt() -> ScaleGMNOptimizer:
    optimizer = rounds_optimizer()
    statistics = optimizer.measure_statistics(problems=64)
    assert statistics is not None and statistics.problems == 64
    return optimizer


def warned(opt: ScaleGMNOptimizer, x: Tensor, y: Tensor, model: nn.Module | None = None) -> str:
    torch.manual_seed(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.one_shot(TANH.build() if model is None else model, batch=(x, y))
    return "\n".join(str(each.message) for each in caught)


def test_limits_of_fewer_rounds_that_read_more_do_not_warn() -> None:
    """Statistics are of portions of all rounds; a gradient of the whole batch is smaller."""
    opt = rounds_optimizer(6, 10)
    opt.measure_statistics(problems=64, fewest=50)
    assert opt.statistics is not None and "gradient 0" in opt.statistics.bounds
    for rounds in (1, 2, 6):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for k in range(4):
                at = slice(50 * k, 50 * k + 50)
                opt.one_shot(TANH.build(), batch=(X[at], Y[at]), rounds=rounds)
        assert not [each for each in caught if "gradient" in str(each.message)], rounds


@pytest.mark.parametrize("count", [1, 7, 24])
def test_limits_of_far_fewer_examples_say_so_and_nothing_else(count: int) -> None:
    opt = rounds_optimizer()
    opt.measure_statistics(problems=64, fewest=50)
    text = warned(opt, X[:count], Y[:count])
    assert f"{count} example" in text and "the checkpoint was made for 50 and more" in text
    assert "have at least" not in text and "family" not in text.replace("outside of", "")


def test_limits_problem_of_the_family_does_not_warn(opt: ScaleGMNOptimizer) -> None:
    for n in (50, 200):
        assert "family" not in warned(opt, X[:n], Y[:n])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x: 5 * x, r"standard deviation 5.*standardise with x = \(x - x.mean\(\)\) / x.std\(\)"),
        (lambda x: x + 2, "inputs have mean 2.*family has mean 0.0 and 1.0"),
        (lambda x: torch.randn_like(x), "neighbouring numbers|kurtosis|root mean square"),
    ],
    ids=["times 5", "shifted", "noise"],
)
def test_limits_other_inputs_are_named(opt: ScaleGMNOptimizer, change: Any, text: str) -> None:
    torch.manual_seed(0)
    x = change(X)
    with pytest.warns(OutOfFamilyWarning, match=text) as caught:
        opt.one_shot([TANH.build(), TANH.build()], batch=(x, Y))
    named = [each for each in caught if "inputs have" in str(each.message) or "input" in str(each.message)]
    assert len(named) == 1 and named[0].filename == __file__


def test_limits_loss_of_random_labels_is_named() -> None:
    # Bounds by hand, because an untrained metanet learns nothing from labels.
    optimizer = rounds_optimizer()
    # The loss of an untrained metanet here is 1.81, whatever the seed of the network.
    optimizer.statistics = FamilyStatistics((50,), {"loss 2": ((0.5, 1.0, 1.5),)}, 100)
    assert "the loss after the pass on 200 examples is 1.8" in warned(optimizer, X, Y)


def test_limits_missing_class_is_reported_and_no_error(opt: ScaleGMNOptimizer) -> None:
    keep = Y != 3
    with pytest.warns(OutOfFamilyWarning, match=r"classes in the batch: 9, the family's .* at least 10"):
        _, report = opt.one_shot(TANH.build(), batch=(X[keep], Y[keep]), return_report=True)
    assert report.networks[0].notes == ("no example of class 3 is in the batch",)


def test_limits_one_example_works() -> None:
    _, report = rounds_optimizer().one_shot(TANH.build(), batch=(X[:1], Y[:1]), return_report=True)
    assert report.networks[0].examples == 1 and "no example of classes" in report.networks[0].notes[0]


def test_limits_network_of_another_task_is_named() -> None:
    model = TANH.build()
    with torch.no_grad():
        last = list(model.parameters())[-1]
        last.copy_(-20.0 * torch.nn.functional.one_hot(Y[0], 10))
    always = (X[Y.eq(Y[0])], Y[Y.eq(Y[0])])
    assert "wrong on this batch with confidence" in warned(rounds_optimizer(), *always, model)
    assert "with confidence" not in warned(rounds_optimizer(), *always)


def test_limits_result_worse_than_given_is_named() -> None:
    model = TANH.build()
    with torch.no_grad():
        list(model.parameters())[-1].copy_(20.0 * torch.nn.functional.one_hot(Y[0], 10))
    text = warned(rounds_optimizer(), X[:1], Y[:1], model)
    assert "came out worse than it was on its own batch" in text and "accept='holdout'" in text


def test_limits_warning_as_an_error_changes_nothing(opt: ScaleGMNOptimizer) -> None:
    model = TANH.build()
    before = params_of(model)
    with warnings.catch_warnings(), pytest.raises(OutOfFamilyWarning):
        warnings.simplefilter("error")
        opt.one_shot(model, batch=(5 * X, Y), inplace=True)
    torch.testing.assert_close(params_of(model), before, rtol=0, atol=0)


def test_statistics_are_saved_and_loaded(opt: ScaleGMNOptimizer, tmp_path: Path) -> None:
    again = ScaleGMNOptimizer.from_pretrained(opt.save_pretrained(tmp_path / "one"))
    assert again.statistics is not None and opt.statistics is not None
    assert again.statistics.to_config() == opt.statistics.to_config()
    assert "standard deviation 5" in warned(again, 5 * X, Y)


def test_statistics_are_of_the_numbers_of_examples_that_are_read() -> None:
    statistics = rounds_optimizer().measure_statistics(problems=16, fewest=20, examples=100)
    assert statistics is not None and statistics.sizes == (20, 64, 100)


def test_statistics_may_be_absent(tmp_path: Path) -> None:
    folder = rounds_optimizer().save_pretrained(tmp_path / "one")
    assert json.loads((folder / "config.json").read_text())["statistics"] is None
    assert load_release(folder).statistics is None


@pytest.mark.parametrize(
    "config",
    [
        3,
        {},
        {"sizes": [4, 1], "bounds": {}, "problems": 3},
        {"sizes": [True], "bounds": {}, "problems": 3},
        {"sizes": list(range(1, 100)), "bounds": {}, "problems": 3},
        {"sizes": [1], "bounds": {"mean": [[0, 1]]}, "problems": 3},
        {"sizes": [1], "bounds": {"mean": [[0, 1, "2"]]}, "problems": 3},
        {"sizes": [1], "bounds": {"mean": [[0, float("nan"), 2]]}, "problems": 3},
        {"sizes": [1], "bounds": {"mean": [[2, 1, 0]]}, "problems": 3},
        {"sizes": [1], "bounds": {str(i): [[0, 1, 2]] for i in range(300)}, "problems": 3},
        {"sizes": [1], "bounds": [], "problems": 3},
        {"sizes": [1], "bounds": {}, "problems": "many"},
    ],
    ids=str,
)
def test_statistics_of_other_types_and_sizes_are_refused(config: Any) -> None:
    with pytest.raises(ValueError, match="statistics: got"):
        FamilyStatistics.from_config(config)


def test_statistics_between_sizes_are_interpolated() -> None:
    statistics = FamilyStatistics(
        (1, 100), {"mean": ((-2, 0, 2), (-1, 0, 4)), "classes": ((1, 1, 1), (5, 9, 10))}, 9
    )
    assert statistics.at("mean", 10) == pytest.approx((-1.5, 0, 3))
    assert statistics.at("mean", 10**6) == (-1, 0, 4)
    assert statistics.at("classes", 99) == (1, 1, 1) and statistics.at("classes", 100) == (5, 9, 10)
    assert statistics.at("std", 10) is None


def test_one_shot_from_eight_threads_at_once() -> None:
    optimizer = rounds_optimizer()
    models = []
    for i in range(8):

        class Net(nn.Module):
            def __init__(self, scale: float) -> None:
                super().__init__()
                self.a, self.b, self.c = nn.Linear(40, 32), nn.Linear(32, 32), nn.Linear(32, 10)
                self.scale = scale

            def forward(self, x: Tensor) -> Tensor:
                return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))

        models.append(Net(float(i)))
        if i % 2:
            models[-1].double()
    expected = [params_of(optimizer.one_shot(model, batch=(X[:20], Y[:20]))) for model in models]
    results: dict[int, Any] = {}

    def work(i: int) -> None:
        try:
            results[i] = params_of(optimizer.one_shot(models[i], batch=(X[:20], Y[:20])))
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        torch.testing.assert_close(results[i], expected[i])
    assert all(isinstance(p, nn.Parameter) for p in optimizer.metanet.parameters())  # pyright: ignore


class Other(Metanet):
    """Makes every network one that answers class 3."""

    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        return {}

    def forward(self, params: Params, conditions: Conditions = NONE) -> Params:
        new = {name: torch.zeros_like(p) for name, p in params.items()}
        new["4.bias"][:, 3] = 1.0
        return new


@pytest.mark.parametrize(
    ("size", "answer", "expected"), [(0.1, 5, False), (60.0, 5, True), (60.0, 3, False)], ids=str
)
def test_pass_without_a_batch_warns_of_networks_that_were_sure_of_other_answers(
    size: float, answer: int, expected: bool
) -> None:
    opt = ScaleGMNOptimizer(Other(SPEC), family=TANH, problem=PROBLEM)
    model = TANH.build()
    with torch.no_grad():
        model.get_parameter("4.weight").mul_(size)
        model.get_parameter("4.bias")[answer] += 2 * size
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, report = opt.one_shot(model, return_report=True)
    texts = [str(warning.message) for warning in caught]
    assert any("was confident of other answers than the result gives" in text for text in texts) == expected
    assert bool(report.networks[0].warnings) == expected
