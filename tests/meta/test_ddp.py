"""Two processes on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from amortopt import load_release
from tests.meta.tiny import fit_args, write_recipe

# A file, because Lightning starts the second process by calling the same file again.
DRIVER = """
import pathlib
import sys

import torch

from amortopt.cli.main import main
from amortopt.meta.one_pass.module import OnePassModule


def on_train_end(self):
    torch.save(self.state_dict(), pathlib.Path(__file__).with_name(f"rank{self.global_rank}.pt"))


OnePassModule.on_train_end = on_train_end
sys.exit(main(sys.argv[1:]))
"""


def test_two_processes_end_with_the_same_weights_and_one_release(tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    args = [
        *("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"),
        *("--trainer.max_steps", "4", "--model.metanet.conditions", "[batch,l1]", "--data.l1", "[1e-5,1e-2]"),
    ]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(driver), "fit", *fit_args(write_recipe(tmp_path), tmp_path / "runs", *args)],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("one pass takes") == 1
    assert "litlogger" not in done.stderr and "GPU available" not in done.stderr

    states = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert any(name.startswith("average.") for name in states[0])
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    release = load_release(tmp_path / "runs" / "tiny" / "release")
    for name, value in release.module.state_dict().items():
        assert torch.equal(value, states[0][f"average.{name}"]), name
    assert release.results["training"]["steps"] == 4
    assert [path.name for path in (tmp_path / "runs" / "tiny").glob("version_*")] == ["version_0"]
