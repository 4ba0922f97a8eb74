"""The commands `amortopt zoo build` and `amortopt zoo tiny-rnn`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser  # pyright: ignore[reportPrivateImportUsage]

from amortopt.system.recipes import recipes_first
from amortopt.zoo.build import build_zoo
from amortopt.zoo.config import ZooConfig, recipe_parser
from amortopt.zoo.formats.tiny_rnn_zoo import TinyRNNZooConfig, build_tiny_rnn_zoo

_USAGES = {
    "build": "amortopt zoo build --config RECIPE --out FOLDER [--count N] [--shard K/N] [any recipe key]",
    "tiny-rnn": "amortopt zoo tiny-rnn --out FOLDER [--count N] [--shard K/N] [any key of TinyRNNZooConfig]",
}


def main(args: list[str]) -> None:
    """Run `amortopt zoo build` or `amortopt zoo tiny-rnn`, given the arguments after `zoo`.

    Raises:
        ValueError: If the arguments or the recipe are wrong.
        OSError: If a file cannot be read or written.
    """
    command = args[0] if args else "--help"
    if command in ("-h", "--help"):
        print("usage: " + "\n       ".join(_USAGES.values()))
        print("\nFor all options: amortopt zoo build --help, amortopt zoo tiny-rnn --help")
        return
    if command not in _USAGES:
        usages = " or ".join(_USAGES.values())
        raise ValueError(f"zoo: got {command!r}, expected build or tiny-rnn; usage: {usages}")
    parsed = build_parser(command).parse_args(recipes_first(args[1:], "zoo"))
    options: dict[str, Any] = parsed.as_dict()
    recipe = options.pop("config")
    out, *places = (options.pop(key) for key in ("out", "shard", "device", "progress"))
    if command == "build" and not recipe:
        raise ValueError(
            f"--config: got nothing, expected a recipe, such as mnist1d_mlp_tanh; usage: {_USAGES[command]}"
        )
    if out is None:
        raise ValueError(f"--out: got nothing, expected the zoo folder; usage: {_USAGES[command]}")
    run = dict(zip(("shard", "device", "progress"), places, strict=True))
    if command == "build":
        missing = build_zoo(ZooConfig(**options), out, **run)
    else:
        missing = build_tiny_rnn_zoo(TinyRNNZooConfig(**options), out, **run)
    if missing:
        shards = ", ".join(map(str, missing))
        print(f"{out}: part {run['shard']} is done; shard files {shards} are for the other processes")
    else:
        print(f"{out}: complete, {options['count']} networks; table in {out / 'metadata.csv'}")


def build_parser(command: str = "build") -> ArgumentParser:
    """Parser of a subcommand: the keys of its recipe, and where to build."""
    parser = recipe_parser(ZooConfig if command == "build" else TinyRNNZooConfig, command)
    parser.add_argument("--out", type=Path, help="Zoo folder, made if it is not there.")
    parser.add_argument(
        "--shard", type=str, default="1/1", help="k/n: build the k-th of n parts, one per process."
    )
    parser.add_argument("--device", type=str, default="cpu", help="Where to train, such as cpu or cuda.")
    parser.add_argument("--progress", type=bool, default=True, help="Whether to show a progress bar.")
    return parser
