from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from amortopt.cli import demo as demo_module
from amortopt.cli.demo import CHECKPOINTS, demo
from amortopt.cli.demo_fleet import prototype
from amortopt.cli.main import main
from amortopt.optim import ScaleGMNOptimizer
from amortopt.tasks import CrossEntropy, init_many, loss_many, make_problem_family
from tests.releases import untrained_reader, untrained_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_release(tmp_path_factory.mktemp("checkpoints"))


def rows_of(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    return {cell[0]: cell[1:] for cell in cells}


def test_demo_prints_a_row_for_every_method_and_writes_a_picture(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "demo.png"
    small = ["--networks", "3", "--epochs", "[1,2]", "--out", str(out)]
    assert main(["demo", "--checkpoint", str(release), *small]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert list(rows) == [
        "as they start",
        "one forward pass",
        "SGD, 1 epochs",
        "SGD, 2 epochs",
        "SGD + noise, 1 epochs",
        "SGD + noise, 2 epochs",
    ]
    # The metanet is untrained, which is the identity; SGD is not.
    assert rows["one forward pass"][:3] == rows["as they start"][:3] != rows["SGD, 2 epochs"][:3]
    assert all(time.endswith("s") for *_, time in list(rows.values())[1:])
    height, width, _ = matplotlib.image.imread(out).shape
    assert width > height > 500
    assert [path.name for path in out.parent.iterdir()] == ["demo.png"]


def test_demo_takes_the_shipped_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for activation in ("tanh", "relu"):
        untrained_reader(tmp_path / "checkpoints", activation)
    monkeypatch.setattr("amortopt.release.folder.shipped_folder", lambda _: tmp_path / "checkpoints")
    demo(networks=2, examples=20, epochs=[2], out=tmp_path / "demo.png")
    printed = capsys.readouterr().out
    for activation in ("tanh", "relu"):
        assert f"curves, mlp with {activation}: 2 data sets never seen, 20 examples each" in printed
    height, width, _ = matplotlib.image.imread(tmp_path / "demo.png").shape
    assert width > height > 500


def test_demo_of_a_reader_has_the_controls_and_real_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = untrained_reader(tmp_path)
    small = ["--networks", "2", "--examples", "20", "--epochs", "[6]", "--out", str(tmp_path / "demo.png")]
    assert main(["demo", "--checkpoint", str(folder), *small]) == 0
    printed = capsys.readouterr().out
    rows = rows_of(printed)
    assert list(rows) == [
        "as they start",
        "one call",
        "one call, another's examples",
        "its learned prototype alone",
        "SGD, 6 ep.",
        "Adam, 6 ep.",
        "SGD from the prototype, 1 ep.",
    ]
    assert "mnist1d" in printed and all(row[1].endswith("%") for row in rows.values())


def test_demo_prototype_is_what_a_pass_starts_from(tmp_path: Path) -> None:
    opt = ScaleGMNOptimizer.from_pretrained(untrained_reader(tmp_path))
    assert opt.family is not None
    read, _ = make_problem_family("curves").draw("test", 0, 2, 20, 1)
    start = init_many(opt.family.build, range(2))
    _, report = opt.one_shot_params(start, batch=list(zip(read.x, read.y, strict=True)), return_report=True)
    first = prototype(opt, start, read)
    assert first is not None
    losses = loss_many(opt.family.build(), first, read, CrossEntropy(10))
    assert losses.tolist() == pytest.approx([each.losses[0] for each in report.networks], rel=1e-4)


def test_demo_without_any_checkpoint_names_the_missing_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_module, "list_shipped", list)
    assert main(["demo"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in CHECKPOINTS) and "--checkpoint" in error


@pytest.mark.parametrize("arguments", [{"networks": 0}, {"examples": 0}, {"epochs": []}, {"epochs": [0, 5]}])
def test_demo_refuses_nothing_to_do(arguments: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least one network"):
        demo(out=tmp_path / "demo.png", **arguments)
    assert not list(tmp_path.iterdir())
