"""Release checkpoints: round trip, refusal of damaged ones, no partial folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from amortopt.functional.networks import params_of
from amortopt.metanets import make_metanet
from amortopt.optim import ScaleGMNOptimizer
from amortopt.release import metanet as checkpoints
from amortopt.release.metanet import list_shipped, load_release, save_release
from tests.optim.metanets import PROBLEM, SPEC, TANH, Scale

FILES = ["README.md", "config.json", "model.safetensors"]
META: dict[str, Any] = {
    "name": "test-checkpoint",
    "problem": PROBLEM,
    "family": TANH.to_config(),
    "recipe": {"steps": 20, "optimizer": {"lr": 0.1}},
    "seeds": {"meta": 1},
    "results": {"test accuracy": 0.6175, "after": {"mean": 0.61, "max": 0.64}, "before": {"mean": 0.26}},
    "commit": "0123abc",
}


def save(folder: Path, **changed: Any) -> Path:
    metanet = make_metanet("test-scale", SPEC, start=0.5, reads=["l1"])
    return save_release(folder, metanet, **{**META, **changed})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "checkpoint")


def test_release_round_trip(folder: Path) -> None:
    release = load_release(folder)
    assert sorted(os.listdir(folder)) == FILES
    assert {key: getattr(release, key) for key in META} == META
    assert isinstance(release.metanet, Scale) and not release.metanet.training
    assert release.metanet.config == {"start": 0.5, "reads": ["l1"]}
    torch.testing.assert_close(
        params_of(release.metanet), params_of(make_metanet("test-scale", SPEC)), rtol=0, atol=0
    )
    assert release.spec == SPEC
    assert release.versions["torch"] == torch.__version__


def test_release_keeps_trained_weights_and_dtype(tmp_path: Path) -> None:
    metanet = make_metanet("test-scale", SPEC).double()
    torch.nn.init.constant_(next(metanet.parameters()), 1 / 3)
    loaded = load_release(save_release(tmp_path / "x", metanet, **META)).metanet
    assert next(loaded.parameters()).item() == 1 / 3


def test_load_release_leaves_the_random_state(folder: Path) -> None:
    before = torch.get_rng_state()
    load_release(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_release_save_writes_the_same_again(folder: Path, tmp_path: Path) -> None:
    again = load_release(folder).save(tmp_path / "again")
    for name in FILES:
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_model_card_says_what_the_fields_say(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for part in (
        "# test-checkpoint",
        'from_pretrained("test-checkpoint")',
        "| test accuracy | 0.6175 |",
        "| after | 0.61 | 0.64 |",
        "| before | 0.26 |  |",
        '"steps": 20',
        "0123abc",
        "meta 1",
        "6 parameters",
        "mlp(activation=tanh",
        "## Limits",
    ):
        assert part in card


def test_save_release_own_card_and_text_recipe(tmp_path: Path) -> None:
    release = load_release(save(tmp_path / "x", card="# mine\n", recipe="steps: 20\n"))
    assert (release.card, release.recipe) == ("# mine\n", "steps: 20\n")


def test_save_release_replaces_a_checkpoint(folder: Path) -> None:
    save(folder, name="second")
    assert load_release(folder).name == "second"
    assert os.listdir(folder.parent) == ["checkpoint"]


def test_save_release_refuses_a_folder_with_other_files(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files.*notes\.txt.*choose a new"):
        save(folder, name="second")
    assert load_release(folder).name == "test-checkpoint"


def test_save_release_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        save(tmp_path / "x")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "Upper", ".hidden", "with space", "-x", 3])
def test_save_release_refuses_unsafe_names(tmp_path: Path, name: Any) -> None:
    with pytest.raises(ValueError, match=r"name: got .*expected lower-case letters"):
        save(tmp_path / "x", name=name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"results": {"loss": float("nan")}}, "results: json cannot hold it"),
        ({"recipe": {"path": Path("x")}}, "recipe: json cannot hold it"),
    ],
)
def test_save_release_refuses_what_json_cannot_hold(tmp_path: Path, changed: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        save(tmp_path / "x", **changed)
    assert os.listdir(tmp_path) == []


def test_save_release_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    metanet = make_metanet("test-scale", SPEC, start=float("inf"))
    with pytest.raises(ValueError, match=r"state 'gains\.0' has NaN or infinite"):
        save_release(tmp_path / "x", metanet, **META)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_save_release_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool, failing: str
) -> None:
    if there:
        save(tmp_path / "x")
    real, calls = getattr(os, failing), []

    def full(*args: Any) -> Any:
        calls.append(args)
        # The second call: one file is written, or the old folder moved aside.
        if len(calls) == (2 if failing == "fsync" or there else 1):
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match=r"could not write the checkpoint .*No space left.*make room") as caught:
        save(tmp_path / "x", name="second")
    assert caught.value.errno == 28
    assert os.listdir(tmp_path) == (["x"] if there else [])
    if there:
        assert load_release(tmp_path / "x").name == "test-checkpoint"


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
    "config altered": (edit(results={"accuracy": 1.0}), ValueError, r"config\.json was altered"),
    "config no object": (
        lambda f: (f / "config.json").write_text("[]"),
        ValueError,
        "got format version None",
    ),
    "other format": (edit(format=2), ValueError, "got format version 2, expected 1"),
    "no format": (edit(format=None), ValueError, "got format version None, expected 1"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_load_release_refuses_a_damaged_folder(folder: Path, name: str) -> None:
    damage, kind, match = DAMAGE[name]
    damage(folder)
    with pytest.raises(kind, match=match):
        load_release(folder)
    with pytest.raises(kind, match=match):
        ScaleGMNOptimizer.from_pretrained(folder)


def rewrite(folder: Path, **changed: Any) -> None:
    """Alter the config and make its checksum right again."""
    config = json.loads((folder / "config.json").read_text()) | changed
    rest = {key: value for key, value in config.items() if key != "sha256"}
    config["sha256"]["config.json"] = checkpoints._sha256(checkpoints._canonical(rest))
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"metanet": {"name": "no-such", "config": {}}}, "does not fit .*unknown metanet 'no-such'"),
        ({"metanet": {"name": "test-scale", "config": {"strat": 1}}}, "does not fit .*strat"),
        ({"metanet": {"name": "test-same", "config": {}}}, "does not fit .*gains"),
        ({"metanet": []}, "does not fit"),
        ({"spec": {"format": 99}}, "does not fit .*format 99"),
        ({"name": "../up"}, "name: got '../up'"),
    ],
)
def test_load_release_refuses_a_config_that_does_not_fit(folder: Path, changed: Any, match: str) -> None:
    rewrite(folder, **changed)
    with pytest.raises(ValueError, match=match):
        load_release(folder)


def test_load_release_refuses_a_config_that_lacks_fields(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["problem"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json lacks problem"):
        load_release(folder)


def test_load_release_refuses_weights_that_are_no_safetensors(folder: Path) -> None:
    data = b"a pickle, perhaps"
    (folder / "model.safetensors").write_bytes(data)
    sums = {"model.safetensors": checkpoints._sha256(data)}
    rewrite(folder, sha256=sums)
    with pytest.raises(ValueError, match=r"model\.safetensors is no safetensors file"):
        load_release(folder)


def test_load_release_works_without_the_card(folder: Path) -> None:
    (folder / "README.md").unlink()
    assert load_release(folder).card is None


def test_load_release_refuses_a_file(folder: Path) -> None:
    with pytest.raises(ValueError, match="is a file, expected a checkpoint's folder"):
        load_release(folder / "config.json")


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "shipped"
    for name in ("alpha-mlp", "beta-mlp"):
        save(root / name, name=name)
    (root / "README.md").write_text("a plain file")
    (root / ".alpha-mlp.1.tmp").mkdir()
    (root / "no-checkpoint").mkdir()
    monkeypatch.setattr(checkpoints, "_shipped_root", lambda: root)
    monkeypatch.chdir(tmp_path)
    return root


def test_list_shipped_skips_what_is_no_checkpoint(shipped: Path) -> None:
    assert list_shipped() == ["alpha-mlp", "beta-mlp"]
    shutil.rmtree(shipped)
    assert list_shipped() == []


def test_load_release_by_shipped_name(shipped: Path) -> None:
    assert load_release("beta-mlp").name == "beta-mlp"


def test_load_release_prefers_a_folder_to_a_shipped_name(shipped: Path, tmp_path: Path) -> None:
    save(tmp_path / "alpha-mlp", name="mine")
    assert load_release("alpha-mlp").name == "mine"


def test_load_release_unknown_name_lists_and_suggests(shipped: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"'alpha-mpl'.*mean 'alpha-mlp'\?.*are alpha-mlp, beta-mlp"):
        load_release("alpha-mpl")
    with pytest.raises(
        FileNotFoundError, match=r"'\.\./\.\./zzz', which is no folder .*are alpha-mlp, beta-mlp"
    ):
        load_release("../../zzz")
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_release("")


def test_load_release_from_the_hub_asks_for_three_files(
    shipped: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repo_id: str, *, allow_patterns: list[str]) -> str:
        assert (repo_id, sorted(allow_patterns)) == ("Owner/net-1", FILES)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_release("Owner/net-1").name == "test-checkpoint"


def test_load_release_hub_failure_is_explained(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo_id: str, *, allow_patterns: list[str]) -> str:
        raise ConnectionError("offline\nlong story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    match = r"'owner/net', which is no folder here.*ConnectionError: offline\).*alpha-mlp, beta-mlp"
    with pytest.raises(FileNotFoundError, match=match):
        load_release("owner/net")


def test_shipped_root_of_a_checkout_and_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "__file__", str(tmp_path / "amortopt" / "release" / "metanet.py"))
    (tmp_path / "checkpoints").mkdir()
    assert checkpoints._shipped_root() == tmp_path / "amortopt" / "_checkpoints"
    (tmp_path / "pyproject.toml").write_text("")
    assert checkpoints._shipped_root() == tmp_path / "checkpoints"


def test_every_shipped_checkpoint_loads_and_runs() -> None:
    for name in list_shipped():
        opt = ScaleGMNOptimizer.from_pretrained(name)
        assert opt.name == name and opt.family is not None
        if "grads" not in opt.metanet.inputs:
            opt.one_shot(opt.family.build())


def test_optimizer_save_pretrained_round_trip(folder: Path, tmp_path: Path) -> None:
    model = TANH.build()
    opt = ScaleGMNOptimizer.from_pretrained(str(folder), device="cpu")
    again = ScaleGMNOptimizer.from_pretrained(opt.save_pretrained(tmp_path / "again"))
    assert repr(again) == repr(opt)
    torch.testing.assert_close(
        params_of(again.one_shot(model)), params_of(opt.one_shot(model)), rtol=0, atol=0
    )


def test_optimizer_save_pretrained_without_release(tmp_path: Path) -> None:
    opt = ScaleGMNOptimizer(make_metanet("test-scale", SPEC), family=TANH, problem=PROBLEM, name="mine")
    assert repr(ScaleGMNOptimizer.from_pretrained(opt.save_pretrained(tmp_path / "x"))) == repr(opt)
    bare = ScaleGMNOptimizer(make_metanet("test-scale", SPEC))
    assert ScaleGMNOptimizer.from_pretrained(bare.save_pretrained(tmp_path / "y")).family is None


def test_optimizer_push_to_hub_uploads_the_three_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Api:
        def __init__(self, token: str | None) -> None:
            calls.append(token)

        def create_repo(self, repo_id: str, **kwargs: Any) -> None:
            calls.append((repo_id, kwargs))

        def upload_folder(self, *, repo_id: str, folder_path: Path, **kwargs: Any) -> str:
            calls.append((repo_id, sorted(os.listdir(folder_path)), kwargs))
            return "the address"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    opt = ScaleGMNOptimizer.from_pretrained(folder)
    assert opt.push_to_hub("me/net", private=True, token="t", commit_message="hi") == "the address"
    assert calls == [
        "t",
        ("me/net", {"private": True, "exist_ok": True}),
        ("me/net", FILES, {"commit_message": "hi"}),
    ]
