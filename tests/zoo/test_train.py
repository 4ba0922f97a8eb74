from __future__ import annotations

import numpy as np
import pytest
import torch

from amortopt.functional.networks import apply
from amortopt.tasks import Examples, evaluate_many, init_many, make_family, make_problem
from amortopt.zoo.draw import epoch_order, noise_generator
from amortopt.zoo.train import train_many

PROBLEM = make_problem("mnist1d")
EPOCHS = np.array([2, 0, 3, 1, 3])
LEARNING_RATE = torch.tensor([0.01, 0.05, 0.1, 0.02, 0.003], dtype=torch.float64)
FAMILIES = {
    "tanh": make_family("mlp", activation="tanh", widths=(40, 8, 6, 10)),
    "relu": make_family("mlp", activation="relu", widths=(40, 8, 6, 10)),
    "cnn": make_family("cnn", activation="tanh", channels=(4, 4)),
}


def examples(family, count: int) -> Examples:
    data = PROBLEM.split("train")
    return Examples(data.x[:count].double().reshape(count, *family.input_shape), data.y[:count])


def double_params(family, count: int):
    params = init_many(family.build, range(count), 1.0)
    return {name: p.double() for name, p in params.items()}


def train_one_reference(family, params, data, *, epochs, lr, seed, batch_size, noise, l1, weight_decay):
    """Slow and obvious: one ordinary module, torch.optim.SGD."""
    module = family.build().double()
    module.load_state_dict(params)
    sgd = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    for epoch in range(epochs):
        generator = noise_generator(seed, epoch, torch.device("cpu"))
        for batch in epoch_order(seed, epoch, len(data)).split(batch_size):
            x = data.x[batch]
            x = x + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype) if noise else x
            sgd.zero_grad()
            penalty = sum(p.abs().sum() for p in module.parameters())
            (torch.nn.functional.cross_entropy(module(x), data.y[batch]) + l1 * penalty).backward()
            sgd.step()
    return {name: p.detach() for name, p in module.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize(
    "noise, l1, weight_decay", [(0.0, 0.0, 0.0), (0.4, 1e-3, 1e-2)], ids=["plain", "all-options"]
)
def test_train_many_equals_torch_sgd_per_network(family, noise, l1, weight_decay) -> None:
    data, params = examples(family, 100), double_params(family, len(EPOCHS))
    trained = train_many(
        family.build(), params, data, PROBLEM, learning_rate=LEARNING_RATE, epochs=EPOCHS, seed=3,
        batch_size=32, input_noise=noise, l1=l1, weight_decay=weight_decay,
    )  # fmt: skip
    for b in range(len(EPOCHS)):
        expected = train_one_reference(
            family, {name: p[b] for name, p in params.items()}, data, epochs=int(EPOCHS[b]), seed=3,
            lr=float(LEARNING_RATE[b]), batch_size=32, noise=noise, l1=l1, weight_decay=weight_decay,
        )  # fmt: skip
        for name, p in expected.items():
            torch.testing.assert_close(
                trained[name][b], p, rtol=1e-10, atol=1e-12, msg=f"network {b}, {name}"
            )


def test_train_many_does_not_write_to_its_input() -> None:
    family = FAMILIES["tanh"]
    params = double_params(family, 3)
    before = {name: p.clone() for name, p in params.items()}
    rates, lengths = LEARNING_RATE[:3], np.array([1, 0, 1])
    train_many(
        family.build(), params, examples(family, 40), PROBLEM, learning_rate=rates, epochs=lengths, seed=0
    )
    assert all(torch.equal(params[name], before[name]) for name in params)


def test_train_many_counts_only_networks_that_train() -> None:
    family, counts = FAMILIES["tanh"], []
    train_many(
        family.build(), double_params(family, 5), examples(family, 20), PROBLEM,
        learning_rate=LEARNING_RATE, epochs=EPOCHS, seed=0, on_epoch=counts.append,
    )  # fmt: skip
    assert counts == [4, 3, 2]


def test_evaluate_many_equals_one_network_at_a_time() -> None:
    family = FAMILIES["relu"]
    params, data = double_params(family, 3), examples(family, 70)
    loss, accuracy = evaluate_many(family.build(), params, data, PROBLEM.objective, chunk=32)
    for b in range(3):
        logits = apply(family.build(), {name: p[b] for name, p in params.items()}, data.x)
        torch.testing.assert_close(loss[b], torch.nn.functional.cross_entropy(logits, data.y))
        torch.testing.assert_close(accuracy[b], (logits.argmax(1) == data.y).double().mean())
