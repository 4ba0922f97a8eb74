"""The loop over many networks against plain modules and torch.optim, one network at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from amortopt.tasks import (
    CrossEntropy,
    Examples,
    SquaredError,
    init_many,
    loss_and_grad_many,
    make_family,
    make_problem,
)
from amortopt.training import EpochBatches, Stepper, train_epochs, train_many
from amortopt.training.loop import epoch_order, noise_generator

OBJECTIVE = CrossEntropy(10)
FAMILY = make_family("mlp", activation="tanh", widths=(40, 8, 6, 10))
FAMILIES = {
    "tanh": FAMILY,
    "relu": make_family("mlp", activation="relu", widths=(40, 8, 6, 10)),
    "cnn": make_family("cnn", activation="tanh", channels=(4, 4)),
}
EPOCHS = np.array([2, 0, 3, 1, 3])
MANY_RATES = torch.tensor([0.01, 0.05, 0.1, 0.02, 0.003], dtype=torch.float64)
RATES = torch.tensor([0.02, 0.003], dtype=torch.float64)


def examples(family=FAMILY, count: int = 70) -> Examples:
    data = make_problem("mnist1d").split("train").take(slice(count)).to(dtype=torch.float64)
    return replace(data, x=data.x.reshape(count, *family.input_shape))


def double_params(count: int, family=FAMILY):
    return {name: p.double() for name, p in init_many(family.build, range(count)).items()}


def one_reference(
    family, params, data, *, optimizer="sgd", lr, schedule="constant", epochs, noise=0.0, l1=0.0, decay=0.0
):
    """Slow and obvious: one ordinary module, torch.optim and a scheduler."""
    module = family.build().double()
    module.load_state_dict(params)
    if optimizer == "sgd":
        opt = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
    else:
        opt = torch.optim.Adam(module.parameters(), lr, weight_decay=decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, max(1, epochs * -(-len(data) // 32)))
    for epoch in range(epochs):
        for x, y in batches(data, epoch, noise):
            opt.zero_grad()
            penalty = l1 * sum(p.abs().sum() for p in module.parameters())
            (torch.nn.functional.cross_entropy(module(x), y) + penalty).backward()
            opt.step()
            if schedule == "cosine":
                scheduler.step()
    return {name: p.detach() for name, p in module.named_parameters()}


def proximal_one_reference(params, data, *, optimizer, lr, epochs, l1):
    """The papers' formulas, one network, one tensor at a time, constant learning rate."""
    module, step = FAMILY.build().double(), 0
    module.load_state_dict(params)
    old = {name: p.detach().clone() for name, p in module.named_parameters()}
    mean, square = ({name: torch.zeros_like(p) for name, p in old.items()} for _ in range(2))
    for epoch in range(epochs):
        for x, y in batches(data, epoch, 0.0):
            step += 1
            module.zero_grad()
            torch.nn.functional.cross_entropy(module(x), y).backward()
            for name, p in module.named_parameters():
                now, t = p.detach().clone(), torch.full_like(p, lr * l1)
                if optimizer == "sgd":
                    moved = now - lr * p.grad + 0.9 * (now - old[name])
                else:
                    mean[name] = 0.9 * mean[name] + 0.1 * p.grad
                    square[name] = 0.999 * square[name] + 0.001 * p.grad**2
                    size = (square[name] / (1 - 0.999**step)).sqrt() + 1e-8
                    moved, t = now - lr * mean[name] / (1 - 0.9**step) / size, t / size
                p.data = moved.sign() * (moved.abs() - t).clamp(min=0)
                old[name] = now
    return {name: p.detach() for name, p in module.named_parameters()}


def batches(data, epoch, noise):
    generator = noise_generator(3, epoch, torch.device("cpu"))
    for batch in epoch_order(3, epoch, len(data)).split(32):
        x = data.x[batch]
        x = x + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype) if noise else x
        yield x, data.y[batch]


def network(params, b):
    return {name: p[b] for name, p in params.items()}


