"""The README's own snippets and commands run, and its numbers are those of the results files."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from amortopt import list_shipped
from amortopt.cli.main import main
from amortopt.functional.networks import params_of
from amortopt.tasks import make_family
from tests.releases import untrained_release

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


SNIPPETS = blocks("python")
COMMANDS = [line.partition("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
OURS = [command for command in COMMANDS if "amortopt" in command.split()[0]]

# Appended to what the README says, so that little is computed; {tmp} is a new folder.
SMALL = {
    "demo": "--networks 2 --epochs [1] --out {tmp}/demo.png",
    "one-shot": "",
    "info": "--probes 2",
    "zoo": "--count 3 --epochs [0,1] --out {tmp}/zoo --progress false",
    "fit": "--data.zoo {tmp}/zoo --data.networks 2 --data.examples 16 --data.val_networks 2 "
    "--runs {tmp}/runs --trainer.max_steps 2 --trainer.enable_progress_bar false --model.metanet.width 8",
    "zoo tiny-rnn": "--count 2 --out {tmp}/zoo --progress false",
    "fit of a rule": "--runs {tmp}/runs --trainer.max_steps 2 --trainer.enable_progress_bar false "
    "--model.rule.width 4 --model.estimator.truncation 2 --model.horizon 2",
}


def kind(command: str) -> str:
    """What of ``SMALL`` a command is followed by."""
    name = command.split()[1]
    if name == "fit" and "recipes/unf_" in command:
        return "fit of a rule"
    return "zoo tiny-rnn" if name == "zoo" and "tiny-rnn" in command else name


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped checkpoints; before they are there, untrained ones of the same names."""
    if "mnist1d-mlp-tanh" not in list_shipped():
        untrained_release(tmp_path / "shipped", "tanh")
        monkeypatch.setattr("amortopt.release.folder.shipped_folder", lambda _: tmp_path / "shipped")


def test_readme_has_snippets_and_commands() -> None:
    assert len(SNIPPETS) >= 3 and {kind(command) for command in OURS} == set(SMALL)


@pytest.mark.parametrize("position", range(len(SNIPPETS)))
def test_readme_snippet_runs(
    position: int, checkpoints: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Later snippets use what earlier ones define.
    namespace: dict[str, object] = {"__name__": "readme"}
    for snippet in SNIPPETS[: position + 1]:
        exec(compile(snippet, "README.md", "exec"), namespace)


def test_readme_example_is_ten_lines_with_a_class_of_ones_own() -> None:
    lines = [line for line in SNIPPETS[0].splitlines() if line.strip()]
    assert len(lines) <= 10 and "F.tanh" in SNIPPETS[0] and "one_shot" in lines[-1]


@pytest.mark.parametrize("command", OURS)
def test_readme_command_runs(
    command: str, checkpoints: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = shlex.split(command)[1:]
    monkeypatch.chdir(tmp_path if args[0] in ("info", "one-shot") else ROOT)
    if args[0] == "info":
        monkeypatch.setattr(sys, "path", [*sys.path])
        Path("mynet.py").write_text(SNIPPETS[0].partition("opt =")[0])
    if args[0] == "one-shot":
        save_file(params_of(make_family("mlp").build()), "weights.safetensors")
    if kind(command) == "fit":
        small = "--count 40 --epochs [0,1] --progress false"
        assert (
            main(["zoo", "build", "--config", zoo_recipe(), "--out", f"{tmp_path}/zoo", *small.split()]) == 0
        )
    assert main([*args, *SMALL[kind(command)].format(tmp=tmp_path).split()]) == 0


def zoo_recipe() -> str:
    command = next(c for c in OURS if c.startswith("amortopt zoo build"))
    return re.search(r"--config (\S+)", command)[1]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_readme_make_target_exists(command: str) -> None:
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_readme_set_up_is_that_of_the_makefile() -> None:
    install = next(c for c in COMMANDS if "pip install" in c).partition("-m pip ")[2]
    assert install in (ROOT / "Makefile").read_text()


def test_readme_links_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not [link for link in missing if not link.startswith("benchmarks/results")]
    assert not missing or not list(RESULTS.glob("*.json")), "results are there, but not what is made of them"
