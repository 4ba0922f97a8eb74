"""States of a run survive what interrupts it: kills at any moment, a full disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amortopt.meta.fit import main
from amortopt.meta.state import WholeStateIO
from tests.meta.tiny import fit_args, write_recipe

KILLS = """
import os, random, signal, sys, time
import torch
from amortopt.meta.state import WholeStateIO

path, writer, moment, step = sys.argv[1], WholeStateIO(), random.Random(0), 1

def save(step):
    writer.save_checkpoint({"global_step": step, "weights": torch.full((500_000,), float(step))}, path)

save(step)
for _ in range(30):
    child = os.fork()
    while not child:
        step += 1
        save(step)
    time.sleep(moment.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] >= step and bool((saved["weights"] == saved["global_step"]).all())
    step = saved["global_step"]
save(step + 1)
print(step)
"""


@pytest.mark.slow
def test_state_is_whole_after_kills_at_random_moments(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLS, str(tmp_path / "last.ckpt")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 5, "hardly anything was saved between the kills"
    assert os.listdir(tmp_path) == ["last.ckpt"], "leftovers of killed runs"


def test_fit_on_a_full_disk_keeps_the_state_before_and_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path)
    main(fit_args(recipe, tmp_path / "whole"))

    def full(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        saves = []

        def save(self: WholeStateIO, *args: object, **options: object) -> None:
            saves.append(args)
            if len(saves) == 2:
                patch.setattr("amortopt.system.files._write_through", full)
            original(self, *args, **options)  # pyright: ignore[reportArgumentType]

        original = WholeStateIO.save_checkpoint
        patch.setattr(WholeStateIO, "save_checkpoint", save)
        with pytest.raises(OSError, match=r"last\.ckpt: No space left.*what was there before is kept"):
            main(fit_args(recipe, tmp_path / "parts", "--save_every", "3"))
    folder = tmp_path / "parts" / "tiny"
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 3
    assert not list(folder.glob(".*"))
    main(fit_args(recipe, tmp_path / "parts", "--ckpt_path", "last"))
    whole, parts = (
        torch.load(tmp_path / run / "tiny" / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "parts")
    )
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
