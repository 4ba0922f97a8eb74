"""The command `amortopt fit`: a recipe of meta-training, or a class and problems of the user's own."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser  # pyright: ignore[reportPrivateImportUsage]

from amortopt.meta.fit import main as fit_recipe
from amortopt.meta.fleet import meta_train
from amortopt.system.imports import import_named
from amortopt.system.recipes import recipes_first
from amortopt.tasks import make_objective

_OF_FLEETS = ("family", "problems")
"""Options, and keys of a recipe, that say that a fleet of the user's own is meant."""


def main(args: list[str]) -> None:
    """Run `amortopt fit`.

    Args:
        args: Arguments after the command's name.

    Raises:
        ValueError: If the arguments or the recipe are wrong.
        OSError: If a file cannot be read or written.
    """
    args = recipes_first(args, "fit")
    if not is_of_a_fleet(args):
        fit_recipe(args)
        return
    options = _parsed(args)
    module = options.pop("family")["module"]
    problems, out, objective = (options.pop(key) for key in ("problems", "out", "objective"))
    if options["name"] is None:
        options["name"] = Path(problems).resolve().name.lower().replace(" ", "-")
    # The one place that imports it: what is typed here, or stands in a recipe that was named here.
    build_network = import_named(module, "--family.module")
    meta_train(
        build_network,
        problems,
        out or Path("runs") / options["name"] / "release",
        objective=None if objective is None else make_objective(**objective),
        **options,
    )


def is_of_a_fleet(args: list[str]) -> bool:
    """Whether arguments, recipes first, are for a class and problems of the user's own."""
    for option, value in pairwise([*args, ""]):
        if option == "--config":
            try:
                recipe = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError):
                continue  # the parser says what is wrong with it
            if (
                isinstance(recipe, dict)
                and "model" not in recipe
                and {*_OF_FLEETS, "minutes"} & recipe.keys()
            ):
                return True
        elif option.partition("=")[0].partition(".")[0] in [f"--{key}" for key in _OF_FLEETS]:
            return True
    return False


def _parsed(args: list[str]) -> dict[str, Any]:
    parser = ArgumentParser(prog="amortopt fit", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="A recipe, such as fleet.")
    parser.add_argument(
        "--family.module",
        type=str,
        required=True,
        help="package.module:name of a class or function that makes a network; it is imported.",
    )
    parser.add_argument(
        "--problems",
        type=str,
        required=True,
        help="Folder with one .npz file per problem: x_train, y_train, x_test, y_test.",
    )
    parser.add_argument(
        "--out", type=str | None, default=None, help="Folder of the checkpoint [runs/NAME/release]."
    )
    parser.add_argument(
        "--objective", type=dict | None, default=None, help="Such as {name: cross_entropy, num_classes: 10}."
    )
    parser.add_function_arguments(
        meta_train, skip={"build_network", "problems", "folder", "objective"}, as_positional=False
    )
    try:
        parsed = parser.parse_args(args).as_dict()
    except ArgumentError as error:
        raise ValueError(" ".join(str(error).split())) from error
    del parsed["config"]
    return parsed
