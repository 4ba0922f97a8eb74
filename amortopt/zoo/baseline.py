"""What one pass is held against: networks trained a little, then fine-tuned by SGD or Adam, many at once.

Legend: B networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from amortopt._types import Params
from amortopt.tasks import init_many
from amortopt.training import train_epochs
from amortopt.zoo.config import ZooConfig
from amortopt.zoo.draw import draw_table

START_EPOCHS = 13
"""Starting networks are trained for 0 to this many epochs, as in the recipes of the zoos."""


def starting_networks(
    problem: dict[str, Any],
    family: dict[str, Any],
    *,
    count: int,
    seed: int,
    recipe: Mapping[str, Any] | None = None,
) -> Params:
    """Networks trained a little: drawn as the zoos' recipes say, but with a seed of their own.

    Args:
        problem: ``problem.to_config()``.
        family: ``family.to_config()``.
        count: Number of networks B.
        seed: Takes the place of the zoo's seed; another one gives other networks.
        recipe: Other keys of the zoo's recipe, such as ``learning_rate`` or ``epochs``, where they are not
            those of [ZooConfig][amortopt.zoo.ZooConfig] with 0 to 13 epochs. Its count, seed, problem and
            family are not read.

    Returns:
        Params [B, ...].

    Raises:
        ValueError: If problem or family do not exist or do not fit, or the recipe has an unknown key.
    """
    keys: dict[str, Any] = {"epochs": START_EPOCHS} | dict(recipe or {})
    if unknown := keys.keys() - ZooConfig.__dataclass_fields__.keys():
        known = ", ".join(ZooConfig.__dataclass_fields__)
        raise ValueError(
            f"recipe: got {', '.join(sorted(unknown))}, expected keys of a zoo's recipe: {known}"
        )
    config = ZooConfig(**(keys | {"problem": problem, "family": family, "count": count, "seed": seed}))
    table, made = draw_table(config), config.make_family()
    with torch.random.fork_rng(devices=[]):
        module = made.build()
    return train_epochs(
        module,
        init_many(made.build, table["seed"].tolist(), table["init_scale"].tolist()),
        config.make_problem().split("train"),
        config.make_problem().objective,
        config.stepper(torch.as_tensor(table["learning_rate"])),
        epochs=table["epochs"],
        seed=seed,
        batch_size=config.batch_size,
        input_noise=config.input_noise,
    ).params
