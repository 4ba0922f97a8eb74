"""`amortopt one-shot` and `amortopt info`."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import amortopt
from amortopt.cli.main import main
from amortopt.functional.networks import params_of
from amortopt.tasks import init_many, make_family
from tests.releases import untrained_release

FAMILY = make_family("mlp", activation="tanh")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = untrained_release(tmp_path_factory.mktemp("checkpoints"))
    opt = amortopt.ScaleGMNOptimizer.from_pretrained(folder)
    opt.metanet.node_gate.data.fill_(1.0)  # so that it does change something
    opt.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("count", [None, 3])
def test_one_shot_writes_what_one_shot_params_returns(
    release: Path, tmp_path: Path, count: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    params = init_many(FAMILY.build, range(3)) if count else params_of(FAMILY.build())
    weights, out = tmp_path / "weights.safetensors", tmp_path / "better.safetensors"
    save_file({name: params[name] for name in reversed(params)}, weights)
    assert main(["one-shot", str(release), str(weights), "--out", str(out)]) == 0
    expected = amortopt.ScaleGMNOptimizer.from_pretrained(release).one_shot_params(params)
    better = load_file(out)
    assert better.keys() == params.keys()
    assert all(torch.equal(better[name], expected[name]) for name in params)
    assert any(not torch.equal(better[name], params[name]) for name in params)
    assert f"{count or 1} network" in capsys.readouterr().out


def one_shot_error(release: Path, weights: Path, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    before = set(weights.parent.iterdir())
    assert main(["one-shot", str(release), str(weights), *args]) == 2
    assert set(weights.parent.iterdir()) == before
    return capsys.readouterr().err


def test_one_shot_never_unpickles(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "unpickled",)

    weights = tmp_path / "weights.safetensors"
    for content in (pickle.dumps(Evil()), b""):
        weights.write_bytes(content)
        assert "no safetensors file" in one_shot_error(release, weights, capsys, "--out", str(tmp_path / "o"))
    torch.save(params_of(FAMILY.build()), weights)
    assert "no safetensors file" in one_shot_error(release, weights, capsys, "--out", str(tmp_path / "o"))


def test_one_shot_names_what_does_not_fit(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.safetensors"
    params = params_of(FAMILY.build())
    save_file({f"net.{name}": p for name, p in params.items()}, weights)
    assert "net.0.weight" in one_shot_error(release, weights, capsys, "--out", str(tmp_path / "o"))
    assert "expected the file to write" in one_shot_error(release, weights, capsys)
    assert "no file" in one_shot_error(release, tmp_path / "other", capsys, "--out", str(tmp_path / "o"))
    save_file({**params, "0.bias": torch.full((32,), torch.nan)}, weights)
    assert "NaN" in one_shot_error(release, weights, capsys, "--out", str(tmp_path / "o"))


def test_one_shot_overwrites_only_on_request(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(params_of(FAMILY.build()), weights)
    before = weights.read_bytes()
    assert "--overwrite" in one_shot_error(release, weights, capsys, "--out", str(weights))
    assert weights.read_bytes() == before
    assert main(["one-shot", str(release), str(weights), "--out", str(weights), "--overwrite", "true"]) == 0
    assert weights.read_bytes() != before


NETWORKS = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv1d(1, 6, 3), torch.nn.Linear(6, 2)
    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean(-1))

class Odd(Net):
    def forward(self, x):
        return self.head(torch.renorm(torch.relu(self.conv(x)).mean(-1), 2, 0, 1.0))

class Tokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 2)
    def forward(self, tokens, x):
        return self.head(torch.tanh(self.embed(tokens)) + x)

def needs(width):
    return Net()

def broken():
    return len(3)

size = 7

net = Net()
number = dict
"""


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "networks_for_info.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "networks_for_info", raising=False)
    return "networks_for_info"


