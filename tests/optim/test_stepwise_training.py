"""The learned optimizer in training loops as people write them."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import lr_scheduler

from amortopt import UNFOptimizer
from amortopt.metanets import UNFRule
from amortopt.symmetry import extract
from amortopt.tasks import make_family
from tests.optim.stepwise import X, Y, any_rule, backward, mlp, optimizer, same, train, weights


@pytest.mark.parametrize(
    "make",
    [
        lambda opt: lr_scheduler.LambdaLR(opt, lambda t: t / 3),
        lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=3),
        lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=2.0, total_steps=4, cycle_momentum=False),
    ],
)
def test_learning_rate_schedules_scale_the_steps(make: Any) -> None:
    model = mlp()
    opt = optimizer(model, lr=1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = make(opt)
        rates = []
        for seed in range(4):
            rate = opt.param_groups[0]["lr"]
            twin, own = copy.deepcopy((model, opt))
            own.param_groups[0]["lr"] = 1.0
            before = weights(model)
            train(model, opt, 1, first=seed)
            train(twin, own, 1, first=seed)
            for name, value in weights(model).items():
                expected = before[name] + rate * (weights(twin)[name] - before[name])
                torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
            rates.append(rate)
            schedule.step()
    assert len(set(rates)) > 1


def test_gradients_add_up_over_several_backward_passes() -> None:
    model, twin = mlp(), mlp()
    opt, own = optimizer(model), optimizer(twin)
    for seed in range(3):
        backward(model, seed)
    (sum(_loss(twin, seed) for seed in range(3))).backward()  # type: ignore[union-attr]
    opt.step(), own.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    opt.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    backward(model)
    opt.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def _loss(model: nn.Module, seed: int) -> torch.Tensor:
    noise = 0.1 * torch.randn(X.shape, generator=torch.Generator().manual_seed(seed))
    return nn.functional.cross_entropy(model(X + noise), Y)


def test_grad_scaler_steps_as_without_it_and_skips_what_overflows() -> None:
    model, twin = mlp(), mlp()
    opt, own = optimizer(model), optimizer(twin)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for seed in range(3):
        opt.zero_grad()
        scaler.scale(_loss(model, seed)).backward()
        if seed == 1:
            scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()
    train(twin, own, 3)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
    before = weights(model)
    opt.zero_grad()
    scaler.scale(_loss(model, 0) * float("inf")).backward()
    scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() < 2.0**10
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert opt.skipped == 0  # the scaler's skip


def test_autocast_to_bfloat16() -> None:
    model = mlp()
    opt = optimizer(model)
    before = weights(model)
    for _ in range(2):
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(X), Y)
        loss.backward()
        opt.step()
    assert all(not torch.equal(value, before[name]) for name, value in weights(model).items())
    # The rule itself is not to run in bfloat16.
    twin, own = mlp(), None
    own = optimizer(twin)
    clean = mlp()
    plain = optimizer(clean)
    backward(twin), backward(clean)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own.step()
    plain.step()
    assert same(twin, clean)


def test_a_compiled_model_is_its_original() -> None:
    model, twin = mlp(), mlp()
    compiled = torch.compile(model, backend="eager")
    opt = UNFOptimizer(
        compiled, X, rule=any_rule(), param_groups=[{"params": ["_orig_mod.0.weight", "0.bias"]}]
    )
    own = UNFOptimizer(twin, X, rule=any_rule(), param_groups=[{"params": ["0.weight", "0.bias"]}])
    train(compiled, opt, 3)  # type: ignore[arg-type]
    train(twin, own, 3)
    assert same(model, twin)
    assert opt.spec.same_symmetry(own.spec)
    own.load_state_dict(opt.state_dict())


DRIVER = """
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.optim.stepwise import X, any_rule, backward, mlp
from amortopt import UNFOptimizer

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
model = DistributedDataParallel(mlp(seed=rank))
groups = [{"params": ["module.0.weight", "0.bias", "4.bias"]}]
opt = UNFOptimizer(model, X, rule=any_rule(), param_groups=groups)
for step in range(4):
    opt.zero_grad()
    backward(model, 2 * step + rank)
    opt.step()
torch.save({"model": model.module.state_dict(), "opt": opt.state_dict()}, f"{folder}/rank{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_stay_together_and_do_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    running = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "driver.py"), str(rank), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for rank in (0, 1)
    ]
    for process in running:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    saved = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, value in saved[0]["model"].items():
        assert torch.equal(value, saved[1]["model"][name]), name
    model = mlp(seed=0)
    opt = optimizer(model, param_groups=[{"params": ["0.weight", "0.bias", "4.bias"]}])
    for step in range(4):
        opt.zero_grad()
        ((_loss(model, 2 * step) + _loss(model, 2 * step + 1)) / 2).backward()
        opt.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, saved[0]["model"][name], rtol=1e-4, atol=1e-5)
    opt.load_state_dict(saved[0]["opt"])


