from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from amortopt.meta.one_pass.data import Batch, ZooDataModule
from amortopt.tasks import make_family, make_problem
from amortopt.zoo import ZooConfig, build_zoo
from tests.meta.tiny import tiny_module


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("zoo")
    family = {"name": "mlp", "activation": "tanh", "widths": [40, 6, 10]}
    build_zoo(ZooConfig(family=family, count=24, epochs=0), folder, progress=False)
    return str(folder)


def loaded(zoo: str, **settings: Any) -> ZooDataModule:
    data = ZooDataModule(zoo, **{"networks": 4, "examples": 8, "input_noise": 0.3, **settings})
    data.load()
    return data


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [*batch.params.values(), batch.examples.x, batch.examples.y, batch.read.x, batch.read.y]


def test_draw_is_a_function_of_seed_step_and_rank(zoo: str) -> None:
    data, batch = loaded(zoo), loaded(zoo).draw(3, 1)
    torch.rand(5)  # the global random state plays no part
    data.draw(7)
    assert all(torch.equal(a, b) for a, b in zip(tensors(data.draw(3, 1)), tensors(batch), strict=True))
    for other in (data.draw(4, 1), data.draw(3, 0), loaded(zoo, seed=1).draw(3, 1)):
        assert not torch.equal(other.examples.x, batch.examples.x)


def test_draw_takes_train_networks_and_noise_per_network(zoo: str) -> None:
    data = loaded(zoo, networks=50, examples=200)
    batch = data.draw(0)
    clean = loaded(zoo, networks=50, examples=200, input_noise=0.0).draw(0)
    assert batch.examples.x.shape == (50, 200, 40) and clean.examples.x.shape == (200, 40)
    noise = batch.examples.x - clean.examples.x
    assert noise.std().item() == pytest.approx(0.3, rel=0.02)
    assert abs((noise[0] * noise[1]).mean().item()) < 0.3**2 * 0.1
    train = {tuple(row.tolist()) for row in data.held["train"]["0.bias"]}
    assert {tuple(row.tolist()) for row in batch.params["0.bias"]} <= train


def test_networks_of_the_splits_are_different_ones(zoo: str) -> None:
    data = loaded(zoo)
    rows = [
        tuple(r.tolist()) for which in ("train", "val", "test") for r in data.held[which]["0.weight"][:, 0]
    ]
    assert len(rows) == len(set(rows)) == 24


def strengths(data: ZooDataModule, step: int = 0) -> torch.Tensor:
    l1 = data.draw(step).l1
    assert l1 is not None
    return l1


def test_strengths_are_log_uniform_with_a_share_of_zeros(zoo: str) -> None:
    assert loaded(zoo).draw(0).l1 is None
    l1 = strengths(loaded(zoo, networks=4000, examples=1, l1=(1e-5, 1e-2), l1_zero=0.25, input_noise=0.0))
    assert l1.shape == (4000,)
    assert (l1 == 0).sum().item() == 1000
    positive = l1[l1 > 0].log10().sort().values
    assert positive.min() >= -5.001 and positive.max() <= -1.999
    uniform = torch.linspace(-5, -2, len(positive))
    torch.testing.assert_close(positive, uniform, rtol=0, atol=0.005)


def test_strengths_of_a_step_are_one_per_stratum_in_random_order(zoo: str) -> None:
    data = loaded(zoo, networks=10, examples=1, l1=(1e-5, 1e-2), l1_zero=0.2)
    orders = set()
    for step in range(20):
        l1 = strengths(data, step)
        shares = (l1[l1 > 0].log10() + 5) / 3  # in [0, 1)
        assert (l1 == 0).sum() == 2
        assert sorted((8 * shares - 1e-4).ceil().clamp(1).int().tolist()) == list(range(1, 9))
        orders.add(tuple(l1.argsort().tolist()))
    assert len(orders) > 15


def test_share_of_zeros_that_is_no_whole_number_holds_on_average(zoo: str) -> None:
    data = loaded(zoo, networks=4, examples=1, l1=(1e-5, 1e-2), l1_zero=0.1, input_noise=0.0)
    counts = torch.tensor([(strengths(data, step) == 0).sum() for step in range(1000)])
    assert set(counts.tolist()) == {0, 1}
    assert counts.float().mean().item() == pytest.approx(0.4, abs=0.06)


