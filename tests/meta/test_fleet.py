"""From arrays and a class to a working checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import amortopt
from amortopt import ScaleGMNOptimizer, load_release, meta_train
from amortopt.meta.fleet import _is_known
from amortopt.meta.one_pass.budget import KeepBest
from amortopt.meta.one_pass.rivals import Reached
from amortopt.tasks import CrossEntropy, SquaredError
from amortopt.tasks.problem_families import Curves

SIZES, CLASSES = (16, 12), 3


class Net(nn.Module):
    """A hand-written class, with names that no family of the package has."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Linear(*SIZES)
        self.exit = nn.Linear(SIZES[1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.exit(torch.tanh(self.entry(x)))


def problem(seed: int, train: int = 24, test: int = 60) -> tuple[np.ndarray, ...]:
    """Three classes that differ in 3 of 16 directions, the same ones in every problem; the rest is noise."""
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0]
    draw = np.random.default_rng(1000 + seed)
    means = draw.normal(size=(CLASSES, 3))

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = draw.permutation(np.arange(count) % CLASSES)
        signal = means[y] + 0.3 * draw.normal(size=(count, 3))
        return np.concatenate([signal, 2 * draw.normal(size=(count, 13))], 1) @ directions, y

    return (*part(train), *part(test))


def written(folder: Path, count: int) -> Path:
    folder.mkdir()
    for k in range(count):
        arrays = problem(k, train=20 + k % 9)
        np.savez(folder / f"{k:03}.npz", **dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays)))  # noqa: B905
    return folder


QUICK: dict[str, Any] = {"networks": 16, "progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("fleet")
    folder = scratch / "three-classes"
    meta_train(Net, written(scratch / "problems", 64), folder, steps=300, read=(10, 28), **QUICK)
    return folder


def test_meta_train_beats_tuned_sgd_on_problems_that_it_has_not_seen(checkpoint: Path) -> None:
    results = load_release(checkpoint).results
    after, sgd = (results[key]["mean_accuracy"] for key in ("after", "tuned SGD, 25 epochs"))
    assert results["networks"] >= 5
    assert after > sgd + 0.08
    # A pretrained initialisation knows the directions too, and takes 25 epochs where a pass takes a gradient.
    assert sgd + 0.08 < results["learned prototype, tuned SGD, 25 epochs"]["mean_accuracy"] < after + 0.1
    assert results["permuted classes"] is True
    assert results["one network for all problems"]["mean_accuracy"] < 0.6


def test_checkpoint_improves_networks_of_the_class_in_one_call(checkpoint: Path) -> None:
    opt = ScaleGMNOptimizer.from_pretrained(checkpoint)
    problems = [[torch.as_tensor(a) for a in problem(k)] for k in range(500, 520)]
    nets = [Net() for _ in problems]
    better = opt.one_shot(nets, batch=[(x.float(), y) for x, y, _, _ in problems])

    def accuracy(networks: list[Net], shift: int = 0) -> float:
        pairs = zip(networks, problems[shift:] + problems[:shift], strict=True)
        return float(np.mean([(net(x.float()).argmax(1) == y).float().mean() for net, (_, _, x, y) in pairs]))

    assert all(isinstance(net, Net) for net in better)
    assert accuracy(better) > 0.7
    # It reads its problem: on another one it is near chance.
    assert accuracy(better, shift=1) < 0.55


def test_checkpoint_notices_problems_outside_of_the_fleet(tmp_path: Path, recwarn: Any) -> None:
    problems = [problem(k, train=20 + k % 9) for k in range(110)]
    opt = meta_train(Net, problems, tmp_path / "fleet", steps=30, read=(10, 28), val=0.2, **QUICK)
    assert opt.statistics is not None
    assert opt.statistics.problems == 22
    x, y, *_ = (torch.as_tensor(a) for a in problem(900))
    recwarn.clear()
    opt.one_shot(Net(), batch=(x.float(), y))
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"inputs .* standard deviation"):
        opt.one_shot(Net(), batch=(10 * x.float(), y))


