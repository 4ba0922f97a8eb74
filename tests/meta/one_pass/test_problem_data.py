"""Meta-training over a family of problems: what a step reads, and a run from recipe to `one_shot`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amortopt import ScaleGMNOptimizer
from amortopt.cli.main import main
from amortopt.meta.one_pass.module import OnePassModule
from amortopt.meta.one_pass.problem_data import ProblemDataModule
from amortopt.meta.one_pass.starts import Starts
from amortopt.metanets import Rounds
from amortopt.tasks import Examples, answers_many, evaluate_many, make_family, make_problem_family
from amortopt.tasks.problem_families import Curves, Images
from tests.meta.tiny import error_of

RECIPE = """
name: tiny-curves
model:
  problem: {name: curves}
  family: {name: mlp, activation: tanh, widths: [40, 8, 10]}
  metanet: {name: rounds, rounds: 1, channels: 2, hidden: 8}
  lr: 0.02
  prototype_lr: 0.02
  scalar_lr: 0.003
  hold: 0.0
  ema: 0.98
  warmup_steps: 5
data:
  pool: 64
  networks: 16
  read: [20, 60]
  examples: 40
  val_networks: 16
  val_read: 60
trainer:
  max_steps: 60
  gradient_clip_val: 1.0
  val_check_interval: 30
  log_every_n_steps: 10
  limit_val_batches: 1
  accelerator: cpu
  devices: 1