def test_strengths_are_a_function_of_seed_step_and_rank(zoo: str) -> None:
    settings = {"l1": (1e-5, 1e-2), "networks": 4}
    l1 = strengths(loaded(zoo, **settings), 3)
    assert torch.equal(l1, strengths(loaded(zoo, **settings), 3))
    assert not torch.equal(l1, strengths(loaded(zoo, **settings), 4))
    assert not torch.equal(l1, strengths(loaded(zoo, seed=1, **settings), 3))


def test_validation_strengths_are_zero_the_ends_and_the_middle(zoo: str) -> None:
    assert loaded(zoo).validation().strengths == {"": 0.0}
    assert loaded(zoo, l1=(1e-4, 1e-2)).validation().strengths == {
        **{"": 0.0, "_l1_low": 1e-4, "_l1_mid": 1e-3, "_l1_high": 1e-2}
    }
    without = loaded(zoo, l1=(1e-3, 1e-3), l1_zero=0.0).validation().strengths
    assert set(without.values()) == {1e-3} and len(without) == 4


def test_validation_reads_val_networks_and_val_data(zoo: str) -> None:
    data = loaded(zoo, val_networks=1)
    held = data.validation(examples=30)
    assert torch.equal(held.params["0.weight"], data.held["val"]["0.weight"][:1])
    assert torch.equal(held.data["val"].x, make_problem("mnist1d").split("val").x)
    assert len(held.data["train"]) == len(held.read) == 30


@pytest.mark.parametrize(
    "settings",
    [
        {"networks": 0},
        {"examples": 0},
        {"val_networks": 0},
        {"input_noise": -0.1},
        {"l1": (0.0, 1.0)},
        {"l1": (1.0, 0.1)},
        {"l1": (1e-4, float("nan"))},
        {"l1_zero": 1.5},
        {"l1_zero": 1.0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(settings))}: got"):
        ZooDataModule("zoo", **settings)


def test_zoo_of_another_family_or_problem_is_refused(zoo: str) -> None:
    data = loaded(zoo)
    problem, family = data.zoo.problem, data.zoo.family
    data.check_fits(problem, family)
    with pytest.raises(ValueError, match=r"family: .*relu.*tanh"):
        data.check_fits(problem, make_family("mlp", activation="relu", widths=[40, 6, 10]))
    with pytest.raises(ValueError, match=r"problem: .*43.*42"):
        data.check_fits(make_problem("mnist1d", seed=43), family)


def test_strengths_are_drawn_exactly_if_they_are_read(zoo: str) -> None:
    plain, reader = tiny_module().metanet, tiny_module(conditions=["l1"]).metanet
    without, drawing = loaded(zoo), loaded(zoo, l1=(1e-4, 1e-2))
    without.check_strengths(plain)
    drawing.check_strengths(reader)
    for data, metanet in ((without, reader), (drawing, plain)):
        with pytest.raises(ValueError, match=r"data\.l1: got"):
            data.check_strengths(metanet)


def test_missing_zoo_without_a_recipe_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ZooDataModule(str(tmp_path / "zoo")).prepare_data()


def test_zoo_recipe_is_looked_for_here_and_in_the_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repository" / "recipes").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    recipe = tmp_path / "repository" / "recipes" / "zoo.yaml"
    recipe.write_text("family: {name: mlp, widths: [40, 6, 10]}\ncount: 12\nepochs: 0\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    data = ZooDataModule("zoo", "recipes/zoo.yaml")
    message = r"^zoo_recipe: got 'recipes/zoo.yaml'.*elsewhere.* mnist1d_mlp_tanh"
    with pytest.raises(FileNotFoundError, match=message):
        data.prepare_data()
    data.recipe_roots = [recipe.parent, tmp_path / "repository"]
    data.prepare_data()
    assert len(data.zoo) == 12
    monkeypatch.chdir(tmp_path / "repository")
    ZooDataModule("zoo", "recipes/zoo.yaml").prepare_data()


def test_problem_elsewhere_on_the_disk_is_the_same_problem(zoo: str) -> None:
    data = loaded(zoo)
    data.zoo.config["problem"] = {"name": "cifar10_gray", "root": "here", "download": True}
    data.check_fits(make_problem("cifar10_gray", root="there"), data.zoo.family)
    with pytest.raises(ValueError, match="problem: "):
        data.check_fits(make_problem("cifar10_gray", root="here", seed=1), data.zoo.family)
