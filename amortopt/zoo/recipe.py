"""Recipes of zoos: YAML files whose keys are the fields of a `ZooConfig`."""

from __future__ import annotations

from jsonargparse import ActionConfigFile, ArgumentParser  # pyright: ignore[reportPrivateImportUsage]

from amortopt.zoo.config import ZooConfig


def recipe_parser(config: type = ZooConfig, command: str = "build") -> ArgumentParser:
    """Parser of a zoo's recipe; every key is an option too.

    Args:
        config: Class whose arguments are the recipe's keys.
        command: Subcommand of `amortopt zoo`, for the help.
    """
    parser = ArgumentParser(
        prog=f"amortopt zoo {command}",
        description="Train many base networks at once and store them. "
        "Finished parts are kept: run it again after an interruption.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="Recipe: a YAML file, or the name of one that comes with the package.",
    )
    parser.add_class_arguments(config)
    return parser
