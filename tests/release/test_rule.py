"""Releases of update rules: folders that are whole, unaltered, and never unpickled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from amortopt import UNFOptimizer, list_shipped, load_release, load_rule, save_rule
from amortopt.metanets.update_rule.rule import UpdateRule
from amortopt.release import rule as rule_release
from amortopt.release.folder import canonical, sha256
from tests.releases import untrained_release

PROBLEMS = [
    {
        "problem": {"name": "mnist1d"},
        "family": {"name": "mlp", "activation": "tanh", "widths": [40, 32, 32, 10]},
    }
]


def save(folder: Path, rule: UpdateRule | None = None, **options: Any) -> Path:
    given: dict[str, Any] = {
        "name": "a-rule",
        "recipe": {"steps": 3},
        "seeds": {"meta": 0},
        "results": {"mlp": {"loss": 0.25}},
        "problems": PROBLEMS,
        "commit": "abc",
    }
    return save_rule(folder, rule or UpdateRule(width=4, depth=1), **{**given, **options})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "a-rule")


@pytest.mark.parametrize("config", [{"width": 4}, {"net": "mlp", "width": 3, "depth": 3, "gate": False}])
def test_a_rule_comes_back_as_it_was(tmp_path: Path, config: dict[str, Any]) -> None:
    rule = UpdateRule(**config)
    state = torch.random.get_rng_state()
    release = load_rule(save(tmp_path / "r", rule))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert release.rule.config == rule.config and not release.rule.training
    for name, value in rule.state_dict().items():
        assert torch.equal(release.rule.state_dict()[name], value), name
    known = (release.name, release.recipe, release.seeds, release.results, release.problems, release.commit)
    assert known == ("a-rule", {"steps": 3}, {"meta": 0}, {"mlp": {"loss": 0.25}}, PROBLEMS, "abc")


def test_a_release_is_saved_again_as_it_was(folder: Path, tmp_path: Path) -> None:
    again = load_rule(folder).save(tmp_path / "again")
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_the_card_says_what_the_fields_say(folder: Path) -> None:
    card = load_rule(folder).card
    assert card is not None
    for text in (
        'from_pretrained("a-rule", model, example_input=x)',
        "widths=[40, 32, 32, 10]",
        "0.25",
        "abc",
    ):
        assert text in card


def altered(folder: Path, **changes: Any) -> None:
    """Change fields, and the checksum with them."""
    config = json.loads((folder / "config.json").read_text())
    sums = config.pop("sha256")
    config.update(changes)
    sums["config.json"] = sha256(canonical(config))
    (folder / "config.json").write_text(json.dumps({**config, "sha256": sums}))


def test_an_altered_weights_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"was truncated or altered: got sha256"):
        load_rule(folder)


def test_an_altered_configuration_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"commit": "abc"', '"commit": "abd"'))
    with pytest.raises(ValueError, match=r"was altered.*write a changed one with save_rule"):
        load_rule(folder)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": 2}, r"got format version 2, expected 1"),
        ({"rule": {"net": "unf", "width": 5, "depth": 1}}, r"does not fit model\.safetensors.*size mismatch"),
        ({"rule": {"net": "unf", "heads": 5}}, r"does not fit model\.safetensors.*heads"),
        ({"name": "../up"}, r"name: got '\.\./up'"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, changes: dict[str, Any], match: str) -> None:
    altered(folder, **changes)
    with pytest.raises(ValueError, match=match):
        load_rule(folder)


def test_a_pickle_is_not_read(folder: Path) -> None:
    torch.save(UpdateRule(width=4, depth=1).state_dict(), folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["sha256"]["model.safetensors"] = sha256((folder / "model.safetensors").read_bytes())
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is no safetensors file"):
        load_rule(folder)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"name": "A Rule"}, r"name: got 'A Rule'"),
        ({"results": {"loss": float("nan")}}, r"results: json cannot hold it"),
        ({"rule": torch.nn.Linear(2, 2)}, r"rule: got Linear, expected an UpdateRule"),
    ],
)
def test_what_cannot_be_released_is_refused(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        save(tmp_path / "r", **options)
    assert not (tmp_path / "r").exists()


def test_weights_that_are_not_finite_are_not_released(tmp_path: Path) -> None:
    rule = UpdateRule(width=4)
    with torch.no_grad():
        rule.log_alpha.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"rule: state 'log_alpha' has NaN or infinite"):
        save(tmp_path / "r", rule)


def test_both_kinds_say_what_to_use_for_the_other(folder: Path, tmp_path: Path) -> None:
    metanet = untrained_release(tmp_path)
    with pytest.raises(ValueError, match=r"is an update rule's: use amortopt\.load_rule or UNFOptimizer"):
        load_release(folder)
    with pytest.raises(
        ValueError, match=r"is a metanet's checkpoint: use amortopt\.load_release or ScaleGMN"
    ):
        load_rule(metanet)


def test_shipped_rules_have_a_list_of_their_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "shipped"
    shutil.copytree(folder, root / "a-rule")
    untrained_release(root)
    monkeypatch.setattr(rule_release, "_shipped_root", lambda: root)
    monkeypatch.setattr("amortopt.release.metanet._shipped_root", lambda: root)
    assert list_shipped() == ["mnist1d-mlp-tanh"]
    assert list_shipped("rule") == ["a-rule"]
    assert load_rule("a-rule").name == "a-rule"
    with pytest.raises(FileNotFoundError, match=r"did you mean 'a-rule'\?; shipped rules are a-rule;"):
        load_rule("a-rul")
    with pytest.raises(ValueError, match=r"use amortopt\.load_rule"):
        load_release("a-rule")


def test_the_optimizer_takes_a_folder(folder: Path) -> None:
    net, x = torch.nn.Linear(4, 3), torch.ones(2, 4)
    before = net.weight.detach().clone()
    opt = UNFOptimizer.from_pretrained(folder, net, example_input=x, lr=0.5, weight_decay=0.1)
    assert opt.param_groups[0]["lr"] == 0.5 and opt.param_groups[0]["weight_decay"] == 0.1
    net(x).square().sum().backward()
    opt.step()
    assert not torch.equal(net.weight, before)
    twin = UNFOptimizer(torch.nn.Linear(4, 3), x, rule=str(folder))
    twin.load_state_dict(opt.state_dict())
