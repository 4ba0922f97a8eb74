"""The Tiny RNN Zoo: its problems, its batched training, its files, its symmetry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from amortopt.cli.main import main
from amortopt.functional.networks import params_of, stack
from amortopt.symmetry import extract
from amortopt.symmetry.proof.verify import verify
from amortopt.tasks.arithmetic import VOCABULARY, Arithmetic, ArithmeticRNN
from amortopt.zoo import load_zoo
from amortopt.zoo.formats import tiny_rnn_zoo
from amortopt.zoo.formats.many_grus import answers, loss_and_grads
from amortopt.zoo.formats.tiny_rnn_zoo import (
    TinyRNNZooConfig,
    build_tiny_rnn_zoo,
    draw_networks,
    draw_training,
    from_dict,
    train_many_grus,
    train_networks,
)

ARITHMETIC = Arithmetic(terms=2, digits=1, held_out=30)
CONFIG = TinyRNNZooConfig(
    count=7, seed=3, hidden=5, arithmetic=ARITHMETIC, steps=(2, 9), train_size=(10, 60), shard_size=3
)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def networks(count: int, hidden: int = 4) -> list[ArithmeticRNN]:
    torch.manual_seed(0)
    return [ArithmeticRNN(hidden).double() for _ in range(count)]


# Problems


@pytest.mark.parametrize("arithmetic", [ARITHMETIC, Arithmetic(), Arithmetic(terms=2, digits=2)])
def test_every_problem_stands_once_with_its_own_answer(arithmetic: Arithmetic) -> None:
    problems = arithmetic.problems()
    texts = [arithmetic.text(row) for row in problems]
    assert len(set(texts)) == arithmetic.count == len(arithmetic.train()) + len(arithmetic.test())
    for text in texts[::7]:
        question, answer = text.split("=")
        terms = question.split("+")
        assert [len(term) for term in terms] == [arithmetic.digits] * arithmetic.terms
        assert len(answer) == arithmetic.answer and sum(map(int, terms)) == int(answer)
    assert problems.shape[1] == arithmetic.length + 1


@pytest.mark.parametrize(
    "wrong", [{"terms": 1}, {"digits": 0}, {"digits": 3, "terms": 4}, {"held_out": 1000}]
)
def test_arithmetic_names_a_bad_argument(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Arithmetic(**wrong)


# Many GRUs at once


def test_loss_and_grads_are_autograds() -> None:
    own = networks(3)
    params = stack([params_of(net) for net in own])
    problems = ARITHMETIC.problems()[torch.arange(33).view(3, 11)]
    losses, grads = loss_and_grads(params, problems, ARITHMETIC.answer)
    for b, net in enumerate(own):
        logits = net(problems[b, :, :-1])[:, -ARITHMETIC.answer :]
        loss = F.cross_entropy(logits.flatten(0, 1), problems[b, :, -ARITHMETIC.answer :].flatten())
        loss.backward()
        torch.testing.assert_close(losses[b], loss.detach(), rtol=1e-12, atol=0)
        for name, p in net.named_parameters():
            torch.testing.assert_close(grads[name][b], p.grad, rtol=1e-9, atol=1e-15)


def test_training_together_is_torchs_training_one_by_one() -> None:
    own, lasting = networks(3), [6, 3, 8]
    rates, decays = torch.tensor([0.01, 0.05, 0.02]), torch.tensor([0.5, 0.01, 2.0])
    problems = ARITHMETIC.train()
    source = torch.Generator().manual_seed(1)
    batches = [torch.randint(len(problems), (steps, 4), generator=source) for steps in lasting]
    start = stack([params_of(net) for net in own])
    trained, _ = train_many_grus(
        start, problems, batches, ARITHMETIC.answer, learning_rate=rates, weight_decay=decays
    )
    for b, net in enumerate(own):
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=float(rates[b]), betas=(0.9, 0.99), weight_decay=float(decays[b])
        )
        for chosen in batches[b]:
            rows = problems[chosen]
            logits = net(rows[:, :-1])[:, -ARITHMETIC.answer :]
            loss = F.cross_entropy(logits.flatten(0, 1), rows[:, -ARITHMETIC.answer :].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for name, p in net.named_parameters():
            torch.testing.assert_close(trained[name][b], p.detach(), rtol=1e-6, atol=1e-7)


def test_success_is_a_whole_answer_written_by_the_network_alone() -> None:
    own = networks(4)
    params, problems = stack([params_of(net) for net in own]), ARITHMETIC.problems()
    params["readout.weight"] *= 20
    # With random weights whole answers are rare; a network that always says the same digit has some.
    params["readout.bias"][0] = 100 * F.one_hot(torch.tensor(1), 10)
    digits, success = answers(params, problems, ARITHMETIC.answer, chunk=17)
    for b, net in enumerate(own):
        net.load_state_dict({name: p[b] for name, p in params.items()})
        written = problems[:, : -ARITHMETIC.answer]
        for _ in range(ARITHMETIC.answer):
            said = net(written)[:, -1].argmax(-1)
            written = torch.cat([written, said[:, None]], dim=1)
        assert success[b] == (written == problems).all(1).double().mean()
        assert success[b] <= digits[b] <= 1
    assert 0 < success[0] < 1


def test_a_network_that_is_not_finite_answers_nothing() -> None:
    params = stack([params_of(net) for net in networks(2)])
    params["readout.bias"][1] = torch.nan
    _, success = answers(params, ARITHMETIC.problems(), ARITHMETIC.answer)
    assert success[1] == 0


# The zoo


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
    _, chosen = draw_training(config, seed=5, init_scale=1.0, steps=400, train_size=60)
    assert chosen.shape == (400, 32) and len(chosen.unique()) == 60


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
    _, success = answers(zoo.params, ARITHMETIC.test(), ARITHMETIC.answer)
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


# Symmetry


def test_symmetry_is_extracted_and_proved() -> None:
    torch.manual_seed(0)
    net, example = ArithmeticRNN(6), ARITHMETIC.test()[:5, :-1]
    spec = extract(net, example)
    assert verify(spec, net, example).holds
    hidden = [group for group in spec.groups if group.permutable]
    assert [(group.size, group.kind) for group in hidden] == [(6, "sign")]
    assert {block.param for block in spec.blocks} == set(params_of(net))
    gates = spec.blocks_of("gru.weight_hh_l0")
    assert [len(block.groups) for block in gates] == [2, 2, 2]
    assert len(VOCABULARY) == net.gru.input_size
