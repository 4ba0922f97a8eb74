"""The learned optimizer in the frameworks that people train with."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from amortopt import UNFOptimizer
from amortopt.symmetry import extract
from tests.optim.stepwise import X, Y, any_rule, backward, mlp, optimizer, same, train, weights


class Lit(L.LightningModule):
    """Training as Lightning users write it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> Any:
        opt = optimizer(self.net)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 8)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _fit(folder: Path, steps: int, resume: str | None = None) -> Lit:
    module = Lit()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=6)
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, enable_checkpointing=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning's own, about workers and short epochs
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        trainer.save_checkpoint(folder / "state.ckpt")
    return module


def test_lightning_trains_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = _fit(tmp_path, 4)
    _fit(tmp_path, 2)
    resumed = _fit(tmp_path, 4, resume=str(tmp_path / "state.ckpt"))
    assert same(whole.net, resumed.net) and not same(whole.net, mlp())


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.5)])
def test_averages_of_weights_follow_the_steps(average: Any) -> None:
    model = mlp()
    opt = optimizer(model)
    mean = AveragedModel(model, multi_avg_fn=average)
    schedule = SWALR(opt, swa_lr=0.01, anneal_epochs=2)
    seen = []
    for seed in range(3):
        train(model, opt, 1, first=seed)
        mean.update_parameters(model)
        schedule.step()
        seen.append(weights(model))
    assert opt.param_groups[0]["lr"] == pytest.approx(0.01)
    for name, value in weights(mean.module).items():
        first, second, third = (each[name] for each in seen)
        expected = (first + second + third) / 3 if average is None else (first + second + 2 * third) / 4
        torch.testing.assert_close(value, expected)


def test_distributed_checkpoint_writes_and_reads_the_state(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model = mlp()
    opt = optimizer(model)
    train(model, opt, 3)
    twin = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is one process
        dcp.save({"opt": get_optimizer_state_dict(model, opt)}, checkpoint_id=tmp_path / "state")
        own = optimizer(twin)
        # As torch's tutorial has it: a step without a rate makes the state that is read into.
        for p in twin.parameters():
            p.grad = torch.zeros_like(p)
        own.param_groups[0]["lr"] = 0.0
        own.step()
        state = {"opt": get_optimizer_state_dict(twin, own)}
        dcp.load(state, checkpoint_id=tmp_path / "state")
        set_optimizer_state_dict(twin, own, state["opt"])
    train(model, opt, 2, first=3)
    train(twin, own, 2, first=3)
    assert same(model, twin)


def test_accelerate_prepares_it() -> None:
    accelerate = pytest.importorskip("accelerate")
    model, twin = mlp(), mlp()
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, opt = accelerator.prepare(model, optimizer(model))
    own = optimizer(twin)
    for seed in range(3):
        opt.zero_grad()
        noise = 0.1 * torch.randn(X.shape, generator=torch.Generator().manual_seed(seed))
        accelerator.backward(nn.functional.cross_entropy(prepared(X + noise), Y))
        accelerator.clip_grad_norm_(prepared.parameters(), 1e9)
        opt.step()
    train(twin, own, 3)
    for name, value in weights(model).items():
        torch.testing.assert_close(value, weights(twin)[name])


@pytest.mark.parametrize("how", ["tensors", "named", "groups", "iterator"])
def test_a_factory_takes_what_trainers_pass(how: str) -> None:
    model, twin = mlp(), mlp()
    build = UNFOptimizer.factory(model, X, rule=any_rule(), weight_decay=0.1)
    params: Any = {
        "tensors": list(model.parameters()),
        "named": list(model.named_parameters()),
        "groups": [{"params": list(model.parameters()), "weight_decay": 0.1}],
        "iterator": model.parameters(),
    }[how]
    opt = build(params, lr=0.5)
    own = optimizer(twin, lr=0.5, weight_decay=0.1)
    train(model, opt, 2)
    train(twin, own, 2)
    assert same(model, twin)


def test_parameters_in_place_of_the_model_name_the_factory() -> None:
    model = mlp()
    with pytest.raises(ValueError, match=r"pass it UNFOptimizer.factory\(model, x\)"):
        UNFOptimizer(model.parameters(), lr=0.1)  # type: ignore[arg-type]


class Dictionaries(nn.Module):
    """Takes a dict, returns a dict with a cache beside the logits, as decoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.key, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        h = self.embed(batch["ids"])
        key = self.key(h)
        return {"logits": self.head(torch.tanh(h + key)), "cache": [(key, h)]}


class Packed(nn.Module):
    """Takes a packed batch of sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 5), nn.Linear(5, 3)

    def forward(self, x: PackedSequence) -> Tensor:
        return self.head(self.rnn(x)[1][-1])


