"""Problems with real numbers as targets, beside those of classes, that update rules are meta-trained on."""

from __future__ import annotations

import math

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


@register_problem("random_function")
class RandomFunction(ArrayProblem):
    """A regression of one number on some: a sum of sixteen sines of random directions, standardised.

    Args:
        seed: Seed of the function and the examples.
        examples: Number of examples.
        inputs: Numbers that the function is of.
        noise: Standard deviation of what is added to targets.
    """

    arguments = ("seed", "examples", "inputs", "noise")

    def __init__(self, seed: int = 0, examples: int = 2000, inputs: int = 6, noise: float = 0.1) -> None:
        self.seed, self.examples, self.inputs, self.noise = seed, examples, inputs, noise
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        x, ways = normal(examples, inputs), normal(inputs, 16) / math.sqrt(inputs)
        y = (x @ ways + 3 * normal(16)).sin() @ normal(16, 1)
        y = (y - y.mean()) / y.std() + noise * normal(examples, 1)
        super().__init__((x, y), name="random_function")


@register_problem("random_image")
class RandomImage(ArrayProblem):
    """Grey values in [-1, 1] at positions in [-1, 1]², for SIRENs; their spectrum falls with a power.

    Args:
        seed: Seed of the image.
        side: Pixels along an edge.
        decay: The power.
    """

    arguments = ("seed", "side", "decay")

    def __init__(self, seed: int = 0, side: int = 32, decay: float = 1.5) -> None:
        self.seed, self.side, self.decay = seed, side, decay
        generator = torch.Generator().manual_seed(seed)
        frequency = torch.fft.fftfreq(side) * side
        radius = (frequency[:, None].square() + frequency.square()).sqrt().clamp(min=1)
        real, imaginary = torch.randn(2, side, side, generator=generator)
        image = torch.fft.ifft2(torch.complex(real, imaginary) / radius**decay).real
        axis = torch.linspace(-1, 1, side)
        values = (image / image.abs().max()).flatten()[:, None]
        super().__init__((torch.cartesian_prod(axis, axis), values), name="random_image")