def finetuned(
    params,
    *,
    family=FAMILY,
    data=None,
    optimizer="sgd",
    learning_rate,
    schedule="constant",
    epochs,
    **options,
):
    given = {k: options.pop(k) for k in ("l1", "proximal", "weight_decay") if k in options}
    stepper = Stepper(optimizer, learning_rate, schedule, **given)
    data = examples() if data is None else data
    return train_epochs(
        family.build(), params, data, OBJECTIVE, stepper, epochs=epochs, seed=3, batch_size=32, **options
    )


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize(
    "noise, l1, decay", [(0.0, 0.0, 0.0), (0.4, 1e-3, 1e-2)], ids=["plain", "all-options"]
)
def test_train_epochs_trains_each_network_for_its_epochs(family, noise, l1, decay) -> None:
    data, params = examples(family, 100), double_params(len(EPOCHS), family)
    done = finetuned(
        params, family=family, data=data, learning_rate=MANY_RATES, epochs=EPOCHS, input_noise=noise, l1=l1,
        weight_decay=decay,
    )  # fmt: skip
    for b in range(len(EPOCHS)):
        expected = one_reference(
            family, network(params, b), data, lr=float(MANY_RATES[b]), epochs=int(EPOCHS[b]), noise=noise,
            l1=l1, decay=decay,
        )  # fmt: skip
        for name, p in expected.items():
            torch.testing.assert_close(done.params[name][b], p, rtol=1e-10, atol=1e-12)
    assert torch.equal(done.losses.isfinite().sum(0), torch.from_numpy(4 * EPOCHS))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("noise", [0.0, 0.4])
