"""prune: how many weights are left, what decides on the λ, what is refused."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amortopt import FamilyMismatchError, ScaleGMNOptimizer
from amortopt.functional.networks import params_of
from amortopt.metanets import L1Range, Rounds
from amortopt.optim.prune import prune, smallest_left_out
from amortopt.symmetry import act, extract, sample
from amortopt.symmetry.alignment.scales import balancing
from amortopt.tasks import make_family, make_problem_family

FAMILY = make_family("mlp", activation="relu", widths=(40, 8, 6, 10))
RANGE = L1Range(1e-5, 1e-2)


@cache
def optimizer(conditions: tuple[str, ...] = ("batch", "function", "l1")) -> ScaleGMNOptimizer:
    """A metanet that was not trained, whose thresholds rise with λ."""
    torch.manual_seed(0)
    shapes = {name: tuple(p.shape) for name, p in FAMILY.build().named_parameters()}
    metanet = Rounds(
        extract(FAMILY.build(), FAMILY.example_input()),
        **{"shapes": shapes, "channels": 2, "hidden": 4, "conditions": conditions, "probes": 20},
        **{"input_shape": FAMILY.input_shape, "l1_range": (RANGE.low, RANGE.high), "l1_knots": 2},
    )
    if metanet.probes is not None:
        metanet.probes.copy_(torch.randn_like(metanet.probes))
    for reading in metanet.readings:
        for logs in metanet.rule(reading).log_threshold or ():
            logs.data[:1] = 0  # what is common to all λ
            logs.data[2:3] = math.log(1e-3)
            logs.data[3:4] = math.log(0.6)
    l1 = RANGE if "l1" in conditions else None
    problem = make_problem_family("curves")
    return ScaleGMNOptimizer(metanet, family=FAMILY, problem=problem, l1_range=l1, name="test")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return FAMILY.build()


def batch(count: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 40, generator=generator), torch.arange(count) % 10


def zeros(model: nn.Module) -> float:
    weights = [p for p in model.parameters() if p.ndim > 1]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("reads", ["batch", "function"])
def test_prune_leaves_the_wanted_share_of_the_weights(sparsity: float, reads: str) -> None:
    net, opt = network(), optimizer()
    pruned, report = prune(
        net, sparsity, batch() if reads == "batch" else None, optimizer=opt, return_report=True
    )
    total = sum(p.numel() for p in net.parameters() if p.ndim > 1)
    assert zeros(pruned) == pytest.approx(sparsity, abs=0.02)
    assert zeros(pruned) >= round(sparsity * total) / total
    assert report.sparsity == pytest.approx(zeros(pruned))
    assert report.by_pass <= report.sparsity
    assert report.passed or reads == "function"
    for name, mask in report.masks.items():
        assert torch.equal(mask, dict(pruned.named_parameters())[name] != 0)


def test_strength_is_the_lowest_that_leaves_few_enough_weights() -> None:
    net, opt = network(), optimizer()
    _, report = prune(net, 0.6, batch(), optimizer=opt, return_report=True)
    assert RANGE.low < report.l1 < RANGE.high
    # Three quarters of the zeros are the pass's.
    assert zeros(opt.one_shot(net, batch=batch(), l1=report.l1)) >= 0.45
    assert zeros(opt.one_shot(net, batch=batch(), l1=report.l1 * 0.85)) < 0.45


@pytest.mark.parametrize(("sparsity", "by_pass"), [(0.7, 0.7), (0.2, 0.5), (0.97, 0.9), (0.0, 0.0)])
def test_of_a_checkpoint_with_zeros_one_pass_has_them(
    sparsity: float, by_pass: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    shapes = {name: tuple(p.shape) for name, p in FAMILY.build().named_parameters()}
    metanet = Rounds(
        extract(FAMILY.build(), FAMILY.example_input()),
        **{"shapes": shapes, "channels": 2, "hidden": 4, "conditions": ("batch", "l1")},
        **{"l1_range": (RANGE.low, RANGE.high), "l1_knots": 2, "zeros": (0.5, 0.9)},
    )
    problem, passes = make_problem_family("curves"), []
    opt = ScaleGMNOptimizer(metanet, family=FAMILY, problem=problem, l1_range=RANGE, name="test")
    one_shot = ScaleGMNOptimizer.one_shot
    monkeypatch.setattr(
        ScaleGMNOptimizer, "one_shot", lambda *a, **k: passes.append(k["l1"]) or one_shot(*a, **k)
    )
    pruned, report = prune(network(), sparsity, batch(), optimizer=opt, return_report=True)
    assert len(passes) == 1
    assert report.by_pass == pytest.approx(by_pass, abs=2e-3)
    # Fewer zeros than the checkpoint was made for would cost more than they save.
    assert zeros(pruned) == pytest.approx(max(sparsity, by_pass), abs=2e-3)
    assert zeros(pruned) >= round(sparsity * 428) / 428


def test_without_penalty_magnitudes_decide_alone() -> None:
    net, opt = network(), optimizer()
    pruned, report = prune(net, 1e-3, batch(), optimizer=opt, return_report=True)
    assert report.l1 == 0 == report.by_pass
    dense = params_of(opt.one_shot(net, batch=batch(), l1=0.0))
    balanced = act(opt.spec, balancing(opt.spec, {k: p.double() for k, p in dense.items()}), dense)
    left = smallest_left_out({k: p for k, p in balanced.items() if p.ndim > 1}, 1e-3, "global")
    for name, p in pruned.named_parameters():
        torch.testing.assert_close(p.detach(), dense[name] * left.get(name, 1))


def test_prune_does_not_depend_on_the_gauge() -> None:
    net, opt = network(), optimizer()
    moved = network()
    element = sample(opt.spec, generator=torch.Generator().manual_seed(3), low=0.2, high=5.0)
    moved.load_state_dict(act(opt.spec, element, params_of(net)))
    (a, first), (b, second) = (
        prune(each, 0.7, batch(), optimizer=opt, return_report=True) for each in (net, moved)
    )
    assert first.l1 == pytest.approx(second.l1)
    x = torch.randn(30, 40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(a(x), b(x), rtol=1e-3, atol=1e-4)


def test_without_data_what_is_closer_to_the_function_is_returned() -> None:
    # A metanet that was not trained proposes nothing that is like the network.
    net, opt = network(), optimizer()
    pruned, report = prune(net, 0.2, optimizer=opt, return_report=True)
    assert not report.passed and report.l1 == 0
    for name, p in pruned.named_parameters():
        kept = p != 0
        assert torch.equal(p[kept], dict(net.named_parameters())[name][kept])


@pytest.mark.parametrize(
    ("unknown", "words"),
    [
        ({"family": None}, "names no family, so"),
        ({"problem": None}, "names no problem, so"),
        ({"family": None, "problem": None}, "names no family and no problem, so"),
    ],
)
def test_prune_without_data_needs_family_and_problem(unknown: dict[str, None], words: str) -> None:
    known = optimizer()
    options = {"family": FAMILY, "problem": known.problem, "l1_range": RANGE, "name": "test"} | unknown
    opt = ScaleGMNOptimizer(known.metanet, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"batch: got none, and test {words}.* pass batch=\(x, y\)"):
        prune(network(), 0.5, optimizer=opt)
    if opt.problem is not None:
        pruned = prune(network(), 0.5, batch(), optimizer=opt, example_input=torch.zeros(1, 40))
        assert zeros(pruned) >= 0.49


def test_prune_of_many_is_that_of_each_with_its_problem() -> None:
    nets, opt, (x, y) = [network(0), network(1)], optimizer(), batch()
    batches = [(x, y), (x[:30] * 0.5, y[:30].flip(0))]
    together, reports = prune(nets, 0.6, batches, optimizer=opt, return_report=True)
    for net, pair, result, report in zip(nets, batches, together, reports, strict=True):
        alone, other = prune(net, 0.6, pair, optimizer=opt, return_report=True)
        assert other.l1 == pytest.approx(report.l1)
        for p, q in zip(result.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p, q)


def test_scope_layer_gives_every_layer_its_share() -> None:
    pruned = prune(network(), 0.7, batch(), optimizer=optimizer(), scope="layer")
    for p in pruned.parameters():
        if p.ndim > 1:
            assert float((p == 0).double().mean()) >= round(0.7 * p.numel()) / p.numel()


def test_prune_leaves_the_given_network_and_biases() -> None:
    net = network()
    before = params_of(net)
    pruned = prune(net, 0.99, batch(), optimizer=optimizer())
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert type(pruned) is type(net)


def test_smallest_left_out_counts_ties_once() -> None:
    weights = {"a": torch.tensor([[1.0, -1.0], [1.0, 3.0]]), "b": torch.tensor([[0.5, 1.0]])}
    masks = smallest_left_out(weights, 0.5, "global")
    assert [int(m.sum()) for m in masks.values()] == [2, 1]
    assert masks["a"].tolist() == [[False, False], [True, True]]
    assert [int(m.sum()) for m in smallest_left_out(weights, 0.5, "layer").values()] == [2, 1]


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan, True, "0.8"])
def test_sparsity_out_of_range_is_refused(sparsity: Any) -> None:
    with pytest.raises(ValueError, match=r"sparsity: got .*, expected a share of the weights in \[0, 1\)"):
        prune(network(), sparsity, batch(), optimizer=optimizer())


def test_wrong_arguments_are_refused() -> None:
    net, opt = network(), optimizer()
    with pytest.raises(ValueError, match=r"scope: got 'all', expected 'global' or 'layer'"):
        prune(net, 0.5, batch(), optimizer=opt, scope="all")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"batch: got x of shape \[50, 7\], expected \[N, 40\]"):
        prune(net, 0.5, (torch.randn(50, 7), torch.arange(50) % 10), optimizer=opt)
    with pytest.raises(ValueError, match=r"batch: got x \(50, 40\) and y \(3,\)"):
        prune(net, 0.5, (torch.randn(50, 40), torch.arange(3)), optimizer=opt)
    with pytest.raises(FamilyMismatchError):
        prune(nn.Sequential(nn.Linear(40, 10)), 0.5, batch(), optimizer=opt)
    with pytest.raises(ValueError, match=r"optimizer: test reads batch, expected 'l1' beside"):
        prune(net, 0.5, batch(), optimizer=optimizer(("batch",)))
    with pytest.raises(ValueError, match=r"batch: this checkpoint reads gradients; pass batch=\(x, y\)"):
        prune(net, 0.5, optimizer=optimizer(("batch", "l1")))
    with torch.no_grad():
        next(net.parameters())[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        prune(net, 0.5, batch(), optimizer=opt)
