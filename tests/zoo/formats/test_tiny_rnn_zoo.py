"""The Tiny RNN Zoo: its batched training, its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from amortopt.cli.main import main
from amortopt.functional.networks import params_of, stack
from amortopt.zoo import load_zoo
from amortopt.zoo.formats import tiny_rnn_zoo
from amortopt.zoo.formats.tiny_rnn_zoo import (
    TinyRNNZooConfig,
    answers,
    build_tiny_rnn_zoo,
    draw_networks,
    draw_training,
    from_dict,
    train_networks,
)

CONFIG = TinyRNNZooConfig(
    count=7, seed=3, hidden=5, terms=2, held_out=30, steps=(2, 9), train_size=(10, 60), shard_size=3
)
PROBLEM = CONFIG.problem


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def networks(count: int) -> list[Any]:
    torch.manual_seed(0)
    return [CONFIG.family.build().double() for _ in range(count)]


def test_success_is_a_whole_answer_written_by_the_network_alone() -> None:
    alone, test = networks(4), PROBLEM.split("test")
    params = stack([params_of(net) for net in alone])
    params["readout.weight"] *= 20
    # With random weights whole answers are rare; a network that always predicts the same digit has some.
    params["readout.bias"][0] = 100 * F.one_hot(torch.tensor(1), 10)
    digits, success = answers(alone[0], params, test, chunk=17)
    for b, net in enumerate(alone):
        net.load_state_dict({name: p[b] for name, p in params.items()})
        written = test.x.clone()
        first = written.shape[1] - PROBLEM.answer + 1
        predicted = torch.zeros_like(test.y)
        for k in range(PROBLEM.answer):
            predicted[:, k] = net(written)[:, k].argmax(-1)
            if k + 1 < PROBLEM.answer:
                written[:, first + k] = predicted[:, k]
        assert success[b] == (predicted == test.y).all(1).double().mean()
        assert success[b] <= digits[b] <= 1
    assert 0 < success[0] < 1


def test_a_network_that_is_not_finite_answers_nothing() -> None:
    params = stack([params_of(net) for net in networks(2)])
    params["readout.bias"][1] = torch.nan
    assert answers(networks(1)[0], params, PROBLEM.split("test"))[1][1] == 0


def test_train_networks_is_torchs_training_one_by_one() -> None:
    params, table = train_networks(CONFIG, 0, 3)
    data, module = PROBLEM.split("train"), CONFIG.family.build()
    for b in range(3):
        drawn = (int(table["seed"][b]), table["init_scale"][b], int(table["steps"][b]))
        start, chosen = draw_training(CONFIG, module, len(data), *drawn, int(table["train_size"][b]))
        module.load_state_dict(start)
        optimizer = torch.optim.AdamW(
            module.parameters(), float(table["learning_rate"][b]), betas=(0.9, 0.99),
            weight_decay=float(table["weight_decay"][b]),
        )  # fmt: skip
        for rows in torch.from_numpy(chosen).long():
            optimizer.zero_grad()
            F.cross_entropy(module(data.x[rows]).flatten(0, 1), data.y[rows].flatten()).backward()
            optimizer.step()
        for name, p in module.named_parameters():
            torch.testing.assert_close(params[name][b], p.detach(), rtol=1e-4, atol=1e-5)


def test_networks_depend_on_their_index_alone() -> None:
    params, table = train_networks(CONFIG, 0, 4)
    later, part = train_networks(replace(CONFIG, count=50), 2, 3)
    for name, p in later.items():
        torch.testing.assert_close(p[0], params[name][2], rtol=1e-4, atol=1e-6)
    assert all(part[name][0] == table[name][2] for name in ("seed", "steps", "split", "learning_rate"))


def test_draws_stay_in_their_ranges_and_spread() -> None:
    config = TinyRNNZooConfig()
    table = draw_networks(config, 0, 300)
    for name in ("learning_rate", "init_scale", "steps", "train_size", "weight_decay"):
        low, high = getattr(config, name)
        assert low <= table[name].min() < low * 1.2 and high >= table[name].max() > high / 1.2
    assert 20 <= (table["split"] == "test").sum() <= 40
    _, chosen = draw_training(config, config.family.build(), 700, 5, 1.0, 400, 60)
    assert chosen.shape == (400, 32) and len(np.unique(chosen)) == 60


def test_build_gives_the_same_bits_however_it_was_split_or_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert build_tiny_rnn_zoo(CONFIG, tmp_path / "whole") == []
    assert torch.equal(state, torch.get_rng_state())
    assert build_tiny_rnn_zoo(CONFIG, tmp_path / "parts", shard="2/2") == [1, 3]

    def killed(config: TinyRNNZooConfig, start: int, stop: int, **options: object) -> None:
        if start == 6:
            raise KeyboardInterrupt
        return original(config, start, stop, **options)

    original = train_networks
    monkeypatch.setattr(tiny_rnn_zoo, "train_networks", killed)
    with pytest.raises(KeyboardInterrupt):
        build_tiny_rnn_zoo(CONFIG, tmp_path / "parts")
    with pytest.raises(FileNotFoundError, match="shard 3 of 3 missing"):
        load_zoo(tmp_path / "parts")
    trained: list[int] = []
    monkeypatch.setattr(
        tiny_rnn_zoo, "train_networks", lambda *a, **k: trained.append(a[1]) or original(*a, **k)
    )
    assert build_tiny_rnn_zoo(CONFIG, tmp_path / "parts") == []
    assert trained == [6]
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_load_zoo_reads_it_with_its_recipe(tmp_path: Path) -> None:
    build_tiny_rnn_zoo(CONFIG, tmp_path / "z")
    zoo = load_zoo(tmp_path / "z")
    assert len(zoo) == CONFIG.count and "arithmetic" in repr(zoo)
    assert from_dict(zoo.config) == CONFIG
    assert zoo.problem == PROBLEM and zoo.family == CONFIG.family
    _, success = answers(zoo.family.build(), zoo.params, PROBLEM.split("test"))
    np.testing.assert_array_equal(zoo.table["success_rate"], success.numpy())


def test_from_dict_refuses_another_zoo() -> None:
    with pytest.raises(ValueError, match="expected a Tiny RNN Zoo; build one with"):
        from_dict({"problem": {"name": "mnist1d"}, "family": {"name": "mlp"}})


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": (5, 2)},
        {"learning_rate": (0.0, 1.0)},
        {"count": 0},
        {"val_fraction": 1.0},
        {"train_size": (10, 71)},
        {"seed": -1},
    ],
)
def test_config_names_a_bad_argument(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(CONFIG, **wrong)


def test_command_builds_one_and_refuses_another_in_the_same_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["zoo", "tiny-rnn", "--out", str(tmp_path / "z"), "--hidden", "4", "--steps", "[1, 3]"]
    assert main([*common, "--count", "3", "--progress", "false"]) == 0
    assert "complete, 3 networks" in capsys.readouterr().out
    assert main([*common, "--count", "4"]) == 2
    assert "count: 3 there, 4 asked for" in capsys.readouterr().err
    assert main(["zoo", "tiny-rnn"]) == 2
    assert "--out: got nothing" in capsys.readouterr().err


def test_training_helps() -> None:
    config = TinyRNNZooConfig(
        count=4, steps=(300, 300), learning_rate=(0.02, 0.02), train_size=(700, 700), init_scale=(1, 1)
    )
    _, table = train_networks(config, 0, 4)
    assert table["success_rate"].mean() > 0.2  # guessing: less than 0.05
    assert (table["success_rate"] <= table["test_accuracy"]).all()
