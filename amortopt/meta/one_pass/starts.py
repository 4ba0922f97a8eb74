"""Networks trained on the problems of a family, whose functions a pass learns to read.

Legend: P problems, E numbers of epochs, N examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from amortopt._types import Params
from amortopt.tasks import Family, ProblemFamily, init_many
from amortopt.tasks.problem import Which
from amortopt.training import Stepper, train_epochs

_AT_ONCE = 64
"""Problems that are drawn and trained at a time, which bounds the memory."""


@dataclass(frozen=True)
class Starts:
    """How networks are trained, by SGD with momentum 0.9 and cosine.

    Attributes:
        problems: Problems P that have a network of their own; 0: none are trained.
        epochs: Rising numbers of epochs after which a network is kept, E; the cosine ends at the last one.
        examples: Examples N that each is trained on.
        learning_rate: At the start.
        input_noise: Standard deviation of Gaussian noise on the inputs.
        permute_classes: Whether each gets its classes in a random order whenever it is drawn, which makes
            many networks of one; for cross-entropy, where what a class is called says nothing.
    """

    problems: int = 0
    epochs: tuple[int, ...] = (2, 8, 25)
    examples: int = 4000
    learning_rate: float = 0.03
    input_noise: float = 0.2
    permute_classes: bool = False

    def check(self) -> None:
        """Raise a ``ValueError`` that names the value that is out of its range."""
        if self.problems < 0:
            raise ValueError(f"starts.problems: got {self.problems}, expected a number >= 0")
        if not self.epochs or min(self.epochs) < 1 or list(self.epochs) != sorted(set(self.epochs)):
            raise ValueError(f"starts.epochs: got {list(self.epochs)}, expected rising numbers of at least 1")
        if self.examples < 1:
            raise ValueError(f"starts.examples: got {self.examples}, expected at least 1")

    def train(
        self,
        problems: ProblemFamily,
        family: Family,
        which: Which,
        *,
        seed: int,
        first: int = 0,
        count: int | None = None,
        device: torch.device | str = "cpu",
        on_part: Callable[[int], None] | None = None,
    ) -> Params:
        """Train a network for each of neighbouring problems of a part.

        Args:
            problems: Where problems come from.
            family: What the networks are.
            which: The part.
            seed: Seed of initialisation, order and noise.
            first: Number of the first problem.
            count: Number of problems P instead of ``self.problems``.
            device: Where to train.
            on_part: Called with the number of problems that are done, for a progress bar.

        Returns:
            Params [P, E, ...].
        """
        network, parts = family.build().to(device), []
        count = self.problems if count is None else count
        for start in range(first, first + count, _AT_ONCE):
            some = min(_AT_ONCE, first + count - start)
            examples = problems.draw(which, start, some, self.examples, 1)[0].to(device)
            fresh = init_many(family.build, range(seed + start, seed + start + some))
            kept: list[Params] = []
            train_epochs(
                network,
                {name: p.to(device) for name, p in fresh.items()},
                examples,
                problems.objective,
                Stepper("sgd", self.learning_rate, schedule="cosine"),
                epochs=self.epochs[-1],
                seed=seed,
                input_noise=self.input_noise,
                stops=self.epochs,
                on_stop=lambda _, __, now, kept=kept: kept.append({k: p.clone() for k, p in now.items()}),
            )
            parts.append({name: torch.stack([at[name] for at in kept], 1) for name in fresh})
            if on_part is not None:
                on_part(start + some - first)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
