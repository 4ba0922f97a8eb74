from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from amortopt.training.muon import Muon, orthogonalize

SHAPES = ((4, 6), (6, 4), (4, 4), (5, 5), (3, 4, 6), (2, 6, 4), (1, 7), (7, 1))


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]


def set_grads(params: list[nn.Parameter], grads: list[Tensor]) -> None:
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad.clone()


def random_grads(params: list[nn.Parameter]) -> list[Tensor]:
    return [torch.randn_like(p) for p in params]


class MuonReference:
    """One matrix at a time, as in the paper."""

    def __init__(self, matrices: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        self.matrices, self.lr, self.momentum, self.weight_decay = matrices, lr, momentum, weight_decay
        self.buffers = [torch.zeros_like(m) for m in matrices]

    def step(self, grads: list[Tensor]) -> None:
        mu = self.momentum
        for k, (w, g) in enumerate(zip(self.matrices, grads, strict=True)):
            self.buffers[k] = mu * self.buffers[k] + (1 - mu) * g
            update = self.newton_schulz(mu * self.buffers[k] + (1 - mu) * g)
            rows, columns = w.shape
            w = w - self.lr * self.weight_decay * w
            self.matrices[k] = w - self.lr * max(1, rows / columns) ** 0.5 * update

    def newton_schulz(self, g: Tensor) -> Tensor:
        x = g.T if g.shape[0] > g.shape[1] else g
        x = x / (x.square().sum().sqrt() + 1e-7)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return x.T if g.shape[0] > g.shape[1] else x


def as_matrices(tensors: list[Tensor]) -> list[Tensor]:
    return [m.clone() for t in tensors for m in (t if t.ndim == 3 else [t])]


def test_muon_group_equals_slow_reference() -> None:
    params = parameters(*SHAPES)
    reference = MuonReference(as_matrices([p.detach() for p in params]), 0.05, 0.9, 0.1)
    optimizer = Muon([{"params": params, "muon": True, "lr": 0.05, "weight_decay": 0.1, "momentum": 0.9}])
    for _ in range(20):
        grads = random_grads(params)
        set_grads(params, grads)
        optimizer.step()
        reference.step(as_matrices(grads))
    for got, expected in zip(as_matrices([p.detach() for p in params]), reference.matrices, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_adam_group_equals_torch_adamw() -> None:
    ours = parameters((5,), (), (3, 4), (2, 3, 4))
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    settings = {"lr": 0.01, "betas": (0.8, 0.97), "eps": 1e-6, "weight_decay": 0.1}
    optimizer, reference = Muon([{"params": ours, **settings}]), torch.optim.AdamW(theirs, **settings)
    for _ in range(20):
        grads = random_grads(ours)
        for params, stepper in ((ours, optimizer), (theirs, reference)):
            set_grads(params, grads)
            stepper.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 8), (4, 24), (24, 4), (5, 8, 16)], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_orthogonalize_moves_singular_values_to_about_one(shape: tuple[int, ...], scale: float) -> None:
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.empty((*u.shape[:-2], min(shape[-2:]))).uniform_(0.3, 2.0)
    got = torch.linalg.svdvals(orthogonalize(scale * (u * values[..., None, :]) @ v))
    assert got.min() > 0.6 and got.max() < 1.3


def test_orthogonalize_keeps_zero_and_commutes_with_transposition() -> None:
    assert not orthogonalize(torch.zeros(2, 3, 4)).any()
    tall = torch.randn(9, 4, dtype=torch.float64)
    torch.testing.assert_close(orthogonalize(tall), orthogonalize(tall.mT).mT, rtol=1e-12, atol=1e-12)


def mixed(params: list[nn.Parameter]) -> Muon:
    matrices, others = ([p for p in params if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
    return Muon([{"params": matrices, "muon": True, "weight_decay": 0.1}, {"params": others, "lr": 0.01}])


def test_state_dict_resumes_with_the_same_bits() -> None:
    params = parameters(*SHAPES, (5,), (), dtype=torch.float32)
    optimizer = mixed(params)
    history = [random_grads(params) for _ in range(6)]
    for grads in history[:3]:
        set_grads(params, grads)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = mixed(copies)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for grads in history[3:]:
        for some, stepper in ((params, optimizer), (copies, resumed)):
            set_grads(some, grads)
            stepper.step()
    assert all(torch.equal(a, b) for a, b in zip(params, copies, strict=True))


@pytest.mark.parametrize("muon", [True, False])
def test_parameters_without_a_gradient_are_skipped(muon: bool) -> None:
    live, idle, frozen = parameters((3, 4), (3, 4), (3, 4))
    frozen.requires_grad_(False)
    before = [p.detach().clone() for p in (live, idle, frozen)]
    optimizer = Muon([{"params": [idle, live, frozen], "muon": muon, "weight_decay": 0.1}])
    live.grad = torch.randn_like(live)
    optimizer.step()
    moved = [not torch.equal(p, old) for p, old in zip((live, idle, frozen), before, strict=True)]
    assert moved == [True, False, False]
    assert list(optimizer.state) == [live]


def test_step_returns_what_the_closure_returns() -> None:
    (p,) = parameters((3, 4))
    optimizer = Muon([{"params": [p], "muon": True}])

    def closure() -> float:
        p.square().sum().backward()
        return 3.0

    assert optimizer.step(closure) == 3.0 and p in optimizer.state


@pytest.mark.parametrize("shape", [(3,), (), (1, 2, 3, 4)], ids=str)
def test_muon_group_takes_only_matrices(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"params: .*shape.*muon=False"):
        Muon([{"params": parameters(shape), "muon": True}])


@pytest.mark.parametrize("lr", [0.0, -0.1, float("nan")])
def test_learning_rates_are_positive(lr: float) -> None:
    for made in (lambda: Muon([{"params": parameters((3,)), "lr": lr}]), lambda: Muon([], lr=lr)):
        with pytest.raises(ValueError):
            made()
    with pytest.raises(ValueError, match=f"lr: got {lr}, expected a positive"):
        Muon([{"params": parameters((3,))}], lr=lr)
