"""What a learned optimizer's state dict says of the model and the rule, so that another's is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import Tensor

from amortopt.updates import UpdateLayout, UpdateRule

FORMAT = 1


def rule_digest(rule: UpdateRule) -> str:
    """sha256 of a rule's arguments and weights."""
    digest = hashlib.sha256(json.dumps(rule.config, sort_keys=True).encode())
    for name, value in sorted(rule.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def header(digest: str, layout: UpdateLayout, groups: list[list[str]], skipped: int) -> dict[str, Any]:
    """What goes along with the state, in types that ``torch.load(weights_only=True)`` reads."""
    return {
        "format": FORMAT,
        "rule": digest,
        "shapes": {name: list(shape) for name, shape in layout.shapes.items()},
        "groups": groups,
        "skipped": skipped,
    }


def check_state_dict(given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse what another optimizer, model or rule wrote.

    Args:
        given: The state dict.
        own: This optimizer's header.

    Raises:
        ValueError: The first thing that differs.
    """
    known = given.get("amortopt")
    if not isinstance(known, Mapping) or not {"state", "param_groups"} <= set(given):
        raise ValueError("state_dict: got another optimizer's, expected one of a UNFOptimizer")
    if known.get("format") != own["format"]:
        raise ValueError(
            f"state_dict: got format {known.get('format')!r}, expected {own['format']}; use the amortopt "
            f"version "
            "that wrote it"
        )
    _check_shapes(known["shapes"], own["shapes"])
    if known["rule"] != own["rule"]:
        raise ValueError(
            f"state_dict: got one of the update rule {known['rule'][:12]}…, expected {own['rule'][:12]}…; "
            f"load the "
            "rule that it was made with"
        )
    if known["groups"] != own["groups"]:
        raise ValueError(
            f"state_dict: got parameter groups {_short(known['groups'])}, expected "
            f"{_short(own['groups'])}; make the "
            "groups as they were, in the same order"
        )
    _check_state(given["state"], own)


def _check_shapes(given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for name in own:
        if name not in given or list(given[name]) != own[name]:
            got = f"shape {tuple(given[name])}" if name in given else "none"
            raise ValueError(
                f"state_dict: got {got} for {name!r}, expected shape {tuple(own[name])}; it is of another "
                f"model"
            )
    if more := [name for name in given if name not in own]:
        raise ValueError(f"state_dict: got {more[0]!r}, which this model lacks; it is of another model")


def _check_state(state: Mapping[int, Any], own: Mapping[str, Any]) -> None:
    names = list(chain.from_iterable(own["groups"]))
    if state and sorted(state) != list(range(len(names))):
        raise ValueError(f"state_dict: got state of {len(state)} parameters, expected {len(names)}")
    for i, entry in state.items():
        shape = tuple(own["shapes"][names[i]])
        for key, value in entry.items():
            if not isinstance(value, Tensor) or (key != "step" and tuple(value.shape[1:]) != shape):
                raise ValueError(
                    f"state_dict: got {key!r} of another shape for {names[i]!r}, expected [*, {shape}]; "
                    f"it was altered"
                )


def _short(groups: list[list[str]]) -> str:
    return "; ".join(f"{', '.join(group[:3])}{', …' if len(group) > 3 else ''}" for group in groups)
