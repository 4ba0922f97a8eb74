"""The fields of a release's ``config.json``: what each has to be, before anything is built from them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias, get_args

from amortopt.release.statistics import FamilyStatistics

Kind: TypeAlias = Literal["metanet", "functional", "rule"]
"""What a release holds: a metanet (params to params), a functional (params to numbers), an update rule."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
"""Names of releases, which are safe as names of folders."""
_MAX_PASSES = 1000
_MAX_SIZE = 2**20  # of any whole number among the arguments of a module or a family: widths, depths
_MAX_COUNT = 1000  # of what a module builds one after the other
_COUNTS = ("rounds", "sweeps")
_PLACES = ("path", "root", "download")
"""Arguments of problems that say where this machine has their data."""


def check_name(name: object) -> None:
    """Raise a ``ValueError`` unless the name of a checkpoint is safe as a folder's name."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            f"name: got {name!r}, expected lower-case letters, digits, '.', '_' and '-', starting with a "
            "letter or digit"
        )


def check_passes(passes: object) -> None:
    """Raise a ``ValueError`` unless ``passes`` is a whole number from 1 to 1000."""
    if isinstance(passes, bool) or not isinstance(passes, int) or not 1 <= passes <= _MAX_PASSES:
        raise ValueError(f"passes: got {passes!r}, expected a whole number from 1 to {_MAX_PASSES}")


def _is_named(value: Any, *tables: str) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and all(isinstance(value.get(key), dict) for key in tables)
    )


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "kind": (lambda v: v in get_args(Kind), f"one of {', '.join(get_args(Kind))}"),
    "module": (lambda v: _is_named(v, "config"), "a table with name and config"),
    "spec": (lambda v: v is None or isinstance(v, dict), "a symmetry spec or null"),
    "conditions": (lambda v: isinstance(v, list) and all(isinstance(c, str) for c in v), "a list of names"),
    "problems": (
        lambda v: (
            isinstance(v, list)
            and all(
                isinstance(entry, dict)
                and entry.keys() <= {"problem", "family"}
                and all(map(_is_named, entry.values()))
                for entry in v
            )
        ),
        "a list of tables with problem and family, each a table with a name",
    ),
    "recipe": (lambda v: isinstance(v, (str, dict)), "a table or text"),
    "seeds": (lambda v: isinstance(v, dict), "a table"),
    "results": (lambda v: isinstance(v, dict), "a table"),
    "l1_range": (
        lambda v: (
            v is None
            or (
                isinstance(v, dict)
                and v.keys() == {"low", "high", "zero"}
                and all(isinstance(v[key], (int, float)) and math.isfinite(v[key]) for key in ("low", "high"))
                and isinstance(v["zero"], bool)
            )
        ),
        "low, high and zero, or null",
    ),
    "commit": (lambda v: v is None or isinstance(v, str), "text or null"),
    "versions": (
        lambda v: isinstance(v, dict) and all(isinstance(version, str) for version in v.values()),
        "a table of texts",
    ),
}


def check_fields(config: Mapping[str, Any], where: str) -> None:
    """Check the type and range of every field of ``config.json``, the file ``where``.

    Raises:
        ValueError: A field is missing or not what it should be, a size is out of all proportion, or a problem
            or family names a path: a release names registered problems, whose data are where the reader has
            them.
    """
    if missing := [key for key in ("name", *_FIELDS, "passes") if key not in config]:
        raise ValueError(f"{where} lacks {', '.join(missing)}; get the checkpoint again, whole")
    try:
        check_name(config["name"])
        check_passes(config["passes"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if config.get("statistics") is not None:
        try:
            FamilyStatistics.from_config(config["statistics"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    for key, (is_right, expected) in _FIELDS.items():
        if not is_right(config[key]):
            raise ValueError(f"{where}: {key}: got {config[key]!r:.80}, expected {expected}")
    families = [entry.get("family") for entry in config["problems"]]
    for key, value in _leaves([config["module"], families]):
        most = _MAX_COUNT if key in _COUNTS else _MAX_SIZE
        if isinstance(value, int) and abs(value) > most:
            raise ValueError(f"{where}: {key}: got {value}, expected at most {most}")
    for key, value in _leaves(config["problems"]):
        if key in _PLACES or (isinstance(value, str) and re.search(r"[/\\]", value)):
            raise ValueError(
                f"{where}: problems: got {key} {value!r:.80}, expected no path: a release names registered "
                "problems and families, not where their data are"
            )


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """A problem's configuration without where this machine has its data: what a release holds of it."""
    return {key: value for key, value in config.items() if key not in _PLACES}


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Values in nested tables and lists, each with the key that it stands under."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value
