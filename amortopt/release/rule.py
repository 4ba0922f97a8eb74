"""Release of an update rule: weights, configuration and model card in a folder. Never a pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amortopt.metanets.update_rule.rule import UpdateRule
from amortopt.release.card import rule_card
from amortopt.release.folder import (
    CONFIG,
    WEIGHTS,
    card_of,
    check_target,
    checked_name,
    locate,
    read_config,
    read_weights,
    shipped_root,
    unfit,
    versions,
    write_release,
)

FORMAT = 1
_DESCRIPTIONS = ("problems", "recipe", "seeds", "results", "commit")


@dataclass(frozen=True, eq=False)
class RuleRelease:
    """A trained update rule and all that is known about it.

    Attributes:
        rule: On the CPU, in eval mode.
        name: Name of the release.
        problems: What it was trained on: ``{"problem": ..., "family": ...}`` each.
        recipe: What was run to make it: settings, or the recipe's text.
        seeds: What was seeded with what.
        results: What was measured.
        commit: Commit of the code that made it; None if unknown.
        card: Text of the model card; None if there is none.
        sha256: Checksum of the weights file.
        versions: Versions of amortopt and torch that wrote it.
    """

    rule: UpdateRule
    name: str
    problems: list[dict[str, Any]]
    recipe: dict[str, Any] | str
    seeds: dict[str, Any]
    results: dict[str, Any]
    commit: str | None
    card: str | None
    sha256: str
    versions: dict[str, str]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write it with [save_rule][amortopt.save_rule], with the weights as they are now."""
        described = {key: getattr(self, key) for key in _DESCRIPTIONS}
        return save_rule(folder, self.rule, name=self.name, card=self.card, **described)


def save_rule(
    folder: str | os.PathLike[str],
    rule: UpdateRule,
    *,
    name: str,
    recipe: Mapping[str, Any] | str,
    seeds: Mapping[str, Any],
    results: Mapping[str, Any],
    problems: list[dict[str, Any]] | tuple[dict[str, Any], ...] = (),
    commit: str | None = None,
    card: str | None = None,
) -> Path:
    """Write the release of an update rule, whole or not at all.

    Args:
        folder: A new or empty folder, or one that holds only a release, which is replaced.
        rule: Not modified.
        name: Lower-case letters, digits, dots, hyphens and underscores.
        recipe: What was run.
        seeds: What was seeded with what.
        results: What was measured: names to numbers, or names to such tables.
        problems: What it was trained on: ``{"problem": problem.to_config(), "family": family.to_config()}``
        each.
        commit: Commit of the code.
        card: Text of the model card; written from the other arguments if not given.

    Returns:
        The folder.

    Raises:
        ValueError: No path, an unsafe name, an argument that json cannot hold, weights that are not finite,
            no update rule, or a folder with other files.
        OSError: The disk is full or the folder cannot be written; what was there before is still there.
    """
    check_target(folder)
    if not isinstance(rule, UpdateRule):
        raise ValueError(
            f"rule: got {type(rule).__name__}, expected an UpdateRule; metanets go to save_release"
        )
    description: dict[str, Any] = {
        "format": FORMAT,
        "name": checked_name(name),
        "rule": dict(rule.config),
        "problems": list(problems),
        "recipe": recipe if isinstance(recipe, str) else dict(recipe),
        "seeds": dict(seeds),
        "results": dict(results),
        "commit": commit,
        "versions": versions(),
    }
    parameters = sum(p.numel() for p in rule.parameters())

    def text(described: dict[str, Any]) -> str:
        return card if card is not None else rule_card(described, parameters)

    return write_release(folder, rule, description, text, "rule")


def load_rule(source: str | os.PathLike[str]) -> RuleRelease:
    """Read an update rule and check that it is whole and unaltered.

    Args:
        source: A folder; else the name of a shipped rule, see ``list_shipped("rule")``; else a Hugging Face
            hub id ``"owner/name"``, downloaded and cached by ``huggingface_hub``.

    Returns:
        The release, its rule on the CPU and in eval mode.

    Raises:
        FileNotFoundError: No such release, or one of its files is missing.
        ValueError: A file was truncated or altered, has another format version, does not fit the others, or
            holds a metanet.
    """
    folder = locate(source, _shipped_root(), "rule")
    config = read_config(folder / CONFIG, "rule", FORMAT, _DESCRIPTIONS)
    return RuleRelease(
        rule=_rule_of(config, folder / WEIGHTS),
        name=config["name"],
        **{key: config[key] for key in _DESCRIPTIONS},
        card=card_of(folder),
        sha256=config["sha256"][WEIGHTS],
        versions=config["versions"],
    )


def _shipped_root() -> Path:
    return shipped_root(Path(__file__).resolve().parents[1])


def _rule_of(config: dict[str, Any], path: Path) -> UpdateRule:
    state = read_weights(path, config)
    try:
        # Its initial weights are replaced at once: the caller's random state is not to notice.
        with torch.random.fork_rng(devices=[]):
            rule = UpdateRule(**config["rule"])
        rule.load_state_dict(state)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        unfit(path, config, error)
    return rule.eval()
