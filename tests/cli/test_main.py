from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from amortopt.cli.main import COMMANDS, Command, main
from amortopt.zoo import load_zoo

RECIPE = Path(__file__).parents[2] / "recipes" / "zoo" / "mnist1d_mlp_tanh.yaml"
SMALL = ["--count", "5", "--epochs", "[0,1]", "--shard_size", "2", "--progress", "false"]


def build(folder: Path, *args: str, recipe: Path = RECIPE) -> int:
    return main(["zoo", "build", "--config", str(recipe), "--out", str(folder), *args])


def test_overview_lists_commands_without_importing_torch() -> None:
    code = (
        "import sys; from amortopt.cli.main import main; main(['--help']); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "zoo" in done.stdout


def test_plain_function_becomes_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def greet(name: str, times: int = 1) -> None:
        calls.append((name, times))

    monkeypatch.setattr("amortopt.zoo.config.greet", greet, raising=False)
    monkeypatch.setitem(COMMANDS, "greet", Command("amortopt.zoo.config", "greet", "say hello"))
    assert main(["greet", "--times", "3", "you"]) == 0 and calls == [("you", 3)]
    assert main(["greet", "you", "--tmies", "3"]) == 2 and len(calls) == 1


@pytest.mark.parametrize("args", [[], ["--version"], ["zoo", "--help"]])
def test_main_answers_without_a_job(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 0
    assert capsys.readouterr().out.strip()


def test_unknown_command_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zooo"]) == 2
    assert "got the command 'zooo', expected one of:" in capsys.readouterr().err


def test_zoo_build_runs_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(tmp_path / "z", *SMALL, "--shard", "2/2") == 0
    assert "shard files 1, 3 are for the other processes" in capsys.readouterr().out
    assert build(tmp_path / "z", *SMALL) == 0
    assert "complete, 5 networks" in capsys.readouterr().out
    zoo = load_zoo(tmp_path / "z")
    assert len(zoo) == 5 and set(zoo.table["epochs"]) <= {0, 1}


def test_zoo_build_lets_the_command_line_win_over_the_recipe(tmp_path: Path) -> None:
    args = ["zoo", "build", *SMALL, "--family.activation", "relu", "--out", str(tmp_path / "z")]
    assert main([*args, "--config", str(RECIPE)]) == 0
    zoo = load_zoo(tmp_path / "z")
    assert len(zoo) == 5 and zoo.family.activation == "relu"


@pytest.mark.parametrize(
    "old, new, named",
    [
        ("epochs:", "epoch:", "epoch"),
        ("count: 4096", "count: many", "count"),
        ("widths:", "wdiths:", "wdiths"),
        ("name: mnist1d", "name: mnist2d", "mnist2d"),
        ("learning_rate: [0.001, 0.1]", "learning_rate: [0.1, 0.001]", "learning_rate"),
    ],
)
def test_wrong_recipe_is_one_line_that_names_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, named: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = RECIPE.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))
    assert build(tmp_path / "z", recipe=recipe) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and named in error and "Traceback" not in error
    assert not (tmp_path / "z").exists()


@pytest.mark.parametrize("device", ["cuda:99", "banana"])
def test_zoo_build_on_a_device_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    assert build(tmp_path / "z", *SMALL, "--device", device) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: --device: got '{device}', which PyTorch cannot use here")
    assert "\n" not in error and not (tmp_path / "z").exists()


def test_zoo_build_without_a_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "build", "--config", str(RECIPE)]) == 2
    assert "--out" in capsys.readouterr().err


def test_zoo_build_without_a_recipe_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "build", *SMALL, "--out", str(tmp_path / "z")]) == 2
    assert "--config: got nothing, expected a recipe" in capsys.readouterr().err
    assert not (tmp_path / "z").exists()


def test_zoo_build_of_another_recipe_names_the_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(tmp_path / "z", *SMALL) == 0
    assert build(tmp_path / "z", *SMALL, "--seed", "3") == 2
    assert "seed: 0 there, 3 asked for" in capsys.readouterr().err


def test_debug_variable_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMORTOPT_DEBUG", "1")
    with pytest.raises(ValueError, match="shard: got '9/2'"):
        build(tmp_path / "z", "--shard", "9/2")


def test_installed_command_is_main() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    entry = re.search(r'^amortopt = "(.+):(.+)"$', text, re.MULTILINE)
    assert entry is not None
    assert getattr(importlib.import_module(entry[1]), entry[2]) is main


def test_wrong_option_is_one_line_that_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "torch.nn:Identity", "--input", "1,3", "--rows", "x"]) == 2
    assert capsys.readouterr().err == "error: --rows: Expected a int. Got value: x\n"