def test_checkpoint_names_the_class_and_holds_no_place(checkpoint: Path) -> None:
    release = load_release(checkpoint)
    assert release.family == {"name": "module", "module": f"{__name__}:Net", "input_shape": [16]}
    text = (checkpoint / "config.json").read_text()
    assert str(checkpoint.parent) not in text
    assert not (checkpoint.parent / "three-classes.run").exists()


def test_params_need_the_registered_class(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = {name: p.detach()[None] for name, p in Net().named_parameters()}
    x, y, *_ = (torch.as_tensor(a) for a in problem(7))
    better = ScaleGMNOptimizer.from_pretrained(checkpoint).one_shot_params(params, batch=(x.float(), y))
    assert better.keys() == params.keys()
    monkeypatch.setattr("amortopt.tasks.own_networks._NETWORKS", {})
    opt = ScaleGMNOptimizer.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match=r"nothing is imported because a file names it"):
        opt.one_shot_params(params, batch=(x.float(), y))
    assert isinstance(opt.one_shot(Net(), batch=(x.float(), y)), Net)


def test_run_that_was_killed_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = [problem(k) for k in range(20)]
    whole = meta_train(Net, problems, tmp_path / "whole", steps=20, **QUICK)

    class Killed(Exception):
        pass

    def kill(self: Any, trainer: Any, *args: Any) -> None:
        if trainer.global_step >= 11:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("amortopt.meta.one_pass.budget.TimeBudget.on_train_batch_start", kill, raising=False)
        meta_train(Net, problems, tmp_path / "killed", steps=20, **QUICK)
    assert (tmp_path / "killed.run" / "last.ckpt").exists() and not (tmp_path / "killed").exists()
    with pytest.raises(ValueError, match=r"holds a run that was stopped, with another input_noise; .*delete"):
        meta_train(Net, problems, tmp_path / "killed", steps=20, input_noise=0.3, **QUICK)
    with pytest.raises(ValueError, match="with another data;"):
        meta_train(Net, [problem(k + 1) for k in range(20)], tmp_path / "killed", steps=20, **QUICK)
    again = meta_train(Net, problems, tmp_path / "killed", steps=20, **QUICK)
    for name, value in whole.metanet.state_dict().items():
        assert torch.equal(value, again.metanet.state_dict()[name]), name


def test_run_ends_with_its_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))  # a second for every step
    monkeypatch.setattr("amortopt.meta.one_pass.budget.monotonic", lambda: float(next(clock)))
    meta_train(Net, [problem(k) for k in range(20)], tmp_path / "short", steps=1000, minutes=0.5, **QUICK)
    assert load_release(tmp_path / "short").results["training"]["steps"] == 30


def test_real_targets_are_fitted_by_squared_error(tmp_path: Path) -> None:
    def line(seed: int) -> tuple[np.ndarray, ...]:
        draw = np.random.default_rng(seed)
        slope = draw.normal(size=4)
        x, more = draw.normal(size=(20, 4)), draw.normal(size=(30, 4))
        return x, x @ slope, more, more @ slope

    opt = meta_train(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)),
        [line(k) for k in range(30)],
        tmp_path / "lines",
        steps=60,
        **QUICK,
    )
    results = load_release(tmp_path / "lines").results
    assert opt.problem is not None and opt.problem.objective == SquaredError((1,))
    assert "permuted classes" in results and results["permuted classes"] is False
    assert results["after"]["mean_loss"] < 0.8 * results["before"]["mean_loss"]
    assert "mean_r2" in results["tuned SGD, 25 epochs"]
    # One number for each input may be [N] here as it may there.
    x, y, *_ = (torch.as_tensor(a).float() for a in line(100))
    net = opt.family.build()
    better = [opt.one_shot(net, batch=(x, targets)) for targets in (y, y[:, None])]
    for a, b in zip(*(net.parameters() for net in better), strict=True):
        assert torch.equal(a, b)


