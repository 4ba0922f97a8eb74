"""The commands of all benchmarks: they run as folders, and --help has purpose, commands and times."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.store import RESULTS, ROOT

FOLDERS = ("one_shot", "optimizers", "symmetry", "weights", "cost", "align", "pruning")


def test_benchmark_runs_as_a_folder_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "symmetry"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "python benchmarks/symmetry --quick" in done.stdout


@pytest.mark.parametrize("folder", FOLDERS)
def test_benchmark_help_has_purpose_commands_and_times(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = importlib.import_module(f"benchmarks.{folder}.run")
    with pytest.raises(SystemExit, match="0"):
        run.main(["--help"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].endswith(".")
    assert all(
        any(f"python benchmarks/{folder}{option} " in line and " min" in line for line in lines)
        for option in ("", " --quick")
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_benchmark_ends_with_one_line_where_results_cannot_be_read(folder: str, tmp_path: Path) -> None:
    for path in RESULTS.glob("*.json"):
        (tmp_path / path.name).write_text('{"format": 99}')
    run = importlib.import_module(f"benchmarks.{folder}.run")
    with pytest.raises(SystemExit, match=r"error: .*99.*expected.*pass another --out"):
        run.main(["--quick", "--report", "--out", str(tmp_path)])


def test_benchmark_refuses_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    run = importlib.import_module("benchmarks.symmetry.run")
    with pytest.raises(SystemExit):
        run.main(["--only", "resnet"])
    assert "--only: got resnet, expected some of mlp" in capsys.readouterr().err


def test_benchmark_refuses_no_threads(capsys: pytest.CaptureFixture[str]) -> None:
    run = importlib.import_module("benchmarks.cost.run")
    with pytest.raises(SystemExit):
        run.main(["--threads", "0"])
    assert "--threads: got 0, expected at least 1" in capsys.readouterr().err
