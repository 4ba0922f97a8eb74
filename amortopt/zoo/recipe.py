"""Recipes of zoos: YAML files whose keys are the fields of a `ZooConfig`."""

from __future__ import annotations

from jsonargparse import ActionConfigFile, ArgumentParser  # pyright: ignore[reportPrivateImportUsage]

from amortopt.zoo.config import ZooConfig


def recipe_parser() -> ArgumentParser:
    """Parser of a zoo's recipe; every key is an option too."""
    parser = ArgumentParser(
        prog="amortopt zoo build",
        description="Train many base networks at once and store them. "
        "Finished parts are kept: run it again after an interruption.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="Recipe, a YAML file such as those in recipes/zoo."
    )
    parser.add_class_arguments(ZooConfig)
    return parser
