from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from amortopt.cli import demo as demo_module
from amortopt.cli.demo import CHECKPOINTS, demo
from amortopt.cli.main import main
from tests.releases import untrained_release


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
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained_release(release.parent, "relu")
    monkeypatch.setattr("amortopt.release.folder.shipped_folder", lambda _: release.parent)
    demo(networks=2, epochs=[1], out=tmp_path / "demo.png")
    printed = capsys.readouterr().out
    assert "mlp with tanh, 2 networks" in printed and "mlp with relu, 2 networks" in printed


def test_demo_without_any_checkpoint_names_the_missing_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_module, "list_shipped", list)
    assert main(["demo"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in CHECKPOINTS) and "--checkpoint" in error


@pytest.mark.parametrize("arguments", [{"networks": 0}, {"epochs": []}, {"epochs": [0, 5]}])
def test_demo_refuses_nothing_to_do(arguments: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least one network"):
        demo(out=tmp_path / "demo.png", **arguments)
    assert not list(tmp_path.iterdir())