def test_family_without_end_is_trained_on(tmp_path: Path) -> None:
    opt = meta_train(
        lambda: nn.Sequential(nn.Linear(40, 4), nn.ReLU(), nn.Linear(4, 10)),
        Curves(),
        tmp_path / "curves",
        steps=2,
        read=(10, 20),
        **QUICK,
    )
    assert isinstance(opt.problem, Curves)


def test_classes_that_mean_the_same_everywhere_are_not_permuted(tmp_path: Path) -> None:
    def shared(seed: int) -> tuple[np.ndarray, ...]:
        draw = np.random.default_rng(seed)
        y = [np.arange(count) % CLASSES for count in (20, 30)]
        x = [2.0 * np.eye(16)[labels] + 0.3 * draw.normal(size=(len(labels), 16)) for labels in y]
        return x[0], y[0], x[1], y[1]

    meta_train(Net, [shared(k) for k in range(20)], tmp_path / "shared", steps=2, **QUICK)
    results = load_release(tmp_path / "shared").results
    assert results["permuted classes"] is False
    assert results["one network for all problems"]["mean_accuracy"] > 0.9


def test_known_classes_are_told_from_luck() -> None:
    chance = float(np.log(3))
    near = torch.full((10,), chance - 0.02) + 0.01 * torch.randn(10)
    assert not _is_known(Reached(near, near), 3)
    assert not _is_known(Reached(chance - 0.5 + 2 * torch.randn(10), near), 3)
    assert _is_known(Reached(near - 0.5, near), 3)


def test_more_outputs_than_labels_are_classes_too(tmp_path: Path) -> None:
    def two_classes(seed: int) -> tuple[np.ndarray, ...]:
        x, y, more, labels = problem(seed)
        return x, np.minimum(y, 1), more, np.minimum(labels, 1)

    opt = meta_train(Net, [two_classes(k) for k in range(20)], tmp_path / "two", steps=2, **QUICK)
    assert opt.problem is not None and opt.problem.objective == CrossEntropy(3)


class Untraceable(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.sum()) > 1e9 else -x)


