"""A trained module with everything that made it, as a folder: one format for all kinds."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from amortopt._types import Params
from amortopt._version import __version__
from amortopt.metanets import Functional, L1Range, Metanet, make, registered
from amortopt.metanets.base import UpdateRule
from amortopt.release.card import model_card
from amortopt.release.fields import Kind, without_places
from amortopt.release.folder import (
    CONFIG,
    FORMAT,
    WEIGHTS,
    as_json,
    check_target,
    locate,
    read_card,
    read_config,
    read_state,
    state_bytes,
    write_release,
)
from amortopt.release.statistics import FamilyStatistics
from amortopt.symmetry import SymmetrySpec
from amortopt.tasks import (
    ModuleFamily,
    family_names,
    make_family,
    make_problem_or_family,
    problem_family_names,
    problem_names,
)

_BASES: dict[Kind, Any] = {"metanet": Metanet, "functional": Functional, "rule": UpdateRule}
_MAX_MESSAGE = 300
_LOAD = {
    "metanet": "ScaleGMNOptimizer.from_pretrained",
    "functional": "amortopt.load_release",
    "rule": "UNFOptimizer.from_pretrained",
}


@dataclass(frozen=True, eq=False)
class Release:
    """A trained module and all that is known about it.

    Args:
        module: A registered metanet, functional or update rule.
        name: Lower-case letters, digits, dots, hyphens and underscores.
        problems: What it was trained on: ``{"problem": problem.to_config(), "family": family.to_config()}``
            each. A metanet has one family. Where the data of a problem are on this machine is not written.
        recipe: What was run to make it: settings, or the recipe's text.
        seeds: What was seeded with what.
        results: What was measured: names to numbers, or names to such tables.
        commit: Commit of the code that made it; None if unknown.
        l1_range: L1 strengths that it was trained for; None if it reads none, or they were not recorded.
        passes: How often it was applied in a row in training.
        statistics: What problems of its family look like to it; None if that was not measured.
        card: Text of the model card; None: written from the other fields.
        sha256: Checksum of the weights file that it was read from.
        versions: Versions of amortopt and torch that wrote that file.
    """

    module: Metanet | Functional | UpdateRule
    name: str
    problems: Sequence[Mapping[str, Any]] = ()
    recipe: Mapping[str, Any] | str = field(default_factory=dict)
    seeds: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    commit: str | None = None
    l1_range: L1Range | None = None
    passes: int = 1
    statistics: FamilyStatistics | None = None
    card: str | None = None
    sha256: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """What the module is."""
        return next(kind for kind, base in _BASES.items() if isinstance(self.module, base))

    @property
    def problem(self) -> Mapping[str, Any] | None:
        """Configuration of the first problem; None if none was recorded."""
        return self.problems[0].get("problem") if self.problems else None

    @property
    def family(self) -> Mapping[str, Any] | None:
        """Configuration of the first family of base networks; None if none was recorded."""
        return self.problems[0].get("family") if self.problems else None


def save_release(folder: str | os.PathLike[str], release: Release) -> Path:
    """Write a release, whole or not at all, with the weights as they are now.

    Args:
        folder: A new or empty folder, or one that holds only a release, which is replaced.
        release: Not modified.

    Returns:
        The folder.

    Raises:
        ValueError: No path, an unsafe name, a field that json cannot hold or that is not what it should be,
            weights that are not finite, a module without a registered name, or a folder with other files.
        OSError: The disk is full or the folder cannot be written; what was there before is still there.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> rule = make("update_rule", width=4)
        >>> with TemporaryDirectory() as folder:
        ...     _ = save_release(folder, Release(rule, "my-rule", seeds={"all": 0}))
        ...     load_release(folder).seeds
        {'all': 0}
    """
    check_target(folder)
    module = release.module
    if not isinstance(module, tuple(_BASES.values())):
        raise ValueError(
            f"module: got {type(module).__name__}, expected a Metanet, a Functional or an UpdateRule"
        )
    if not module.name:
        raise ValueError(f"module: {type(module).__name__} has no registered name; decorate it with register")
    config = as_json(
        {
            "format": FORMAT,
            "kind": release.kind,
            "name": release.name,
            "module": {"name": module.name, "config": module.config},
            "conditions": _conditions_of(module),
            "spec": None if isinstance(module, UpdateRule) else json.loads(module.spec.to_json()),
            "problems": [
                {key: without_places(value) for key, value in entry.items() if value is not None}
                for entry in release.problems
            ],
            "recipe": release.recipe,
            "seeds": release.seeds,
            "results": release.results,
            "l1_range": None if release.l1_range is None else release.l1_range.to_config(),
            "passes": release.passes,
            "statistics": None if release.statistics is None else release.statistics.to_config(),
            "commit": release.commit,
            "versions": {"amortopt": __version__, "torch": str(torch.__version__)},
        }
    )
    weights = state_bytes(module, release.kind)
    card = model_card(config, parameter_count(module)) if release.card is None else release.card
    return write_release(folder, weights, config, card)


def load_release(source: str | os.PathLike[str], kind: Kind | None = None) -> Release:
    """Read a release and check that it is whole, unaltered and consistent.

    Nothing in it is executed, and nothing larger than its weights is allocated.

    Args:
        source: A folder; else the name of a shipped checkpoint, see [list_shipped][amortopt.list_shipped];
            else a Hugging Face hub id ``"owner/name"``, downloaded and cached by ``huggingface_hub``.
        kind: What is expected; None for any.

    Returns:
        The release, its module on the CPU and in eval mode.

    Raises:
        FileNotFoundError: No such checkpoint, or one of its files is missing.
        ValueError: A file was truncated or altered, is of another format or kind, or does not fit the others.
    """
    folder = locate(source, kind)
    config = read_config(folder)
    if kind not in (None, config["kind"]):
        raise ValueError(
            f"source: {folder} holds a {config['kind']}, expected a {kind}; use {_LOAD[config['kind']]}"
        )
    state = read_state(folder, config)
    try:
        module = _build(config, state)
    except Exception as error:  # constructors meet values of any type
        raise ValueError(
            f"{folder / CONFIG} does not fit {WEIGHTS} or this version of amortopt (written by "
            f"{config['versions'].get('amortopt')}, this is {__version__}): "
            f"{shorten(str(error) or type(error).__name__, _MAX_MESSAGE, placeholder=' ...')}"
        ) from error
    described = ("name", "problems", "recipe", "seeds", "results", "commit", "passes", "versions")
    return Release(
        module=module.eval(),
        **{key: config[key] for key in described},
        l1_range=None if config["l1_range"] is None else L1Range.from_config(config["l1_range"]),
        statistics=None
        if not config.get("statistics")
        else FamilyStatistics.from_config(config["statistics"]),
        card=read_card(folder),
        sha256=config["sha256"][WEIGHTS],
    )


def parameter_count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def _conditions_of(module: nn.Module) -> list[str]:
    """What the module reads beside the weights."""
    return sorted(module.conditions) if isinstance(module, Metanet) else []


def _build(config: Mapping[str, Any], state: Params) -> Metanet | Functional | UpdateRule:
    """The module with its weights.

    Raises:
        Exception: They do not fit.
    """
    name, kind = config["module"]["name"], config["kind"]
    if name not in (known := registered(_BASES[kind])):
        raise ValueError(f"module: got {name!r}, expected a registered {kind}: {', '.join(known)}")
    spec = [] if kind == "rule" else [SymmetrySpec.from_json(config["spec"])]
    # Its initial weights are replaced at once: the caller's random state is not to notice.
    with torch.random.fork_rng(devices=[]), _Allowance(4 * sum(value.numel() for value in state.values())):
        module = make(name, *spec, **config["module"]["config"])
    if config["conditions"] != _conditions_of(module):
        raise ValueError(f"conditions: got {config['conditions']}, expected {_conditions_of(module)}")
    dtypes = {value.dtype for value in state.values() if value.is_floating_point()}
    if len(dtypes) == 1:
        module.to(dtypes.pop())
    module.load_state_dict(state)
    for entry in config["problems"] if spec else ():
        _check_trained_on(spec[0], entry.get("problem"), entry.get("family"))
    return module


def _check_trained_on(
    spec: SymmetrySpec, problem: Mapping[str, Any] | None, family: Mapping[str, Any] | None
) -> None:
    """Raise a ``ValueError`` if problem, family and spec contradict each other.

    Classes of the user's that are not imported here are not checked.
    """
    if family is None or family["name"] not in family_names():
        return
    expected = {name: sum(math.prod(block.shape) for block in spec.blocks_of(name)) for name in spec.params}
    made = make_family(**family)
    if not isinstance(made, ModuleFamily):  # a class of the user's is a name: no code runs to read a file
        with torch.random.fork_rng(devices=[]), _Allowance(4 * sum(expected.values())):
            network = made.build()
        actual = {name: p.numel() for name, p in network.named_parameters()}
        if actual != expected:
            raise ValueError(
                f"family: its networks have {actual} elements per parameter, those of spec {expected}"
            )
    if problem is not None and problem["name"] in (*problem_names(), *problem_family_names()):
        shape = make_problem_or_family(**problem).input_shape
        if shape != made.input_shape:
            raise ValueError(f"problem: its inputs have shape {shape}, the family's {made.input_shape}")


_MOST_ELEMENTS = 2**30
_FACTORIES = (
    torch.empty,
    torch.zeros,
    torch.ones,
    torch.full,
    torch.rand,
    torch.randn,
    torch.eye,
    torch.arange,
)


class _Allowance(TorchFunctionMode):
    """Inside, tensors may be made until they have so many elements together (and 2^20 more).

    A size in a file is held against the weights in the file before it is allocated.
    """

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.left = min(elements, _MOST_ELEMENTS) + 2**20

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:
            size = kwargs.get("size", args)
            sizes = size[0] if size and isinstance(size[0], (tuple, list, torch.Size)) else size
            counts = [n for n in sizes if isinstance(n, int)]
            self.left -= max(counts, default=0) if func is torch.arange else math.prod(counts)
            if self.left < 0:
                raise ValueError(
                    f"building it needs a tensor of sizes {list(sizes)}, out of all proportion to its weights"
                )
        return func(*args, **kwargs)
