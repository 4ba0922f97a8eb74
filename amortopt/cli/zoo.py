"""The command `amortopt zoo`: builds of every kind of zoo."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor

from amortopt._types import Params
from amortopt.optim import OutOfFamilyWarning, ScaleGMNOptimizer
from amortopt.reading.scores import tau_bound
from amortopt.system.devices import check_device
from amortopt.system.recipes import recipes_first
from amortopt.tasks import Siren, init_many
from amortopt.zoo.build import build_zoo
from amortopt.zoo.cnn import CnnZooConfig, build_cnn_zoo, parts_of
from amortopt.zoo.config import ZooConfig, recipe_parser
from amortopt.zoo.dataset import load_zoo
from amortopt.zoo.formats.tiny_rnn_zoo import TinyRNNZooConfig, build_tiny_rnn_zoo
from amortopt.zoo.images import MnistInrZooConfig, build_mnist_inr_zoo

_USAGES = {
    "build": "amortopt zoo build --config RECIPE --out FOLDER [--count N] [--shard K/N] [any recipe key]",
    "cnn": "amortopt zoo cnn --config RECIPE --out FOLDER [--shard K/N] [any key of CnnZooConfig]",
    "mnist-inr": "amortopt zoo mnist-inr --out FOLDER [--fits one-pass] [any key of MnistInrZooConfig]",
    "tiny-rnn": "amortopt zoo tiny-rnn --out FOLDER [--count N] [--shard K/N] [any key of TinyRNNZooConfig]",
}
_CONFIGS = {
    "build": ZooConfig,
    "cnn": CnnZooConfig,
    "mnist-inr": MnistInrZooConfig,
    "tiny-rnn": TinyRNNZooConfig,
}
_EXAMPLES = {"build": "mnist1d_mlp_tanh", "cnn": "cnn_mnist_5k_relu"}
"""Commands that need a recipe, with one."""


def main(args: list[str]) -> None:
    """Run a command that builds a zoo, given the arguments after `zoo`.

    Raises:
        ValueError: If the arguments or the recipe are wrong.
        OSError: If a file cannot be read or written.
    """
    command = args[0] if args else "--help"
    if command in ("-h", "--help"):
        print("usage: " + "\n       ".join(_USAGES.values()))
        print("\nFor all options: amortopt zoo build --help, and so for each")
        return
    if command not in _USAGES:
        usages = " or ".join(_USAGES.values())
        raise ValueError(f"zoo: got {command!r}, expected one of {', '.join(_USAGES)}; usage: {usages}")
    parsed = build_parser(command).parse_args(recipes_first(args[1:], "zoo"))
    options: dict[str, Any] = parsed.as_dict()
    recipe = options.pop("config")
    out, *places = (options.pop(key) for key in ("out", "shard", "device", "progress"))
    if command in _EXAMPLES and not recipe:
        example = _EXAMPLES[command]
        raise ValueError(
            f"--config: got nothing, expected a recipe, such as {example}; usage: {_USAGES[command]}"
        )
    if out is None:
        raise ValueError(f"--out: got nothing, expected the zoo folder; usage: {_USAGES[command]}")
    run = dict(zip(("shard", "device", "progress"), places, strict=True))
    check_device(run["device"], "--device")
    if command == "build":
        missing = build_zoo(ZooConfig(**options), out, **run)
    elif command == "cnn":
        missing = build_cnn_zoo(CnnZooConfig(**options), out, **run)
    elif command == "tiny-rnn":
        missing = build_tiny_rnn_zoo(TinyRNNZooConfig(**options), out, **run)
    else:
        missing = _build_mnist_inr_zoo(MnistInrZooConfig(**options), out, **run)
    count = options["images"] * options["views"] if command == "mnist-inr" else options["count"]
    if missing:
        shards = ", ".join(map(str, missing))
        print(f"{out}: part {run['shard']} is done; shard files {shards} are for the other processes")
    else:
        print(f"{out}: complete, {count} networks; table in {out / 'metadata.csv'}")
        if command == "cnn":
            print(_spread(CnnZooConfig(**options), out))


def _spread(config: CnnZooConfig, out: Path) -> str:
    """How the accuracies of a zoo spread, and what τ their noise allows."""
    zoo = load_zoo(out)
    accuracy, held_out = zoo.table["test_accuracy"], len(parts_of(config)[1])
    low, middle, high = (100 * float(q) for q in np.quantile(accuracy, (0.1, 0.5, 0.9)))
    try:
        bound = f"{tau_bound(accuracy, held_out):.3f}"
    except ValueError as error:
        return f"test accuracy cannot be predicted: {error}"
    return (
        f"test accuracy {low:.1f}, {middle:.1f}, {high:.1f} % (10, 50 and 90 % quantiles) on {held_out:,} "
        f"held-out examples; their number bounds Kendall's tau of any prediction by about {bound}"
    )


def build_parser(command: str = "build") -> ArgumentParser:
    """Parser of a subcommand: the keys of its recipe, and where to build."""
    parser = recipe_parser(_CONFIGS[command], command)
    parser.add_argument("--out", type=Path, help="Zoo folder, made if it is not there.")
    parser.add_argument(
        "--shard", type=str, default="1/1", help="k/n: build the k-th of n parts, one per process."
    )
    parser.add_argument("--device", type=str, default="cpu", help="Where to train, such as cpu or cuda.")
    parser.add_argument("--progress", type=bool, default=True, help="Whether to show a progress bar.")
    return parser


def _build_mnist_inr_zoo(config: MnistInrZooConfig, out: Path, **run: Any) -> list[int]:
    """Build a zoo of implicit representations; one-pass fits by the recipe's checkpoint."""
    if config.fits == "independent":
        return build_mnist_inr_zoo(config, out, **run)
    optimizer = ScaleGMNOptimizer.from_pretrained(config.checkpoint, device=run["device"])
    family = optimizer.family
    if not isinstance(family, Siren) or "batch" not in optimizer.metanet.conditions:
        raise ValueError(
            f"checkpoint: {config.checkpoint} is for {family}, expected one that reads pictures for SIRENs, "
            "such as images-siren"
        )

    def one_pass(siren: Siren, xy: Tensor, grey: Tensor, seeds: list[int]) -> Params:
        # One start for all images of a view: the pass writes into the gauge of its start.
        start = init_many(siren.build, [0])
        starts = {name: p.to(xy.device).expand(len(grey), *p.shape[1:]).clone() for name, p in start.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutOfFamilyWarning)  # digits are no photographs: psnr tells
            return optimizer.one_shot_params(starts, batch=[(xy, each) for each in grey])

    return build_mnist_inr_zoo(config, out, fit=one_pass, family=family, **run)