@pytest.mark.parametrize("name", ["Net", "net"])
def test_info_prints_spec_and_proof(networks: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", f"{networks}:{name}", "--input", "2,1,12"]) == 0
    printed = capsys.readouterr().out
    assert "h1^+1" in printed and "positive" in printed
    proof = printed.partition("proof:")[2]
    assert "holds" in proof and "eval mode" in proof and "training mode" in proof
    assert "1 of 3 groups, 6 units" in proof
    assert "1 of 1 elements one step outside tried; all change the function" in proof
    assert "6 continuous directions" in printed


def test_info_takes_integers(networks: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", f"{networks}:Tokens", "--input", "3,5:7;3,1,4", "--probes", "0"]) == 0
    printed = capsys.readouterr().out
    assert "embed.weight" in printed and "outside" not in printed
    assert main(["info", f"{networks}:Tokens", "--input", "3,5:8;3,1,4"]) == 2


def test_info_writes_the_table(networks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some" / "spec.json"
    assert main(["info", f"{networks}:Net", "--input", "2,1,12", "--json", str(path)]) == 0
    spec = amortopt.symmetry.SymmetrySpec.from_json(path.read_text())
    assert repr(spec) in capsys.readouterr().out


def test_info_cuts_long_tables(networks: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", f"{networks}:Net", "--input", "2,1,12", "--rows", "2"]) == 0
    printed = capsys.readouterr().out
    assert "conv.bias" in printed and "\nhead.bias" not in printed and "... 2 more" in printed
    assert main(["info", f"{networks}:Net", "--input", "2,1,12", "--rows", "0"]) == 0
    assert "\nhead.bias" in capsys.readouterr().out


def test_info_reports_a_symmetry_that_does_not_hold(
    networks: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from amortopt.symmetry import extract

    wrong = torch.nn.Sequential(torch.nn.Conv1d(1, 6, 3), torch.nn.Tanh(), torch.nn.AdaptiveAvgPool1d(1))
    wrong.append(torch.nn.Flatten()).append(torch.nn.Linear(6, 2))
    spec = extract(wrong, torch.zeros(2, 1, 12))
    text = spec.to_json()
    for module, family in (("0.", "conv."), ("4.", "head.")):
        text = text.replace(f'"{module}', f'"{family}')
    lying = amortopt.symmetry.SymmetrySpec.from_json(text)
    monkeypatch.setattr("amortopt.cli.info.extract", lambda *args, **kwargs: lying)
    assert main(["info", f"{networks}:Net", "--input", "2,1,12"]) == 2
    assert "does not hold" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("Net", None, "--input"),
        ("Net", "2,x", "positive sizes"),
        ("Net", "2,0,12", "positive sizes"),
        ("Net", "2,1,12:", "positive sizes"),
        ("Net", "2,1,12:int64", "integers below 50"),
        ("Net", "2,3,12", ""),
        ("Net", "1,99999999999999", "more than 1,000,000,000 numbers"),
        ("Net", "99999,99999,99999", "give the shape of one small batch"),
        ("Net", "2,1:99999999999999999999", "integers of more than 64 bits"),
        ("Nothing", "2,1,12", "has no 'Nothing'"),
        ("broken", "2,1,12", "failed, in its own code: TypeError"),
        ("size", "2,1,12", "is int, expected an nn.Module or what makes one"),
        ("needs", "2,1,12", "without arguments"),
        ("number", "2,1,12", "expected an nn.Module"),
    ],
)
def test_info_refuses_wrong_arguments(
    networks: str, name: str, shape: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", f"{networks}:{name}", *(["--input", shape] if shape else [])]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "line, message",
    [
        ("import no_such_library", "importing broken_for_info failed, in its own code: ModuleNotFoundError"),
        ("1 / 0", "importing broken_for_info failed, in its own code: ZeroDivisionError"),
    ],
)
def test_info_says_whose_fault_a_failed_import_is(
    line: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken_for_info.py").write_text(line)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["info", "broken_for_info:net", "--input", "1"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["os.path", "no_such_module:net", "a b:net", "os:system('x')"])
def test_info_checks_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", name, "--input", "1"]) == 2
    assert "module: got" in capsys.readouterr().err


def test_info_strict_raises_where_no_rule_is(networks: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", f"{networks}:Odd", "--input", "2,1,12"]) == 0
    printed = capsys.readouterr().out
    assert "renorm" in printed.partition("note:")[2] and "0 of 3 groups" in printed
    assert main(["info", f"{networks}:Odd", "--input", "2,1,12", "--strict", "true"]) == 2
    assert "renorm" in capsys.readouterr().err


def test_public_names_are_those_of_the_modules() -> None:
    for name in amortopt.__all__:
        assert getattr(amortopt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'; it has FamilyMismatchError"):
        _ = amortopt.nothing
    assert set(dir(amortopt)) == set(amortopt.__all__)


def test_import_of_the_package_alone_is_light() -> None:
    code = "import sys, amortopt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
