"""Recipes: YAML files with the settings of a run, the user's own or those that come with the package."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from amortopt.system.files import shipped_folder


def find_recipe(
    recipe: str, kind: Literal["fit", "zoo"], *, roots: Sequence[Path] = (), argument: str = "--config"
) -> Path:
    """The file of a recipe.

    Args:
        recipe: Path of a file, from the current folder or one of ``roots``; else the name of a recipe that
            comes with the package, such as ``mnist1d_mlp_tanh``.
        kind: ``"fit"`` for meta-training, ``"zoo"`` for building a zoo.
        roots: Further folders to look in.
        argument: Name of the caller's argument, for the message.

    Raises:
        FileNotFoundError: No such file and no such name; the message lists the names.
    """
    places = [Path(), *roots]
    for root in places:
        if (root / recipe).is_file():
            return root / recipe
    folder = shipped_folder("recipes") / ("zoo" if kind == "zoo" else "")
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if recipe in names:
        return folder / f"{recipe}.yaml"
    close = difflib.get_close_matches(Path(recipe).stem, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    searched = ", ".join(dict.fromkeys(str(root.resolve()) for root in places))
    raise FileNotFoundError(
        f"{argument}: got {recipe!r}, which is no file in {searched} and no recipe of the package{hint}; its "
        f"recipes are {', '.join(names)}"
    )


def recipes_first(args: Sequence[str], kind: Literal["fit", "zoo"]) -> list[str]:
    """Arguments with ``--config FILE`` in front, and names of recipes replaced by their files.

    jsonargparse lets the later argument win, and what is typed has to win over the recipe wherever it stands.

    Raises:
        FileNotFoundError: There is no such recipe.
    """
    first: list[str] = []
    rest: list[str] = []
    remaining = iter(args)
    for arg in remaining:
        option, equals, value = arg.partition("=")
        if option in ("--config", "-c"):
            recipe = value if equals else next(remaining, "")
            first += ["--config", str(find_recipe(recipe, kind))]
        else:
            rest.append(arg)
    return first + rest