@pytest.mark.gpu
def test_the_rule_follows_the_model_to_another_device() -> None:
    model = mlp()
    opt = optimizer(model)
    train(model, opt, 2)
    model.cuda()
    nn.functional.cross_entropy(model(X.cuda()), Y.cuda()).backward()
    opt.step()
    assert opt.state[model[0].weight]["momenta"].is_cuda


def _fsdp_step(rank: int, port: int, results: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model = mlp()
    spec = extract(model, X)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    opt = UNFOptimizer(model, spec=spec, rule=any_rule())
    for seed in range(2):
        opt.zero_grad()
        backward(model, seed)
        opt.step()
    whole = {n: p.full_tensor() for n, p in model.named_parameters() if isinstance(p, DTensor)}
    if rank == 0:
        results.put({name: value.tolist() for name, value in whole.items()})
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_sharded_parameters_take_the_same_steps() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(_fsdp_step, (port, results), 2)  # pyright: ignore[reportPrivateImportUsage]
    model = mlp()
    train(model, optimizer(model), 2)
    sharded = results.get()
    for name, p in model.named_parameters():
        torch.testing.assert_close(torch.tensor(sharded[name]), p.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_the_scale_of_the_loss_changes_nothing(factor: float) -> None:
    model, twin = mlp(), mlp()
    opt, other = optimizer(model), optimizer(twin)
    for seed in range(20):
        for net, each, scale in ((model, opt, 1.0), (twin, other, factor)):
            each.zero_grad()
            (scale * _loss(net, seed)).backward()
            each.step()
    assert _loss(twin, 0).item() == pytest.approx(_loss(model, 0).item(), abs=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_a_trained_network_keeps_what_it_knows_at_the_default_rate(seed: int) -> None:
    torch.manual_seed(seed)
    trained = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    train(trained, torch.optim.AdamW(trained.parameters(), 3e-3), 150)
    before = float(_loss(trained, 0).detach())
    assert before < 0.5 and bool((trained(X).argmax(1) == Y).all())
    opt = UNFOptimizer(trained, X)
    for _ in range(30):
        train(trained, opt, 1)
        assert bool((trained(X).argmax(1) == Y).all())
        assert float(_loss(trained, 0).detach()) < 1.1 * before


def test_a_fresh_regression_never_rises_at_the_default_rate() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    x = torch.randn(200, 10)
    y = x[:, :1] - x[:, 1:2] * x[:, 2:3]
    opt, losses = UNFOptimizer(model, x[:2]), []
    for _ in range(30):
        opt.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    assert max(losses) < 1.1 * losses[0] and losses[-1] < 0.7 * losses[0]


def test_a_siren_learns_at_the_default_rate() -> None:
    """Its weights start a dozen times smaller than others', which shorter steps make up for."""
    axis = torch.linspace(-1, 1, 16)
    x = torch.cartesian_prod(axis, axis)
    y = (9 * x[:, :1]).sin() * (7 * x[:, 1:]).cos()
    last = []
    for floor in (1 / 16, 1.0):
        torch.manual_seed(0)
        model = make_family("siren", widths=[2, 48, 48, 48, 1]).build()
        rule = UNFRule("none", mix=(0.3, 0, 0.7, 0), vector_rate=0.4, table_rate=0.4, floor=floor)
        opt = UNFOptimizer(model, x[:2], rule=rule)
        for _ in range(60):
            opt.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            opt.step()
        last.append(float(loss.detach()) / float(y.square().mean()))
    assert last[0] < 0.06 and last[0] < last[1] / 3


class Residual(nn.Module):
    """A small ResNet with batch norms, for images [3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (
            nn.Conv2d(3, 8, 3, padding=1),
            *(nn.Conv2d(8, 8, 3, padding=1) for _ in "ab"),
        )
        self.norm, self.norm_a, self.norm_b = (nn.BatchNorm2d(8) for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.norm(self.stem(x)))
        h = torch.relu(h + self.norm_b(self.b(torch.relu(self.norm_a(self.a(h))))))
        return self.head(h.mean((2, 3)))


def test_loss_of_a_resnet_falls_at_the_default_rate() -> None:
    torch.manual_seed(0)
    model, x, y = Residual(), torch.randn(24, 3, 8, 8), torch.arange(24) % 3
    opt, losses = UNFOptimizer(model, x), []
    for _ in range(50):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0] and max(losses) < 1.5 * losses[0]