def _packed() -> PackedSequence:
    x = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    return pack_padded_sequence(x, torch.tensor([6, 4, 2]))


@pytest.mark.parametrize(
    ("build", "example", "loss"),
    [
        (
            Dictionaries,
            lambda: {"ids": torch.arange(8).view(2, 4)},
            lambda out: nn.functional.cross_entropy(out["logits"].flatten(0, 1), torch.arange(8) % 9),
        ),
        (Packed, _packed, lambda out: nn.functional.cross_entropy(out, torch.arange(3))),
    ],
)
def test_models_of_dicts_and_packed_sequences_learn(build: Any, example: Any, loss: Any) -> None:
    torch.manual_seed(0)
    model, x = build(), example()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "UNFOptimizer: the model could not be traced")
        opt = UNFOptimizer(model, (x,))
    first = float(loss(model(x)).detach())
    for _ in range(30):
        opt.zero_grad()
        value = loss(model(x))
        value.backward()
        opt.step()
    assert float(value.detach()) < 0.8 * first


def test_padding_rows_stay_exactly_where_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Flatten(), nn.Linear(12, 3))
    x = torch.tensor([[0, 1, 2], [0, 0, 3], [4, 5, 0]])
    opt = UNFOptimizer(model, x, rule=any_rule())
    before = model[0].weight.detach().clone()
    for _ in range(20):
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(3)).backward()
        opt.step()
    assert torch.equal(model[0].weight[0], before[0]) and torch.equal(model[0].weight[6], before[6])
    assert not torch.equal(model[0].weight[1], before[1])


def test_the_earlier_name_of_spec_warns() -> None:
    model = mlp()
    with pytest.warns(FutureWarning, match="symmetry= is now spec="):
        opt = UNFOptimizer(model, symmetry=extract(model, X), rule=any_rule())
    backward(model)
    opt.step()
    assert not same(model, mlp())


def test_state_in_bfloat16_is_half_as_large_and_follows_float32() -> None:
    model, twin = mlp(), mlp()
    opt, own = optimizer(model, state_dtype=torch.bfloat16, lr=0.02), optimizer(twin, lr=0.02)
    train(model, opt, 60)
    train(twin, own, 60)
    entry, exact = opt.state[model[0].weight], own.state[twin[0].weight]
    assert entry["momenta"].dtype == entry["second"].dtype == torch.bfloat16
    torch.testing.assert_close(entry["second"].float(), exact["second"], rtol=0.5, atol=1e-4)
    moved = torch.cat([p.detach().flatten() for p in twin.parameters()])
    start = torch.cat([p.detach().flatten() for p in mlp().parameters()])
    got = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert float((got - moved).norm()) < 0.3 * float((moved - start).norm())


def test_averages_in_bfloat16_do_not_stall() -> None:
    """A constant gradient: to the nearest, the slow average would stay below half of it for ever."""
    model = mlp()
    opt = optimizer(model, state_dtype=torch.bfloat16, lr=0.0)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for _ in range(600):
        opt.step()
    slow = opt.state[model[2].weight]["momenta"][2].float()
    assert abs(float(slow.mean()) - 1.0) < 0.02


def test_state_in_bfloat16_resumes_bit_for_bit() -> None:
    model = mlp()
    opt = optimizer(model, state_dtype=torch.bfloat16)
    train(model, opt, 3)
    twin = copy.deepcopy(model)
    own = optimizer(twin, state_dtype=torch.bfloat16)
    own.load_state_dict(copy.deepcopy(opt.state_dict()))
    train(model, opt, 3, first=3)
    train(twin, own, 3, first=3)
    assert same(model, twin)


def test_other_dtypes_of_the_state_are_refused() -> None:
    with pytest.raises(ValueError, match=r"state_dtype: got torch\.float16, expected torch\.float32 or"):
        UNFOptimizer(mlp(), X, rule=any_rule(), state_dtype=torch.float16)
