"""Problems with real numbers as targets, beside those of classes, that update rules are meta-trained on."""

from __future__ import annotations

import torch

from amortopt.tasks import ArrayProblem, make_problem, register_problem

_EXAMPLES, _INPUTS, _HIDDEN = 4000, 8, 16


@register_problem("digits_autoencoder")
def digits_autoencoder() -> ArrayProblem:
    """Images of ``digits`` [256] as inputs and targets; squared error."""
    digits = make_problem("digits")
    parts = {which: digits.split(which).x.flatten(1) for which in ("train", "val", "test")}
    pairs = {which: (x, x) for which, x in parts.items()}
    return ArrayProblem(pairs["train"], val=pairs["val"], test=pairs["test"], name="digits_autoencoder")


@register_problem("smooth_function")
def smooth_function() -> ArrayProblem:
    """A regression of one number, standardised, on 8: a random sum of sines, with noise of 0.1."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x, ways, phases = normal(_EXAMPLES, _INPUTS), normal(_INPUTS, _HIDDEN), 3 * normal(_HIDDEN)
    y = (x @ ways * 0.5 + phases).sin() @ normal(_HIDDEN, 1)
    y = (y - y.mean()) / y.std() + 0.1 * normal(_EXAMPLES, 1)
    return ArrayProblem((x, y), name="smooth_function")
