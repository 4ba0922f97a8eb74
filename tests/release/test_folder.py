"""Release folders from elsewhere: found by name, and refused if damaged, forged or out of proportion."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from amortopt import UNFOptimizer, list_shipped, load_release, save_release
from amortopt.optim import ScaleGMNOptimizer
from amortopt.release import folder as release_folder
from amortopt.release.folder import canonical, sha256
from amortopt.system.files import shipped_folder
from tests.optim.metanets import TANH
from tests.releases import FILES, KINDS, make_release, untrained_release


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_release(tmp_path / "x", make_release(request.param))


def edit(**changed: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changed))

    return change


def truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 9)


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "weights missing": (
        lambda f: (f / "model.safetensors").unlink(),
        FileNotFoundError,
        "model.safetensors is missing",
    ),
    "config missing": (lambda f: (f / "config.json").unlink(), FileNotFoundError, r"config\.json is missing"),
    "weights truncated": (
        truncate("model.safetensors"),
        ValueError,
        r"model\.safetensors was truncated or altered",
    ),
    "weights altered": (flip, ValueError, r"model\.safetensors was truncated or altered: got sha256"),
    "weights empty": (lambda f: os.truncate(f / "model.safetensors", 0), ValueError, r"\(0 bytes\)"),
    "config truncated": (truncate("config.json"), ValueError, r"config\.json is no JSON .*truncated"),
    "config binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), ValueError, "is no JSON"),
    "config nested": (lambda f: (f / "config.json").write_text("[" * 100_000), ValueError, "is no JSON"),
    "config large": (
        lambda f: os.truncate(f / "config.json", 2**25),
        ValueError,
        "got 33554432 bytes, expected at most",
    ),
    "config altered": (
        edit(results={"accuracy": 1.0}),
        ValueError,
        r"config\.json was altered.*write a changed one with save_release",
    ),
    "config no object": (
        lambda f: (f / "config.json").write_text("[]"),
        ValueError,
        "got format version None",
    ),
    "old format": (edit(format=1), ValueError, "got format version 1, expected 2; read it with the amortopt"),
    "no format": (edit(format=None), ValueError, "got format version None, expected 2"),
    "no checksums": (edit(sha256=None), ValueError, r"config\.json was altered"),
    "null checksums": (
        edit(sha256={"config.json": None, "model.safetensors": None}),
        ValueError,
        r"config\.json was altered",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_load_release_refuses_a_damaged_folder(folder: Path, name: str) -> None:
    damage, kind, match = DAMAGE[name]
    damage(folder)
    with pytest.raises(kind, match=match):
        load_release(folder)


def test_optimizers_refuse_damaged_weights(folder: Path) -> None:
    kind = load_release(folder).kind
    flip(folder)
    with pytest.raises(ValueError, match="was truncated or altered"):
        if kind == "metanet":
            ScaleGMNOptimizer.from_pretrained(folder)
        elif kind == "functional":
            load_release(folder, "functional")
        else:
            UNFOptimizer(torch.nn.Linear(2, 2), torch.ones(1, 2), rule=folder)


def sign(folder: Path, changes: dict[str, Any], weights: bytes | None = None) -> None:
    """Alter fields (None: remove) and weights, and make the checksums right again."""
    config = json.loads((folder / "config.json").read_text())
    sums = config.pop("sha256")
    for key, value in changes.items():
        config[key] = value
        if value is ...:
            del config[key]
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
        sums["model.safetensors"] = sha256(weights)
    sums["config.json"] = sha256(canonical(config))
    (folder / "config.json").write_text(json.dumps({**config, "sha256": sums}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"problems": ...}, r"config\.json lacks problems"),
        ({"kind": "optimizer"}, "kind: got 'optimizer', expected one of metanet, functional, rule"),
        ({"kind": ["rule"]}, "kind: got"),
        ({"name": "../up"}, "name: got '../up'"),
        ({"module": []}, r"module: got \[\], expected a table with name and config"),
        ({"module": {"name": 3, "config": {}}}, "module: got"),
        ({"spec": "all"}, "spec: got 'all'"),
        ({"conditions": "l1"}, "conditions: got 'l1', expected a list of names"),
        ({"problems": [{"task": {}}]}, "problems: got"),
        ({"recipe": None}, "recipe: got None"),
        ({"passes": 10**9}, "passes: got 1000000000, expected a whole number from 1 to 1000"),
        ({"passes": True}, "passes: got True"),
        ({"l1_range": {"low": "0", "high": 1.0, "zero": True}}, "l1_range: got"),
        ({"l1_range": {"low": 0.1, "high": 1e999, "zero": True}}, "l1_range: got"),
        ({"l1_range": {"low": 0.1, "high": 1.0, "zero": "no"}}, "l1_range: got"),
        ({"commit": 12}, "commit: got 12"),
        ({"versions": ["0.2.0"]}, "versions: got"),
        ({"versions": {"torch": 2}}, "versions: got"),
        ({"problems": [{"problem": {"name": "text_file", "path": "/etc/passwd"}}]}, "expected no path"),
        ({"problems": [{"problem": {"name": "text_file", "folder": "data/x"}}]}, "expected no path"),
        ({"problems": [{"family": {"name": "mlp", "widths": [4, 10**9]}}]}, "widths: got 1000000000"),
        (
            {"module": {"name": "rounds", "config": {"rounds": 2**20}}},
            "rounds: got 1048576, expected",
        ),
    ],
)
def test_load_release_refuses_wrong_fields(folder: Path, changes: Any, match: str) -> None:
    sign(folder, changes)
    with pytest.raises(ValueError, match=match):
        load_release(folder)


@pytest.mark.parametrize("folder", ["metanet"], indirect=True)
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"module": {"name": "no-such", "config": {}}}, "does not fit .*got 'no-such'"),
        ({"module": {"name": "test-scale", "config": {"strat": 1}}}, "does not fit .*strat"),
        ({"module": {"name": "test-same", "config": {}}}, "does not fit "),
        ({"spec": {"format": 99}}, "does not fit .*format 99"),
        ({"spec": None}, "does not fit "),
        ({"conditions": ["batch"]}, r"does not fit .*conditions: got \['batch'\], expected \['l1'\]"),
        ({"kind": "rule"}, "does not fit"),
        ({"problems": [{"family": {"name": "mlp", "widths": [40, 32, 10]}}]}, "does not fit .*family: its"),
        ({"problems": [{"family": {"name": "mlp", "wdiths": [40]}}]}, "does not fit .*wdiths"),
        (
            {"problems": [{"problem": {"name": "digits"}, "family": TANH.to_config()}]},
            r"does not fit .*problem: its inputs have shape \(1, 16, 16\), the family's \(40,\)",
        ),
    ],
)
def test_load_release_refuses_a_metanet_that_does_not_fit(folder: Path, changes: Any, match: str) -> None:
    sign(folder, changes)
    with pytest.raises(ValueError, match=match):
        load_release(folder)


@pytest.mark.parametrize("folder", ["rule"], indirect=True)
@pytest.mark.parametrize(
    ("name", "config", "match"),
    [
        ("update_rule", {"net": "unf", "width": 5, "depth": 1}, "does not fit .*size mismatch"),
        ("update_rule", {"net": "unf", "heads": 5}, "does not fit .*heads"),
        ("scalegmn", {"net": "unf", "width": 4, "depth": 1}, "does not fit .*'scalegmn'"),
        ("update_rule", {"width": 1_000_000_000}, "width: got 1000000000"),
        ("update_rule", {"width": 1_000_000}, "does not fit .*out of all proportion"),
        (
            "update_rule",
            {"net": "mlp", "width": 4, "depth": 1_000_000},
            "does not fit .*out of all proportion",
        ),
    ],
)
def test_load_release_refuses_a_rule_that_does_not_fit(
    folder: Path, name: str, config: Any, match: str
) -> None:
    sign(folder, {"module": {"name": name, "config": config}})
    with pytest.raises(ValueError, match=match):
        load_release(folder)


@pytest.mark.parametrize("shapes", [None, "x", [], {"0.weight": "x"}, {"0.weight": [[], None]}])
def test_whatever_a_module_is_to_be_built_from_the_error_is_one_line(tmp_path: Path, shapes: Any) -> None:
    folder = untrained_release(tmp_path, conditions=["l1"])
    sign(folder, {"module": {"name": "rounds", "config": {"shapes": shapes, "scales": {}}}})
    with pytest.raises(ValueError, match=r"^[^\n]*does not fit [^\n]{1,400}$"):
        load_release(folder)


@pytest.mark.parametrize("sizes", [{"width": 2**17}, {"layers": 2**20}, {"l1_knots": 2**20}])
def test_load_release_holds_sizes_against_the_weights(tmp_path: Path, sizes: dict[str, int]) -> None:
    folder = untrained_release(tmp_path, conditions=["l1"])
    config = json.loads((folder / "config.json").read_text())["module"]["config"]
    sign(folder, {"module": {"name": "scalegmn", "config": config | sizes}})
    with pytest.raises(ValueError, match=r"does not fit .*out of all proportion"):
        load_release(folder)


def test_load_release_reads_no_pickle(folder: Path, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pickle")
    sign(folder, {}, (tmp_path / "pickle").read_bytes())
    with pytest.raises(ValueError, match=r"model\.safetensors is no safetensors file"):
        load_release(folder)


def test_load_release_refuses_a_file(folder: Path) -> None:
    with pytest.raises(ValueError, match="is a file, expected a checkpoint's folder"):
        load_release(folder / "config.json")


def test_optimizers_refuse_the_other_kind(tmp_path: Path) -> None:
    metanet = save_release(tmp_path / "m", make_release("metanet"))
    rule = save_release(tmp_path / "r", make_release("rule"))
    with pytest.raises(ValueError, match=r"holds a rule, expected a metanet; use UNFOptimizer"):
        ScaleGMNOptimizer.from_pretrained(rule)
    with pytest.raises(ValueError, match=r"holds a metanet, expected a rule; use ScaleGMNOptimizer"):
        UNFOptimizer.from_pretrained(metanet, torch.nn.Linear(2, 2), example_input=torch.ones(1, 2))


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "shipped"
    for name in ("alpha-mlp", "beta-mlp"):
        save_release(root / name, make_release("metanet", name=name))
    save_release(root / "a-rule", make_release("rule"))
    (root / "README.md").write_text("a plain file")
    (root / ".alpha-mlp.1.tmp").mkdir()
    (root / "no-checkpoint").mkdir()
    monkeypatch.setattr(release_folder, "shipped_folder", lambda _: root)
    monkeypatch.chdir(tmp_path)
    return root


def test_list_shipped_skips_what_is_no_release_of_the_kind(shipped: Path) -> None:
    assert list_shipped() == ["alpha-mlp", "beta-mlp"]
    assert list_shipped("rule") == ["a-rule"]
    assert list_shipped("functional") == []
    shutil.rmtree(shipped)
    assert list_shipped() == []


def test_load_release_by_shipped_name(shipped: Path) -> None:
    assert load_release("beta-mlp").name == "beta-mlp"
    assert load_release("a-rule", "rule").name == "a-rule"


def test_load_release_prefers_a_folder_to_a_shipped_name(shipped: Path, tmp_path: Path) -> None:
    save_release(tmp_path / "alpha-mlp", make_release("metanet", name="mine"))
    assert load_release("alpha-mlp").name == "mine"


@pytest.mark.parametrize(
    ("source", "kind", "match"),
    [
        (
            "alpha-mpl",
            "metanet",
            r"'alpha-mpl'.*mean 'alpha-mlp'\?; shipped metanets are alpha-mlp, beta",
        ),
        ("a-rul", "rule", r"did you mean 'a-rule'\?; shipped rules are a-rule;"),
        ("../../zzz", None, r"'\.\./\.\./zzz', which is no folder .*are alpha-mlp, beta-mlp, a-rule"),
        ("", None, "no folder"),
    ],
)
def test_load_release_of_an_unknown_name_lists_and_suggests(
    shipped: Path, source: str, kind: Any, match: str
) -> None:
    with pytest.raises(FileNotFoundError, match=match):
        load_release(source, kind)


def test_load_release_from_the_hub_asks_for_three_files(
    shipped: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repo_id: str, *, allow_patterns: list[str]) -> str:
        assert (repo_id, sorted(allow_patterns)) == ("Owner/net-1", FILES)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_release("Owner/net-1").name in ("a-metanet", "a-functional", "a-rule")


def test_load_release_hub_failure_is_explained(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo_id: str, *, allow_patterns: list[str]) -> str:
        raise ConnectionError("offline\nlong story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    match = r"'owner/net', which is no folder here.*ConnectionError: offline\).*alpha-mlp, beta-mlp"
    with pytest.raises(FileNotFoundError, match=match):
        load_release("owner/net")


@pytest.mark.parametrize("name", ["checkpoints", "recipes"])
def test_shipped_folder_of_a_checkout_and_of_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("amortopt.system.files.__file__", str(tmp_path / "amortopt" / "system" / "files.py"))
    (tmp_path / name).mkdir()
    assert shipped_folder(name) == tmp_path / "amortopt" / f"_{name}"
    (tmp_path / "pyproject.toml").write_text("")
    assert shipped_folder(name) == tmp_path / name
