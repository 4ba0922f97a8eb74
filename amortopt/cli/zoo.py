"""The commands `amortopt zoo build` and `amortopt zoo tiny-rnn`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentParser  # pyright: ignore[reportPrivateImportUsage]

from amortopt.tasks.arithmetic import Arithmetic
from amortopt.zoo.build import build_zoo
from amortopt.zoo.config import ZooConfig
from amortopt.zoo.formats.tiny_rnn_zoo import TinyRNNZooConfig, build_tiny_rnn_zoo
from amortopt.zoo.recipe import recipe_parser

_USAGE = (
    "amortopt zoo build --config RECIPE.yaml --out FOLDER [--count N] [--shard K/N] [any key of the recipe]"
)
_TINY_RNN_USAGE = "amortopt zoo tiny-rnn --out FOLDER [--count N] [--shard K/N] [any key of TinyRNNZooConfig]"


def build_parser() -> ArgumentParser:
    """Parser of `amortopt zoo build`: a recipe's keys, and where to build."""
    parser = recipe_parser()
    _add_options(parser)
    return parser


def tiny_rnn_parser() -> ArgumentParser:
    """Parser of `amortopt zoo tiny-rnn`: every key of its recipe is an option; none has to be given."""
    parser = ArgumentParser(
        prog="amortopt zoo tiny-rnn",
        description="Train many small recurrent networks to add, and store them. "
        "Finished parts are kept: run it again after an interruption.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="Recipe, a YAML file.")
    parser.add_class_arguments(TinyRNNZooConfig)
    _add_options(parser)
    return parser


def _add_options(parser: ArgumentParser) -> None:
    """What is said at the command line and belongs to no recipe."""
    parser.add_argument("--out", type=Path, help="Zoo folder, made if it is not there.")
    parser.add_argument(
        "--shard", type=str, default="1/1", help="k/n: build the k-th of n parts, one per process."
    )
    parser.add_argument("--device", type=str, default="cpu", help="Where to train, such as cpu or cuda.")
    parser.add_argument("--progress", type=bool, default=True, help="Whether to show a progress bar.")


def main(args: list[str]) -> None:
    """Run `amortopt zoo build` or `amortopt zoo tiny-rnn` with the given arguments.

    Raises:
        ValueError: If the arguments or the recipe are wrong.
        OSError: If a file cannot be read or written.
    """
    if args[:1] in ([], ["-h"], ["--help"]):
        usages = f"usage: {_USAGE}\n       {_TINY_RNN_USAGE}"
        print(f"{usages}\n\nFor all options: amortopt zoo build --help, amortopt zoo tiny-rnn --help")
    elif args[0] == "build":
        _build(args[1:])
    elif args[0] == "tiny-rnn":
        _tiny_rnn(args[1:])
    else:
        raise ValueError(
            f"zoo: got {args[0]!r}, expected build or tiny-rnn; usage: {_USAGE} or {_TINY_RNN_USAGE}"
        )


def _tiny_rnn(args: list[str]) -> None:
    parser = tiny_rnn_parser()
    parsed = parser.parse_args(_config_first(args))
    if parsed.out is None:
        raise ValueError(f"--out: got nothing, expected the zoo folder; usage: {_TINY_RNN_USAGE}")
    options = parsed.as_dict()
    out, shard, device, progress = (options.pop(key) for key in ("out", "shard", "device", "progress"))
    options.pop("config")
    config = TinyRNNZooConfig(arithmetic=Arithmetic(**options.pop("arithmetic")), **options)
    missing = build_tiny_rnn_zoo(config, out, shard=shard, device=device, progress=progress)
    _say_what_is_there(out, shard, config.count, missing)


def _build(args: list[str]) -> None:
    parser = build_parser()
    parsed = parser.parse_args(_config_first(args))
    if not parsed.config:
        raise ValueError(
            "--config: got nothing, expected a recipe, such as recipes/zoo/mnist1d_mlp_tanh.yaml; "
            f"usage: {_USAGE}"
        )
    if parsed.out is None:
        raise ValueError(f"--out: got nothing, expected the zoo folder; usage: {_USAGE}")
    options = parsed.as_dict()
    out, shard, device, progress = (options.pop(key) for key in ("out", "shard", "device", "progress"))
    options.pop("config")
    config = ZooConfig(**options)
    missing = build_zoo(config, out, shard=shard, device=device, progress=progress)
    _say_what_is_there(out, shard, config.count, missing)


def _say_what_is_there(out: Path, shard: str, count: int, missing: list[int]) -> None:
    if missing:
        listed = ", ".join(map(str, missing))
        print(f"{out}: part {shard} is done; shard files {listed} are for the other processes")
    else:
        print(f"{out}: complete, {count} networks; table in {out / 'metadata.csv'}")


def _config_first(args: list[str]) -> list[str]:
    # jsonargparse lets the later argument win; what is typed must win over the recipe wherever it stands.
    first: list[str] = []
    rest: list[str] = []
    position = 0
    while position < len(args):
        width = 2 if args[position] == "--config" else 1
        (first if args[position].split("=")[0] == "--config" else rest).extend(
            args[position : position + width]
        )
        position += width
    return first + rest