"""
MLP = make_family("mlp", widths=(40, 6, 10))


def loaded(**settings: Any) -> ProblemDataModule:
    sizes = {"pool": 20, "networks": 4, "read": (5, 30), "examples": 8, "val_networks": 3, "val_read": 12}
    data = ProblemDataModule(**sizes | settings)
    data.load(Curves(), MLP)
    return data


def test_draw_is_a_function_of_seed_step_and_rank() -> None:
    data, batch = loaded(), loaded().draw(3, 1)
    data.draw(7)
    again = data.draw(3, 1)
    assert torch.equal(again.read.x, batch.read.x) and torch.equal(again.examples.y, batch.examples.y)
    for other in (data.draw(4, 1), data.draw(3, 0), loaded(seed=1).draw(3, 1)):
        assert not torch.equal(other.examples.x, batch.examples.x)


def test_draw_reads_other_examples_of_the_same_problems_than_it_is_judged_by() -> None:
    data = loaded(networks=30, read=(30, 30))
    batch = data.draw(0)
    assert batch.read.x.shape == (30, 30, 40) and batch.examples.x.shape == (30, 8, 40)
    read, judged = Curves().draw("train", 0, 20, 30, 8)
    problems = [
        next(k for k in range(20) if torch.equal(examples, judged.x[k])) for examples in batch.examples.x
    ]
    for k, examples in zip(problems, batch.read.x, strict=True):
        assert {tuple(x.tolist()) for x in examples} == {tuple(x.tolist()) for x in read.x[k]}


def test_redrawn_examples_are_any_of_a_problem_and_never_both_read_and_judged() -> None:
    data = loaded(pool=1, redraw=True)
    read, judged = Curves().draw("train", 0, 1, 30, 8)
    every = {tuple(x.tolist()) for x in torch.cat([read.x, judged.x], 1)[0]}
    seen: tuple[set[Any], set[Any]] = (set(), set())
    for step in range(30):
        batch = data.draw(step)
        parts = [{tuple(x.tolist()) for x in part.x[0]} for part in (batch.read, batch.examples)]
        assert len(parts[1]) == 8 and 5 <= len(parts[0]) <= 30
        assert not parts[0] & parts[1]
        for all_parts, part in zip(seen, parts, strict=True):
            all_parts |= part
    assert seen == (every, every)
    labels = {
        tuple(x.tolist()): int(y)
        for part in (read, judged)
        for x, y in zip(part.x[0], part.y[0], strict=True)
    }
    for x, y in zip(batch.examples.x[0], batch.examples.y[0], strict=True):
        assert labels[tuple(x.tolist())] == y


def test_number_of_examples_read_is_log_uniform() -> None:
    data = loaded()
    counts = np.array([len(data.draw(step).read) for step in range(400)])
    assert counts.min() >= 5 and counts.max() <= 30
    assert np.median(counts) == pytest.approx((5 * 30) ** 0.5, rel=0.15)


def test_held_out_problems_are_not_in_the_pool() -> None:
    data = loaded()
    pool = {float(x) for x in data._problems[0].x[:, 0, 0]}  # type: ignore[index]
    for held in (data.validation(), data.testing()):
        assert len(held.read.x) == 3
        assert not pool & {float(x) for x in held.read.x[:, 0, 0]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": 0}, "pool: got 0"),
        ({"read": (10, 5)}, r"read: got \[10, 5\]"),
        ({"input_noise": -1.0}, "input_noise: got -1.0"),
        ({"l1_zero": 1.0}, "l1_zero: got 1.0"),
        (
            {"pool": 20, "starts": [Starts(12), Starts(9)]},
            "starts.problems: got 21, expected at most the pool",
        ),
        ({"starts": [Starts(permute_classes=True), Starts()]}, "starts.permute_classes: got both"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProblemDataModule(**settings)


def test_family_of_another_input_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"family: .* takes inputs of shape"):
        ProblemDataModule().load(Curves(channel_axis=True), MLP)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curves")
    (folder / "recipe.yaml").write_text(RECIPE)
    args = ["--config", str(folder / "recipe.yaml"), "--runs", str(folder), "--trainer.logger", "false"]
    assert main(["fit", *args, "--trainer.enable_progress_bar", "false"]) == 0
    return folder / "tiny-curves" / "release"


def test_fit_learns_to_read_problems_and_one_shot_does(release: Path) -> None:
    opt = ScaleGMNOptimizer.from_pretrained(release)
    family = make_family("mlp", widths=(40, 8, 10))
    nets = [family.build() for _ in range(12)]
    read, judged = make_problem_family("curves").draw("test", 100, 12, 60, 200)
    pairs = list(zip(read.x, read.y, strict=True))

    def accuracy(networks: list[Any], judged: Examples = judged) -> float:
        params = {n: torch.stack([dict(net.named_parameters())[n].detach() for net in networks])
                  for n, _ in nets[0].named_parameters()}  # fmt: skip
        return float(evaluate_many(nets[0], params, judged, opt.problem.objective)[1].mean())  # type: ignore[union-attr]

    better = opt.one_shot(nets, batch=pairs)
    swapped = opt.one_shot(nets, batch=[*pairs[1:], pairs[0]])
    # It reads its problem: better than another one's batch, which is no better than chance.
    assert accuracy(better) > accuracy(swapped) + 0.03
    assert accuracy(swapped) < 0.16


@pytest.mark.filterwarnings("ignore::amortopt.optim.networks.OutOfFamilyWarning")
def test_one_shot_of_many_is_one_shot_of_each(release: Path) -> None:
    opt = ScaleGMNOptimizer.from_pretrained(release)
    nets = [make_family("mlp", widths=(40, 8, 10)).build() for _ in range(3)]
    read, _ = Curves().draw("test", 0, 3, 30, 1)
    pairs = [(x[:n], y[:n]) for x, y, n in zip(read.x, read.y, (30, 7, 1), strict=True)]
    together = opt.one_shot(nets, batch=pairs)
    for net, pair, new in zip(nets, pairs, together, strict=True):
        alone = opt.one_shot(net, batch=pair)
        for a, b in zip(alone.parameters(), new.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (None, "batch: this checkpoint reads gradients"),
        ([], "batch: got 0 pairs for 2 networks"),
        ([(torch.zeros(3, 40), torch.zeros(3).long())], "batch: got 1 pairs for 2 networks"),
        ([(torch.zeros(3, 40), torch.zeros(3).long())] * 2 + [None], "batch: got 3 pairs"),
        ([(torch.zeros(3, 40), torch.zeros(3))] * 2, r"batch\[0\]: got y of torch.float32"),
        ((torch.zeros(3, 40), torch.full((3,), 10)), "labels from 10 to 10"),
        ((torch.zeros(3, 39), torch.zeros(3).long()), "got x of shape"),
        ((torch.full((3, 40), torch.nan), torch.zeros(3).long()), "NaN or infinite"),
        ((torch.zeros(0, 40), torch.zeros(0).long()), "expected N > 0 inputs"),
        ((torch.zeros(3, 40).long(), torch.zeros(3).long()), r"got x of torch.int64.* convert with x.float"),
        ((torch.zeros(3, 40).to_sparse(), torch.zeros(3).long()), "got x that is sparse"),
        ((torch.zeros(3, 40), torch.zeros(3).long().to_sparse()), "got y that is sparse"),
        ((torch.zeros(3, 40), torch.zeros(3).long().to("meta")), "got y that is .* meta device"),
        ((torch.zeros(3).long(), torch.zeros(3, 40)), "x and y seem to be swapped"),
        ((torch.zeros(3, 40), torch.tensor(3)), r"got x \(3, 40\) and y \(\)"),
        (((torch.zeros(3, 40), torch.zeros(3).long()),) * 3, "batch: got 3 pairs for 2 networks"),
    ],
)
def test_bad_batches_are_named(release: Path, batch: Any, message: str) -> None:
    opt = ScaleGMNOptimizer.from_pretrained(release)
    nets = [make_family("mlp", widths=(40, 8, 10)).build() for _ in range(2)]
    with pytest.raises(ValueError, match=message):
        opt.one_shot(nets, batch=batch)


def test_recipe_that_misfits_its_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    args = ["--config", str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path), "--trainer.logger", "false"]
    assert "data.l1" in error_of([*args, "--data.l1", "[0.001, 0.01]"], capsys)


def test_permuted_classes_are_those_of_the_networks_answers() -> None:
    plain, data = (
        loaded(starts=Starts(20, (1,), examples=40, permute_classes=permute)) for permute in (False, True)
    )
    assert data.draw(2).view.classes is None  # type: ignore[union-attr]
    batch, before = data.draw(2, trained=True), plain.draw(2, trained=True)
    assert batch.view is not None and before.view is not None and before.view.classes is None
    classes = batch.view.classes
    assert classes is not None
    assert torch.equal(classes.sort(1).values, torch.arange(10).expand(4, -1))
    for each, old in ((batch.read, before.read), (batch.examples, before.examples)):
        assert torch.equal(each.x, old.x)
        assert torch.equal(each.y, classes.gather(1, old.y))
    module = OnePassModule(
        {"name": "curves"},
        {"name": "mlp", "widths": [40, 6, 10]},
        {"name": "rounds", "hidden": 4, "channels": 2, "conditions": ["batch", "function"], "probes": 8},
    )
    assert isinstance(module.metanet, Rounds) and module.metanet.probes is not None
    module.metanet.probes.copy_(data.probes(8))
    # The gradient of the function is that of a network whose outputs are named anew.
    renamed = dict(batch.params)
    for name in ("2.weight", "2.bias"):
        renamed[name] = torch.stack(
            [p[order] for p, order in zip(batch.params[name], classes.argsort(1), strict=True)]
        )
    options = {"read": batch.read, "l1": None, "reading": "function"}
    given = module.conditions(module.metanet, batch.params, view=batch.view, **options).function
    expected = module.conditions(module.metanet, renamed, **options).function
    assert given is not None and expected is not None
    for name, value in expected(before.params).items():
        torch.testing.assert_close(given(before.params)[name], value)


def test_flipped_inputs_are_those_of_the_networks_answers() -> None:
    plain, data = (
        loaded(starts=Starts(20, (1,), examples=40), flip_inputs=flip, networks=20) for flip in (False, True)
    )
    for trained in (False, True):
        batch, before = data.draw(2, trained=trained), plain.draw(2, trained=trained)
        assert batch.view is not None
        signs = batch.view.signs
        assert signs is not None and {-1.0, 1.0} == set(signs.tolist())
        for each, old in ((batch.read, before.read), (batch.examples, before.examples)):
            assert torch.equal(each.x, signs[:, None, None] * old.x) and torch.equal(each.y, old.y)
    # What they answer is what networks answer that have the other sign in their first layer.
    network, inputs = MLP.build(), torch.randn(9, 40)
    flipped = batch.params | {"0.weight": batch.params["0.weight"] * signs[:, None, None]}
    expected = answers_many(network, flipped, inputs)
    given = batch.view.answers(network, batch.params, inputs)
    torch.testing.assert_close(given.y, expected.y)
    assert torch.equal(given.x, expected.x)


def test_starts_of_several_kinds_have_problems_of_their_own() -> None:
    starts = [Starts(6, (1, 2), examples=40), Starts(3, (3,), examples=40, learning_rate=0.1)]
    data = loaded(starts=starts, networks=60)
    read, _ = Curves().draw("train", 0, 20, 30, 8)
    trained = {
        (first, e): (each.train(Curves(), MLP, "train", seed=0, first=first), e)
        for each, first in zip(starts, (0, 6), strict=True)
        for e in range(len(each.epochs))
    }
    batch, kinds = data.draw(0, trained=True), []
    for b in range(60):
        number = next(k for k in range(20) if bool((read.x[k] == batch.read.x[b, 0]).all(1).any()))
        weight = batch.params["0.weight"][b]
        (kind,) = [
            key
            for key, (kept, e) in trained.items()
            if 0 <= number - key[0] < len(kept["0.weight"])
            and torch.equal(kept["0.weight"][number - key[0], e], weight)
        ]
        kinds.append(kind)
    # Every kept number of epochs equally often, however many problems it has.
    assert all(8 <= kinds.count(kind) <= 32 for kind in trained)
    assert list(data.validation().starts) == [2, 3]


def test_problems_without_classes_cannot_be_permuted() -> None:
    with pytest.raises(ValueError, match=r"data\.starts\.permute_classes: got True, expected false"):
        ProblemDataModule(starts=Starts(permute_classes=True)).load(
            Images(), make_family("mlp", widths=(2, 4, 1))
        )