@pytest.mark.parametrize("l1", [0.0, 3e-3])
def test_train_epochs_equals_torch_optim_per_network(optimizer, schedule, noise, l1) -> None:
    data, params = examples(), double_params(2)
    done = finetuned(
        params,
        optimizer=optimizer,
        learning_rate=RATES,
        schedule=schedule,
        epochs=4,
        input_noise=noise,
        l1=l1,
    )
    for b in range(2):
        expected = one_reference(
            FAMILY, network(params, b), data, optimizer=optimizer, lr=float(RATES[b]), schedule=schedule,
            epochs=4, noise=noise, l1=l1,
        )  # fmt: skip
        for name, p in expected.items():
            torch.testing.assert_close(done.params[name][b], p, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_train_epochs_proximal_equals_the_papers_formulas(optimizer) -> None:
    data, params, strengths = examples(), double_params(2), torch.tensor([0.2, 0.03], dtype=torch.float64)
    done = finetuned(params, optimizer=optimizer, learning_rate=RATES, epochs=5, l1=strengths, proximal=True)
    zeros = 0
    for b in range(2):
        expected = proximal_one_reference(
            network(params, b),
            data,
            optimizer=optimizer,
            lr=float(RATES[b]),
            epochs=5,
            l1=float(strengths[b]),
        )
        for name, p in expected.items():
            torch.testing.assert_close(done.params[name][b], p, rtol=1e-8, atol=1e-11)
            assert torch.equal(done.params[name][b] == 0, p == 0)
            zeros += int((p == 0).sum())
    assert zeros > 20


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("proximal", [False, True])
def test_train_epochs_takes_one_strength_per_network(optimizer, proximal) -> None:
    def trained(l1, params):
        return finetuned(
            params, optimizer=optimizer, learning_rate=0.01, schedule="cosine", epochs=3, l1=l1,
            proximal=proximal,
        ).params  # fmt: skip

    params = double_params(2)
    both = trained(torch.tensor([0.0, 0.05], dtype=torch.float64), params)
    for b, strength in enumerate((0.0, 0.05)):
        alone = trained(strength, {name: p[b : b + 1] for name, p in params.items()})
        for name, p in alone.items():
            torch.testing.assert_close(both[name][b], p[0], rtol=1e-9, atol=1e-12)
    assert not any(bool((p[0] == 0).any()) for p in both.values())
    assert proximal == any(bool((p[1] == 0).any()) for p in both.values())


@pytest.mark.parametrize(
    "optimizer, rate, proximal", [("sgd", 0.05, False), ("sgd", 0.05, True), ("adam", 0.02, True)]
)
def test_train_epochs_approaches_the_minimum_of_the_penalised_loss(optimizer, rate, proximal) -> None:
    # A linear network has one minimum: where every gradient is -λ sign(weight), or at most λ at a zero.
    family, lam, data = make_family("mlp", widths=(40, 10)), 0.02, examples()
    stepper = Stepper(optimizer, rate, "cosine", l1=lam, proximal=proximal)
    done = train_epochs(
        family.build(), double_params(1, family), data, OBJECTIVE, stepper, epochs=1500, seed=0
    ).params
    grads = loss_and_grad_many(family.build(), done, data, OBJECTIVE)[1]
    p = torch.cat([value.flatten() for value in done.values()])
    g = torch.cat([value.flatten() for value in grads.values()])
    alive = p.abs() > 1e-3
    assert 0.02 < alive.double().mean() < 0.9
    torch.testing.assert_close(g[alive], -lam * p[alive].sign(), rtol=0, atol=5e-4)
    assert float(g.abs().max()) < lam + 5e-4


def test_train_epochs_leaves_its_input_and_stops_where_asked() -> None:
    params, stops, epochs = double_params(2), [], []
    before = {name: p.clone() for name, p in params.items()}
    done = finetuned(
        params, learning_rate=0.1, epochs=np.array([1, 3]), stops=(1, 3), on_epoch=epochs.append,
        on_stop=lambda epoch, seconds, p: stops.append((epoch, seconds, p["0.weight"])),
    )  # fmt: skip
    assert all(torch.equal(params[name], before[name]) for name in params)
    assert [stop[0] for stop in stops] == [1, 3] and epochs == [1, 2, 3]
    assert 0 < stops[0][1] < stops[1][1] <= done.seconds
    assert torch.equal(stops[0][2][0], stops[1][2][0]) and not torch.equal(stops[0][2][1], stops[1][2][1])
    assert torch.equal(stops[1][2], done.params["0.weight"])


def test_train_epochs_of_padded_examples_is_that_of_each_networks_examples() -> None:
    # Sizes that divide the largest: then an epoch reads everything equally often.
    sizes, params = (70, 35), double_params(2)
    parts = [(x[:n], y[:n]) for n in sizes for x, y in [(examples().x, examples().y)]]
    stepper = Stepper("sgd", RATES)
    done = train_epochs(
        FAMILY.build(), params, Examples.from_list(parts), OBJECTIVE, stepper, epochs=2, seed=3, batch_size=32
    )
    for b, (x, y) in enumerate(parts):
        draw = EpochBatches(examples(), 32, 3)

        def wrapped(step: int, networks: torch.Tensor, x=x, y=y, draw=draw) -> Examples:
            k = step % draw.steps
            index = epoch_order(3, step // draw.steps, 70)[32 * k : 32 * (k + 1)] % len(x)
            return Examples(x[index], y[index])

        one = {name: p[b : b + 1] for name, p in params.items()}
        alone = train_many(FAMILY.build(), one, wrapped, OBJECTIVE, stepper.of(torch.tensor([b])), steps=6)
        for name, p in alone.params.items():
            torch.testing.assert_close(done.params[name][b], p[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("objective", [OBJECTIVE, SquaredError((10,))], ids=["classes", "real"])
def test_train_many_gives_each_network_its_examples(objective) -> None:
    x = torch.randn(2, 6, 40, dtype=torch.float64)
    real = isinstance(objective, SquaredError)
    y = torch.randn(2, 6, 10, dtype=torch.float64) if real else torch.arange(12).view(2, 6) % 10
    data, params = Examples(x, y, shared=False), double_params(2)
    lengths: Any = np.array([3, 5])
    done = train_many(
        FAMILY.build(), params, lambda _, networks: data.of(networks), objective, Stepper("adam", RATES),
        steps=lengths,
    )  # fmt: skip
    for b in range(2):
        one = {name: p[b : b + 1] for name, p in params.items()}
        alone = train_many(
            FAMILY.build(), one, lambda *_: Examples(x[b], y[b]), objective,  # noqa: B023
            Stepper("adam", float(RATES[b])), steps=int(lengths[b]),
        )  # fmt: skip
        torch.testing.assert_close(done.losses[: lengths[b], b], alone.losses[:, 0])
        for name, p in alone.params.items():
            torch.testing.assert_close(done.params[name][b], p[0], rtol=1e-10, atol=1e-12)


def test_train_many_reports_at_intervals_and_at_the_end() -> None:
    data, reports = examples(), []
    train_many(
        FAMILY.build(), double_params(2), lambda *_: data, OBJECTIVE, Stepper("sgd", 0.1), steps=7, every=3,
        on_steps=lambda done, seconds, params: reports.append(done),
    )  # fmt: skip
    assert reports == [3, 6, 7]


def test_epoch_order_is_a_new_permutation_every_epoch() -> None:
    orders = [epoch_order(0, 0, 50), epoch_order(0, 1, 50), epoch_order(1, 0, 50)]
    assert all(torch.equal(order.sort().values, torch.arange(50)) for order in orders)
    assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    assert torch.equal(orders[0], epoch_order(0, 0, 50))


def test_epoch_batches_of_shared_examples_leave_out_what_is_masked() -> None:
    data = examples()
    masked = replace(data, mask=torch.arange(70) < 40)
    draw, expected = EpochBatches(masked, 32, 3), EpochBatches(data.take(slice(40)), 32, 3)
    assert draw.steps == 2
    for step in range(4):
        got, wanted = (batches(step, torch.arange(2)) for batches in (draw, expected))
        assert torch.equal(got.x, wanted.x) and torch.equal(got.y, wanted.y)
