"""Releases of every kind: what is saved comes back, and nothing else is accepted for saving."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from amortopt import Release, UNFOptimizer, list_shipped, load_release, save_release
from amortopt.functional.networks import params_of
from amortopt.metanets import L1Range, UNFRule, make
from amortopt.optim import ScaleGMNOptimizer
from tests.optim.metanets import PROBLEM, SPEC, TANH
from tests.releases import FILES, KINDS, make_release


@pytest.fixture(params=KINDS)
def release(request: pytest.FixtureRequest) -> Release:
    return make_release(request.param)


def test_release_round_trip(release: Release, tmp_path: Path) -> None:
    folder = save_release(tmp_path / "x", release)
    state = torch.get_rng_state()
    loaded = load_release(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(os.listdir(folder)) == FILES
    for key in ("kind", "name", "problems", "recipe", "seeds", "results", "commit", "l1_range", "passes"):
        assert getattr(loaded, key) == getattr(release, key)
    assert type(loaded.module) is type(release.module) and not loaded.module.training
    assert loaded.module.config == release.module.config
    expected = release.module.state_dict()
    torch.testing.assert_close(dict(loaded.module.state_dict()), dict(expected), rtol=0, atol=0)
    assert loaded.versions["torch"] == torch.__version__


def test_release_saved_again_is_the_same(release: Release, tmp_path: Path) -> None:
    first = save_release(tmp_path / "first", release)
    second = save_release(tmp_path / "second", load_release(first))
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_release_of_a_metanet_keeps_spec_family_and_problem(tmp_path: Path) -> None:
    loaded = load_release(save_release(tmp_path / "x", make_release("metanet")))
    assert loaded.module.spec == SPEC
    assert loaded.family == TANH.to_config() and loaded.problem == PROBLEM


@pytest.mark.parametrize(
    "config",
    [
        {"width": 4},
        {"net": "mlp", "width": 3, "depth": 3, "mix": [0.0, 1.0, 0.0, 0.0]},
        {"net": "none", "vector_rate": 0.3},
    ],
)
def test_release_of_a_rule_keeps_its_arguments(tmp_path: Path, config: dict[str, Any]) -> None:
    rule = UNFRule(**config)
    assert load_release(save_release(tmp_path / "x", Release(rule, "a"))).module.config == rule.config


def test_release_keeps_trained_weights_and_dtype(tmp_path: Path) -> None:
    metanet = make("test-scale", SPEC).double()
    torch.nn.init.constant_(next(metanet.parameters()), 1 / 3)
    loaded = load_release(save_release(tmp_path / "x", Release(metanet, "x"))).module
    assert next(loaded.parameters()).item() == 1 / 3


def test_release_keeps_a_card_and_a_recipe_as_text(tmp_path: Path) -> None:
    folder = save_release(tmp_path / "x", make_release("metanet", card="# mine\n", recipe="steps: 20\n"))
    loaded = load_release(folder)
    assert (loaded.card, loaded.recipe) == ("# mine\n", "steps: 20\n")


def test_release_without_a_card_loads(tmp_path: Path) -> None:
    folder = save_release(tmp_path / "x", make_release("metanet"))
    (folder / "README.md").write_bytes(b"caf\xe9")
    assert load_release(folder).card == "caf\ufffd"
    (folder / "README.md").unlink()
    assert load_release(folder).card is None


def test_release_names_no_path_of_a_problem(tmp_path: Path) -> None:
    problem = {"name": "cifar10_gray", "root": "/data/cifar", "download": False, "seed": 3}
    release = make_release("rule", problems=[{"problem": problem}])
    loaded = load_release(save_release(tmp_path / "x", release))
    assert loaded.problems == [{"problem": {"name": "cifar10_gray", "seed": 3}}]


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        (
            "metanet",
            ['from_pretrained("a-metanet")', "l1=0.001", "0 and 0.0001 to 0.01", "6 parameters", "3 times"],
        ),
        ("functional", ['amortopt.load("a-functional")', "functional (`unf_functional`"]),
        ("rule", ['from_pretrained("a-rule", model, example_input=x)', "update rule (`update_rule`"]),
    ],
)
def test_card_shows_the_fields(tmp_path: Path, kind: str, parts: list[str]) -> None:
    card = (save_release(tmp_path / "x", make_release(kind)) / "README.md").read_text()
    common = [
        f"# a-{kind}",
        "| test accuracy | 0.6175 |",
        "| after | 0.61 | 0.64 |",
        "| before | 0.26 |  |",
        '"steps": 20',
        "0123abc",
        "meta 1",
        "`mlp(activation=tanh",
        "on `mnist1d`",
        "## Limits",
    ]
    for part in common + parts:
        assert part in card, part


def test_save_release_replaces_a_release(tmp_path: Path) -> None:
    for kind in KINDS:
        save_release(tmp_path / "x", make_release(kind))
    assert load_release(tmp_path / "x").kind == KINDS[-1]
    assert os.listdir(tmp_path) == ["x"]


def test_save_release_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    folder = save_release(tmp_path / "x", make_release("rule"))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files.*notes\.txt.*choose a new"):
        save_release(folder, make_release("metanet"))
    assert load_release(folder).name == "a-rule"


def test_save_release_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        save_release(tmp_path / "x", make_release("rule"))


@pytest.mark.parametrize("name", ["", "../up", "a/b", "Upper", ".hidden", "with space", "-x", 3])
def test_save_release_refuses_unsafe_names(tmp_path: Path, name: Any) -> None:
    with pytest.raises(ValueError, match=r"name: got .*expected lower-case letters"):
        save_release(tmp_path / "x", make_release("rule", name=name))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"results": {"loss": float("nan")}}, "results: json cannot hold it"),
        ({"recipe": {"path": Path("x")}}, "recipe: json cannot hold it"),
        ({"passes": 0}, "passes: got 0, expected a whole number from 1 to 1000"),
        ({"commit": 3}, "commit: got 3, expected text or null"),
        (
            {"problems": [{"problem": {"name": "own", "file": "/etc/passwd"}}]},
            "problems: got file '/etc",
        ),
        ({"module": torch.nn.Linear(2, 2)}, "module: got Linear, expected a Metanet, a Functional or an"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_save_release_refuses_wrong_fields(tmp_path: Path, kind: str, changed: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        save_release(tmp_path / "x", make_release(kind, **changed))
    assert os.listdir(tmp_path) == []


def test_save_release_refuses_weights_that_are_not_finite(release: Release, tmp_path: Path) -> None:
    first = next(iter(release.module.state_dict()))
    release.module.state_dict()[first].fill_(float("inf"))
    with pytest.raises(ValueError, match=f"{release.kind}: state '{first}' has NaN or infinite"):
        save_release(tmp_path / "x", release)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_save_release_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool, failing: str
) -> None:
    if there:
        save_release(tmp_path / "x", make_release("rule"))
    real, calls = getattr(os, failing), []

    def full(*args: Any) -> Any:
        calls.append(args)
        # The second call: one file is written, or the old folder moved aside.
        if len(calls) == (2 if failing == "fsync" or there else 1):
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match=r"could not write the checkpoint .*No space left.*make room") as caught:
        save_release(tmp_path / "x", make_release("metanet"))
    assert caught.value.errno == 28
    assert os.listdir(tmp_path) == (["x"] if there else [])
    if there:
        assert load_release(tmp_path / "x").name == "a-rule"


@pytest.mark.parametrize("kind", KINDS)
def test_every_shipped_release_loads(kind: Any) -> None:
    assert list_shipped(kind) or kind == "functional"
    for name in list_shipped(kind):
        assert (load_release(name, kind).name, load_release(name).kind) == (name, kind)


def test_every_shipped_metanet_runs() -> None:
    for name in list_shipped():
        opt = ScaleGMNOptimizer.from_pretrained(name)
        assert opt.name == name and opt.family is not None
        if "batch" not in opt.metanet.conditions:
            opt.one_shot(opt.family.build())


def test_one_shot_optimizer_save_pretrained_round_trip(tmp_path: Path) -> None:
    model = TANH.build()
    folder = save_release(tmp_path / "x", make_release("metanet"))
    opt = ScaleGMNOptimizer.from_pretrained(str(folder), device="cpu")
    again = ScaleGMNOptimizer.from_pretrained(opt.save_pretrained(tmp_path / "again"))
    assert repr(again) == repr(opt)
    torch.testing.assert_close(
        params_of(again.one_shot(model)), params_of(opt.one_shot(model)), rtol=0, atol=0
    )


def test_one_shot_optimizer_of_no_release_saves_what_it_has(tmp_path: Path) -> None:
    known: dict[str, Any] = {"family": TANH, "problem": PROBLEM, "name": "mine", "passes": 2}
    opt = ScaleGMNOptimizer(make("test-scale", SPEC), **known, l1_range=L1Range(1e-4, 1e-2))
    assert repr(ScaleGMNOptimizer.from_pretrained(opt.save_pretrained(tmp_path / "x"))) == repr(opt)
    bare = ScaleGMNOptimizer(make("test-scale", SPEC))
    assert ScaleGMNOptimizer.from_pretrained(bare.save_pretrained(tmp_path / "y")).family is None


def test_one_shot_optimizer_push_to_hub_uploads_the_three_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    opt = ScaleGMNOptimizer.from_pretrained(save_release(tmp_path / "x", make_release("metanet")))
    assert opt.push_to_hub("me/net", private=True, token="t", commit_message="hi") == "the address"
    assert calls == [
        "t",
        ("me/net", {"private": True, "exist_ok": True}),
        ("me/net", FILES, {"commit_message": "hi"}),
    ]


def test_stepwise_optimizer_takes_a_folder(tmp_path: Path) -> None:
    folder = save_release(tmp_path / "x", make_release("rule"))
    net, x = torch.nn.Linear(4, 3), torch.ones(2, 4)
    before = net.weight.detach().clone()
    opt = UNFOptimizer.from_pretrained(folder, net, example_input=x, lr=0.5, weight_decay=0.1)
    assert opt.param_groups[0]["lr"] == 0.5 and opt.param_groups[0]["weight_decay"] == 0.1
    net(x).square().sum().backward()
    opt.step()
    assert not torch.equal(net.weight, before)
    twin = UNFOptimizer(torch.nn.Linear(4, 3), x, rule=str(folder))
    twin.load_state_dict(opt.state_dict())