class Unknown(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.exit(torch.renorm(self.entry(x), 2, 0, 1.0))


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        raise KeyError("width")


class TwoShapes(nn.Sequential):
    made = 0

    def __init__(self) -> None:
        TwoShapes.made += 1
        super().__init__(nn.Linear(16, 3 + TwoShapes.made), nn.Tanh(), nn.Linear(3 + TwoShapes.made, 3))


@pytest.mark.parametrize(
    ("build", "changes", "message"),
    [
        (Net(), {}, "build_network: got Net, expected a class or function"),
        (Untraceable, {}, "build_network: the symmetry of the network cannot be read"),
        (Unknown, {}, "build_network: the symmetry of the network cannot be read: .*renorm"),
        (TwoShapes, {}, "build_network: made networks of two shapes"),
        (
            Failing,
            {},
            "build_network: .*Failing failed when it was called, in its own code: KeyError: 'width'",
        ),
        (lambda: nn.Linear(15, 3), {}, r"build_network: the network fails on inputs of shape \[2, 16\]"),
        (lambda: nn.Linear(16, 2), {}, r"build_network: for an input the network returns \(2,\), expected"),
        (
            lambda: nn.Sequential(nn.Linear(16, 1), nn.Flatten(0)),
            {},
            r"build_network: for an input the network returns \(\), expected",
        ),
        (Net, {"objective": CrossEntropy(2)}, r"problems\[0\]: y_train: got labels from 0 to 2"),
        (Net, {"minutes": 0}, "minutes: got 0"),
        (Net, {"steps": 0}, "steps: got 0"),
        (Net, {"name": "My Fleet"}, "name: got 'My Fleet'"),
        (Net, {"read": (0, 3)}, r"read: got \[0, 3\]"),
        (Net, {"read": (1.5, 3)}, r"read: got \[1.5, 3\], expected .* whole numbers"),
        (Net, {"read": 50}, "read: got 50, expected"),
        (Net, {"read": (10**6, 10**9)}, r"read: got \[1000000, 1000000000\], but problems have at most"),
        (Net, {"minutes": "5"}, "minutes: got '5', expected a number"),
        (Net, {"val": "x"}, "val: got 'x', expected a number"),
        (Net, {"seed": -1}, "seed: got -1"),
        (Net, {"seed": 1.5}, "seed: got 1.5"),
        (Net, {"objective": "cross_entropy"}, "objective: got 'cross_entropy', expected an Objective"),
        (Net, {"metanet": ["rounds"]}, r"metanet: got \['rounds'\], expected arguments by name"),
        (Net, {"permute_classes": "yes"}, "permute_classes: got 'yes'"),
        (Net, {"mix_classes": 2.0}, "mix_classes: got 2.0"),
        (Net, {"val": 0.0}, "problems: got none for val"),
        (Net, {"device": "tpu"}, "device: got 'tpu'"),
        (Net, {"metanet": {"rounds": 0}}, "rounds: got 0"),
        (Net, {"metanet": {"conditions": ["function"]}}, "metanet: got .*read a batch alone"),
    ],
)
def test_what_does_not_fit_is_named_before_training(
    tmp_path: Path, build: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        meta_train(build, [problem(k) for k in range(8)], tmp_path / "out", **QUICK | {"steps": 2} | changes)
    assert not list(tmp_path.iterdir())


def test_no_problems_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="problems: got None, expected a folder"):
        meta_train(Net, None, tmp_path / "out", **QUICK)  # type: ignore[arg-type]


def test_one_broken_file_of_many_is_named_before_training(tmp_path: Path) -> None:
    folder = written(tmp_path / "problems", 40)
    arrays = dict(np.load(folder / "023.npz"))
    arrays["x_test"][3, 2] = np.nan
    np.savez(folder / "023.npz", **arrays)
    with pytest.raises(ValueError, match=r"023\.npz: x_test has NaN"):
        meta_train(Net, folder, tmp_path / "out", **QUICK)
    (folder / "023.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"023\.npz: is no \.npz file"):
        meta_train(Net, folder, tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.run").exists()


def test_label_that_is_too_large_is_named_with_its_array(tmp_path: Path) -> None:
    folder = written(tmp_path / "problems", 12)
    arrays = dict(np.load(folder / "005.npz"))
    arrays["y_test"][3] = 7
    np.savez(folder / "005.npz", **arrays)
    with pytest.raises(
        ValueError, match=r"returns \(3,\), expected \(8,\) .*which is 7, in .*005\.npz: y_test"
    ):
        meta_train(Net, folder, tmp_path / "out", **QUICK)
    listed = [tuple(np.load(folder / f"{k:03}.npz").values()) for k in range(12)]
    with pytest.raises(ValueError, match=r"which is 7, in problems\[5\]: y_test"):
        meta_train(Net, listed, tmp_path / "out", **QUICK)


def test_folder_of_problems_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"problems: got .*nowhere, which is no folder"):
        meta_train(Net, tmp_path / "nowhere", tmp_path / "out", **QUICK)
    with pytest.raises(FileNotFoundError, match=r"problems: .* has no \.npz files"):
        meta_train(Net, tmp_path, tmp_path / "out", **QUICK)


def test_checkpoint_is_replaced_only_when_asked_for(tmp_path: Path) -> None:
    problems = [problem(k) for k in range(20)]
    first = meta_train(Net, problems, tmp_path / "out", steps=1, **QUICK)
    with pytest.raises(FileExistsError, match=r"folder: .*out has a checkpoint already; pass replace=True"):
        meta_train(Net, problems, tmp_path / "out", steps=2, **QUICK)
    kept = ScaleGMNOptimizer.from_pretrained(tmp_path / "out").metanet.state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in first.metanet.state_dict().items())
    meta_train(Net, problems, tmp_path / "out", steps=2, replace=True, **QUICK)
    assert load_release(tmp_path / "out").results["training"]["steps"] == 2
    # Its card says how little three test problems show.
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Measured on 3 test problems only" in card and "standard_error" in card


def test_nothing_is_printed_without_progress(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # One that stops early, and one whose steps are done.
    for steps in (1, 40):
        meta_train(Net, [problem(k) for k in range(8)], tmp_path / str(steps), steps=steps, lr=9.0, **QUICK)
    assert capfd.readouterr() == ("", "")


def test_inputs_that_are_not_standardised_are_warned_of(tmp_path: Path) -> None:
    problems = [(100 * x, y, 100 * more, labels) for x, y, more, labels in map(problem, range(8))]
    with pytest.warns(UserWarning, match=r"standard deviation \d+, .*standardise"):
        meta_train(Net, problems, tmp_path / "out", **QUICK | {"steps": 1})


def test_folder_with_other_files_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"folder: .* holds other files"):
        meta_train(Net, [problem(k) for k in range(8)], tmp_path, **QUICK)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_weights_that_were_best_in_validation_are_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From the third validation on losses look worse, so the weights of the second one are the best.
    add = KeepBest._add
    kept: list[dict[str, Tensor]] = []

    def add_worse(self: KeepBest, module: Any, step: int, loss: float, score: float) -> None:
        add(self, module, step, loss if len(self.curve) < 2 else 10.0, score)
        if len(self.curve) == 2:
            kept.append({key: value.clone() for key, value in module.average.state_dict().items()})

    monkeypatch.setattr(KeepBest, "_add", add_worse)
    opt = meta_train(Net, [problem(k) for k in range(20)], tmp_path / "best", steps=40, **QUICK)
    for name, value in kept[0].items():
        assert torch.equal(opt.metanet.state_dict()[name], value), name
    # And the run stops a third of its length after them.
    assert load_release(tmp_path / "best").results["training"]["steps"] < 40


def test_progress_shows_what_has_to_be_beaten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = QUICK | {"progress": True}
    meta_train(Net, [problem(k) for k in range(20)], tmp_path / "shown", steps=4, **quick)
    shown = capsys.readouterr().out
    assert "14 problems to train on, 3 to validate, 3 to test" in shown
    assert "to beat in validation:" in shown and "% by tuned SGD, 25 epochs" in shown
    assert "val_accuracy" in shown


def test_command_makes_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from amortopt.cli.main import main

    monkeypatch.chdir(tmp_path)
    written(tmp_path / "My Problems", 20)
    (tmp_path / "mynets_of_fleet.py").write_text(
        "from torch import nn\n\ndef net():\n"
        "    return nn.Sequential(nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3))\n"
    )
    command = ["fit", "--family.module", "mynets_of_fleet:net", "--problems", "My Problems"]
    assert main([*command, "--steps", "2", "--progress", "false", "--networks", "4"]) == 0
    release = load_release(tmp_path / "runs" / "my-problems" / "release")
    assert release.name == "my-problems" and release.family is not None
    assert release.family["module"] == "mynets_of_fleet:net"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "family.module"),
        (
            ["--family.module", "no_such_nets:Net"],
            "--family.module: got 'no_such_nets:Net', but there is no module",
        ),
        (["--family.module", "torch.nn:Tanh", "--stepz", "3"], "stepz"),
        (["--family.module", "torch.nn:Tanh", "--steps", "many"], "steps"),
    ],
)
def test_command_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    from amortopt.cli.main import main

    assert main(["fit", "--problems", str(written(tmp_path / "p", 8)), *options]) == 2
    assert message in capsys.readouterr().err


def test_loading_a_checkpoint_imports_nothing_that_it_names(checkpoint: Path, tmp_path: Path) -> None:
    from amortopt.release.folder import canonical, sha256

    altered = tmp_path / "altered"
    shutil.copytree(checkpoint, altered)
    config = json.loads((altered / "config.json").read_text())
    config["problems"][0]["family"]["module"] = "antigravity:Net"
    sums = config.pop("sha256")
    sums["config.json"] = sha256(canonical(config))
    (altered / "config.json").write_text(json.dumps(config | {"sha256": sums}))
    import sys

    opt = ScaleGMNOptimizer.from_pretrained(altered)
    x, y, *_ = (torch.as_tensor(a) for a in problem(3))
    opt.one_shot(Net(), batch=(x.float(), y))
    assert "antigravity" not in sys.modules
    assert amortopt.meta_train is meta_train
