"""return_report=True, accept="holdout", rounds=, and what a batch may be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amortopt.functional.networks import params_of
from amortopt.optim import Report, running
from amortopt.optim.passes import keep_back
from amortopt.optim.running import Batch
from amortopt.tasks import CrossEntropy, Examples, SquaredError
from tests.optim.metanets import TANH, optimizer
from tests.optim.test_limits import X, Y, rounds_optimizer

PAIRS = [(X[:50], Y[:50]), (X[50:57], Y[50:57]), (X[100:200], Y[100:200])]


def nets(count: int) -> list[nn.Module]:
    torch.manual_seed(2)
    return [TANH.build() for _ in range(count)]


def loss(net: nn.Module, x: Any, y: Any) -> float:
    return F.cross_entropy(net(x), y).item()


def test_report_has_the_losses_that_the_networks_have() -> None:
    models = nets(3)
    better, report = rounds_optimizer(3).one_shot(models, batch=PAIRS, return_report=True)
    assert isinstance(report, Report) and report.seconds > sum(each.seconds for each in report.networks) > 0
    for old, new, pair, each in zip(models, better, PAIRS, report.networks, strict=True):
        assert each.given == pytest.approx(loss(old, *pair), rel=1e-5)
        assert each.after == each.losses[-1] == pytest.approx(loss(new, *pair), rel=1e-5)
        assert len(each.losses) == 4 and len(each.gradients) == 3 and each.examples == len(pair[0])
        assert each.accepted and each.held is None


def test_report_of_rounds_that_read_portions_has_their_losses() -> None:
    opt, (x, y) = rounds_optimizer(3, 10), PAIRS[2]
    new, report = opt.one_shot(nets(1)[0], batch=(x, y), return_report=True)
    first = Examples(x, y).portions(3, 10)[0]
    fresh = opt.one_shot(nets(1)[0], batch=(first.x, first.y), rounds=1, return_report=True)[1]
    assert report.networks[0].losses[0] == pytest.approx(fresh.networks[0].losses[0], rel=1e-5)
    assert report.networks[0].after == pytest.approx(loss(new, x, y), rel=1e-5)


def test_report_rounds_stop_where_asked() -> None:
    opt, model = rounds_optimizer(3), nets(1)[0]
    _, whole = opt.one_shot(model, batch=PAIRS[0], return_report=True)
    _, part = opt.one_shot(model, batch=PAIRS[0], rounds=2, return_report=True)
    assert part.networks[0].losses == pytest.approx(whole.networks[0].losses[:3], rel=1e-5)


@pytest.mark.parametrize("rounds", [0, 4, True, 1.0, "1"])
def test_rounds_that_the_checkpoint_has_not(rounds: Any) -> None:
    with pytest.raises(ValueError, match=r"rounds: got .*, expected a whole number from 1 to 3"):
        rounds_optimizer(3).one_shot(nets(1)[0], batch=PAIRS[0], rounds=rounds)
    with pytest.raises(ValueError, match=r"rounds: got .*, but this checkpoint has no rounds"):
        optimizer().one_shot(nets(1)[0], rounds=1 if rounds == 0 else rounds)


def test_report_of_params_is_that_of_networks() -> None:
    opt, models = rounds_optimizer(), nets(2)
    params = {name: torch.stack([params_of(m)[name] for m in models]) for name in params_of(models[0])}
    _, one = opt.one_shot(models, batch=PAIRS[0], return_report=True)
    _, two = opt.one_shot_params(params, batch=PAIRS[0], return_report=True)
    for a, b in zip(one.networks, two.networks, strict=True):
        assert a.losses == pytest.approx(b.losses) and a.given == pytest.approx(b.given)


def test_report_without_a_batch_has_no_losses() -> None:
    _, report = optimizer().one_shot(nets(1), return_report=True)
    assert report.networks[0].given is None and report.networks[0].after is None
    assert "1 of 1 results taken" in str(report)


def test_report_reads_as_text() -> None:
    _, report = rounds_optimizer().one_shot(nets(2), batch=PAIRS[:2], accept="holdout", return_report=True)
    text = str(report)
    assert "loss on 40 examples" in text and "held back" in text and "note: no example of class" in text


@pytest.mark.parametrize("inplace", [False, True])
def test_holdout_takes_what_is_better_on_what_it_kept_back(inplace: bool) -> None:
    models = nets(2)
    with torch.no_grad():  # the first answers one class, which is all of its batch; the second is wrong
        for model, sign in zip(models, (20.0, -20.0), strict=True):
            list(model.parameters())[-1].copy_(sign * F.one_hot(Y[0], 10))
    before = [params_of(model) for model in models]
    same = Y.eq(Y[0])
    with pytest.warns(UserWarning, match="wrong on this batch with confidence"):
        better, report = rounds_optimizer().one_shot(
            models, batch=(X[same], Y[same]), accept="holdout", inplace=inplace, return_report=True
        )
    # What is not taken is no cause for alarm.
    assert not report.networks[0].warnings
    assert [each.accepted for each in report.networks] == [False, True]
    for each in report.networks:
        assert each.held is not None and (each.held[1] < each.held[0]) == each.accepted
    torch.testing.assert_close(params_of(better[0]), before[0], rtol=0, atol=0)
    assert not torch.equal(params_of(better[1])["0.weight"], before[1]["0.weight"])
    assert (better[0] is models[0]) == inplace


def test_holdout_reads_only_the_rest() -> None:
    opt, model = rounds_optimizer(), nets(1)[0]
    read, held = keep_back(Batch(Examples(*PAIRS[0]), CrossEntropy(10)), 1)
    _, kept = opt.one_shot(model, batch=PAIRS[0], accept="holdout", return_report=True)
    new, rest = opt.one_shot(model, batch=(read.examples.x, read.examples.y), return_report=True)
    assert kept.networks[0].losses == pytest.approx(rest.networks[0].losses)
    held_loss = loss(new, held.examples.x, held.examples.y)
    assert kept.networks[0].held is not None and kept.networks[0].held[1] == pytest.approx(
        held_loss, rel=1e-5
    )


def test_keep_back_is_stratified_and_does_not_depend_on_the_order() -> None:
    x, y = X[:100], torch.arange(100) % 10
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    first = keep_back(Batch(Examples(x, y), CrossEntropy(10)), 1)
    second = keep_back(Batch(Examples(x[order], y[order]), CrossEntropy(10)), 1)
    for a, b, each in zip(first, second, (8, 2), strict=True):
        assert a.examples.y.bincount().tolist() == [each] * 10
        torch.testing.assert_close(a.examples.x, b.examples.x)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 11])
def test_keep_back_leaves_at_least_one_on_both_sides(count: int) -> None:
    data = Examples.from_list([(X[:count], X[:count, :1]), (X[:30], X[:30, :1])])
    read, held = keep_back(Batch(data, SquaredError()), 2)
    sizes = [part.examples.counts(2).tolist() for part in (read, held)]
    assert [sum(pair) for pair in zip(*sizes, strict=True)] == [count, 30]
    assert min(min(pair) for pair in sizes) >= 1


def test_holdout_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"batch\[1\]: got 1 example, expected at least 2 .* pass more"):
        rounds_optimizer().one_shot(nets(2), batch=[PAIRS[0], (X[:1], Y[:1])], accept="holdout")
    with pytest.raises(ValueError, match="no batch is read to keep a part of back"):
        optimizer().one_shot(nets(1)[0], accept="holdout")


@pytest.mark.filterwarnings("ignore:outside of what this checkpoint was made for")
@pytest.mark.parametrize("portion", [None, 10])
def test_order_of_examples_does_not_matter(portion: int | None) -> None:
    opt, model = rounds_optimizer(3, portion), nets(1)[0]
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    for x in (X, X.sign(), torch.ones_like(X)):  # also inputs of few values, which are alike
        batches = [(x[at], Y[at]) for at in (torch.arange(200), order)]
        first, second = (opt.one_shot(model, batch=batch) for batch in batches)
        torch.testing.assert_close(params_of(first), params_of(second), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("portion", [None, 10])
def test_batches_larger_than_memory_are_chunked_exactly(
    monkeypatch: pytest.MonkeyPatch, portion: int | None
) -> None:
    opt, models = rounds_optimizer(3, portion), [model.double() for model in nets(3)]
    whole = opt.one_shot(models, batch=PAIRS)
    monkeypatch.setattr(running, "_ELEMENTS", 1)  # 16 examples at a time
    for a, b in zip(whole, opt.one_shot(models, batch=PAIRS), strict=True):
        torch.testing.assert_close(params_of(a), params_of(b), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("portion", [None, 10])
def test_batches_of_other_sizes_are_padded_exactly(portion: int | None) -> None:
    opt, models = rounds_optimizer(3, portion), [model.double() for model in nets(3)]
    together = opt.one_shot(models, batch=PAIRS)
    for model, pair, new in zip(models, PAIRS, together, strict=True):
        alone = opt.one_shot(model, batch=pair)
        torch.testing.assert_close(params_of(new), params_of(alone), rtol=1e-9, atol=1e-9)
