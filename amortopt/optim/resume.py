"""What a learned optimizer's state dict says of the model and the rule, so that another's is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import Tensor

from amortopt.metanets.update_rule import features as f
from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.metanets.update_rule.rule import UpdateRule
from amortopt.optim.whole import step_options

FORMAT = 1
_ALTERED = "it was altered"


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


def state_axes(rule: UpdateRule) -> dict[str, int | None]:
    """What a parameter's state holds -> how many values per element; None for the step."""
    found: dict[str, int | None] = {"step": None, "momenta": 1 + len(f.MOMENTA)}
    if rule.second or rule.base == "adam":
        found["second"] = len(f.SECOND)
    return found


def as_state_dict(given: Any) -> dict[str, Any]:
    """A state dict as a dict, if it is that."""
    if not isinstance(given, Mapping):
        raise ValueError(
            f"state_dict: got {type(given).__name__}, expected the dict that state_dict() returned"
        )
    return dict(given)


def check_state_dict(
    given: Mapping[str, Any], own: Mapping[str, Any], axes: Mapping[str, int | None]
) -> None:
    """Refuse what another optimizer, model or rule wrote.

    Args:
        given: The state dict.
        own: This optimizer's header.
        axes: From ``state_axes``.

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
    skipped = known.get("skipped")
    if not isinstance(known.get("shapes"), Mapping) or not set(own) <= set(known):
        raise ValueError(f"state_dict: got {sorted(known)} in 'amortopt', expected {sorted(own)}; {_ALTERED}")
    if not isinstance(skipped, int) or skipped < 0:
        raise ValueError(f"state_dict: got {skipped!r} skipped steps, expected a count; {_ALTERED}")
    _check_shapes(known["shapes"], own["shapes"])
    if known["rule"] != own["rule"]:
        raise ValueError(
            f"state_dict: got one of the update rule {str(known['rule'])[:12]}…, "
            f"expected {own['rule'][:12]}…; "
            "load the rule that it was made with"
        )
    if known["groups"] != own["groups"]:
        raise ValueError(
            f"state_dict: got parameter groups {_short(known['groups'])}, expected "
            f"{_short(own['groups'])}; make the "
            "groups as they were, in the same order"
        )
    _check_groups(given["param_groups"], own["groups"])
    _check_state(given["state"], own, axes)


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


def _check_groups(groups: Any, own: list[list[str]]) -> None:
    if not isinstance(groups, (list, tuple)) or len(groups) != len(own):
        raise ValueError(f"state_dict: expected a list of {len(own)} as 'param_groups'; {_ALTERED}")
    for i, (group, names) in enumerate(zip(groups, own, strict=True)):
        params = group.get("params") if isinstance(group, Mapping) else None
        if not isinstance(params, (list, tuple)) or len(params) != len(names):
            raise ValueError(
                f"state_dict: expected 'params' of length {len(names)} in parameter group {i}; {_ALTERED}"
            )
        step_options(i, group, "state_dict: ")


def _check_state(state: Any, own: Mapping[str, Any], axes: Mapping[str, int | None]) -> None:
    names = list(chain.from_iterable(own["groups"]))
    if not isinstance(state, Mapping) or (state and set(state) != set(range(len(names)))):
        got = f"state of {len(state)} parameters" if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"state_dict: got {got}, expected state of {len(names)} parameters")
    for i, entry in state.items():
        lacking = [key for key in axes if not isinstance(entry, Mapping) or key not in entry]
        if lacking:
            raise ValueError(f"state_dict: got no {lacking[0]!r} for {names[i]!r}, expected one; {_ALTERED}")
        for key, count in axes.items():
            shape = () if count is None else (count, *own["shapes"][names[i]])
            _check_value(key, names[i], entry[key], shape)
    if len({float(entry["step"]) for entry in state.values()}) > 1:
        raise ValueError(f"state_dict: got several values of 'step', expected one; {_ALTERED}")


def _check_value(key: str, name: str, value: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"state_dict: got {key!r} of another shape for {name!r}, {got}, expected {shape}; {_ALTERED}"
        )
    expected = {"momenta": "finite numbers", "second": "finite numbers >= 0"}.get(key, "a whole number >= 0")
    good = not value.is_complex() and bool(value.isfinite().all())
    if good and key != "momenta":
        good = bool((value >= 0).all())
    if good and key == "step":
        good = float(value).is_integer()
    if not good:
        got = f" {float(value)}" if key == "step" and not value.is_complex() else " other values"
        raise ValueError(f"state_dict: got{got} as {key!r} of {name!r}, expected {expected}; {_ALTERED}")


def _short(groups: list[list[str]]) -> str:
    return "; ".join(f"{', '.join(group[:3])}{', …' if len(group) > 3 else ''}" for group in groups)
