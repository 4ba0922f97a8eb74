"""State of a learned optimizer: flat vectors for the rule, tensors per parameter for torch.optim, state
dicts.

Legend: N elements of all parameters, ``*lead`` axes of a state entry before the elements.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.optim.stepwise_inputs import step_options
from amortopt.symmetry.blocks import cut

FORMAT = 2
_ALTERED = "it was altered"


class FlatState:
    """The state of an update rule, and what ``Optimizer.state`` holds of it per parameter.

    The entry of a parameter that is one block is a view of the flat vectors. That of a parameter of several
    blocks (gates of a recurrent layer, heads) lies in another order, so it is a tensor of its own: copied to
    the flat vectors before a step (``read``), and back after it (``write``).

    Args:
        rule: Decides which entries the state has.
        layout: Of the base network.
        dtype: Of the state.

    Attributes:
        flat: ``step`` and what else is one number, on the CPU; per other entry [lead, N].
    """

    def __init__(self, rule: UNFRule, layout: UpdateLayout, dtype: torch.dtype = torch.float32) -> None:
        fresh = rule.init_state(layout, torch.zeros(layout.size, device=layout.device))
        self._sizes = rule.state_sizes
        self._shared = {key: fresh[key].cpu() for key in rule.shared_entries}
        self.flat = {key: fresh[key].to(dtype) for key in self._sizes} | self._shared
        self._entries: dict[str, dict[str, Tensor]] = {}
        self._parts: list[Tensor] = []
        self._copies: list[Tensor] = []
        for key in self._sizes:
            tensors = layout.unpack(self.flat[key])
            for name, tensor in tensors.items():
                self._entries.setdefault(name, dict(self._shared))[key] = tensor
            for place in layout.places:
                if len(layout.blocks[place.block.param]) > 1:
                    copy = cut(tensors[place.block.param], place.block)
                    self._copies.append(copy)
                    self._parts.append(self.flat[key][:, place.start : place.stop].view(copy.shape))

    def read(self, state: dict[Any, Any], params: Params) -> None:
        """Bring the flat vectors up to date with ``Optimizer.state``, whatever was done to it.

        Args:
            state: Of the optimizer; is given the entries of all parameters. What was assigned is copied, what
                was removed is zero.
            params: Name -> parameter, of all groups.

        Raises:
            ValueError: An assigned entry has another shape.
        """
        found: dict[str, list[Tensor]] = {key: [] for key in self._shared}
        for name, p in params.items():
            # A parameter without elements is not in the flat vectors.
            if name not in self._entries:
                empty = {key: p.new_zeros((n, *p.shape)) for key, n in self._sizes.items()}
                self._entries[name] = {**self._shared, **empty}
            entry = state.get(p, {})
            for key, tensor in self._entries[name].items():
                value = entry.get(key)
                if key in found:
                    found[key] += [] if value is None else [value]
                elif value is None:
                    tensor.zero_()
                elif value is not tensor:
                    if tuple(value.shape) != tuple(tensor.shape):
                        raise ValueError(
                            f"state[{name!r}][{key!r}]: got shape {tuple(value.shape)}, expected "
                            f"{tuple(tensor.shape)}"
                        )
                    tensor.copy_(value)
            if any(entry.get(key) is not tensor for key, tensor in self._entries[name].items()):
                state.setdefault(p, {}).update(self._entries[name])
        for key, values in found.items():
            assigned = [value for value in values if value is not self.flat[key]]
            if assigned or not values:
                self.flat[key].fill_(float(assigned[-1]) if assigned else 0.0)
        if self._copies:
            torch._foreach_copy_(self._parts, self._copies)  # pyright: ignore[reportPrivateImportUsage]

    def write(self, new: Mapping[str, Tensor]) -> None:
        """Take over the state after a step, float32, and bring the entries that are no views up to date."""
        for key, value in self._shared.items():
            value.copy_(new[key])
        for key in self._sizes:
            value, target = new[key], self.flat[key]
            if value is not target:
                target.copy_(value if target.dtype == value.dtype else _rounded(value, float(new["step"])))
        if self._copies:
            torch._foreach_copy_(self._copies, self._parts)  # pyright: ignore[reportPrivateImportUsage]


def _rounded(values: Tensor, step: float) -> Tensor:
    """To numbers that bfloat16 has, up or down at random so that the mean is right; the same in every run.

    An average with a decay of 0.99 moves by less than half a unit in bfloat16's last place where it is near
    its goal; to the nearest, it would never move.
    """
    generator = torch.Generator(values.device).manual_seed(int(step))
    noise = torch.randint(1 << 16, values.shape, generator=generator, dtype=torch.int32, device=values.device)
    return ((values.contiguous().view(torch.int32) + noise) & ~0xFFFF).view(torch.float32)


def rule_digest(rule: UNFRule) -> str:
    """sha256 of a rule's arguments and weights."""
    digest = hashlib.sha256(json.dumps(rule.config, sort_keys=True).encode())
    for name, value in sorted(rule.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_state_dict(
    state_dict: Mapping[str, Any],
    expected: Mapping[str, Any],
    sizes: Mapping[str, int],
    shared: Sequence[str] = ("step",),
) -> dict[int, dict[str, Tensor]]:
    """Refuse what another optimizer, model or rule wrote.

    Args:
        state_dict: What is to be loaded.
        expected: Header of this optimizer.
        sizes: Entry of a parameter's state -> numbers per element.
        shared: Entries that are one number, the same for all parameters.

    Returns:
        Number of a parameter -> its state, as float32 tensors.

    Raises:
        ValueError: The first thing that differs.
    """
    state, known = state_dict.get("state"), state_dict.get("amortopt")
    of_other = not isinstance(known, Mapping) if "amortopt" in state_dict else not state
    if of_other or not {"state", "param_groups"} <= set(state_dict):
        raise ValueError("state_dict: got another optimizer's, expected one of a UNFOptimizer")
    if known is not None:
        _check_header(known, expected)
    groups = state_dict["param_groups"]
    if not isinstance(groups, (list, tuple)) or len(groups) != len(expected["groups"]):
        raise ValueError(
            f"state_dict: expected a list of {len(expected['groups'])} as 'param_groups'; {_ALTERED}"
        )
    for i, (group, members) in enumerate(zip(groups, expected["groups"], strict=True)):
        params = group.get("params") if isinstance(group, Mapping) else None
        if not isinstance(params, (list, tuple)) or len(params) != len(members):
            raise ValueError(
                f"state_dict: expected 'params' of length {len(members)} in parameter group {i}; {_ALTERED}"
            )
        step_options(i, group, "state_dict: ")
    names = list(chain.from_iterable(expected["groups"]))
    # Parameters go by what their group lists: numbers, or names after torch.distributed.checkpoint.
    numbers = {key: i for i, key in enumerate(k for g in groups for k in g["params"])}
    if not isinstance(state, Mapping) or (state and set(state) != set(numbers)):
        got = f"state of {len(state)} parameters" if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"state_dict: got {got}, expected state of {len(names)} parameters")
    values = {}
    for key, entry in state.items():
        name = names[numbers[key]]
        shapes = {what: (n, *expected["shapes"][name]) for what, n in sizes.items()}
        values[numbers[key]] = _state_of(name, entry, shapes | dict.fromkeys(shared, ()))
    for what in shared:
        if len({float(entry[what]) for entry in values.values()}) > 1:
            raise ValueError(f"state_dict: got several values of {what!r}, expected one; {_ALTERED}")
    return values


def _check_header(known: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    if known.get("format") != expected["format"]:
        raise ValueError(
            f"state_dict: got format {known.get('format')!r}, expected {expected['format']}; use the "
            "amortopt version that wrote it"
        )
    skipped = known.get("skipped")
    if not isinstance(known.get("shapes"), Mapping) or not set(expected) <= set(known):
        raise ValueError(
            f"state_dict: got {sorted(known)} in 'amortopt', expected {sorted(expected)}; {_ALTERED}"
        )
    if not isinstance(skipped, int) or skipped < 0:
        raise ValueError(f"state_dict: got {skipped!r} skipped steps, expected a count; {_ALTERED}")
    shapes, wanted = known["shapes"], expected["shapes"]
    for name in wanted:
        if name not in shapes or list(shapes[name]) != wanted[name]:
            got = f"shape {tuple(shapes[name])}" if name in shapes else "none"
            raise ValueError(
                f"state_dict: got {got} for {name!r}, expected shape {tuple(wanted[name])}; it is of another "
                "model"
            )
    if more := [name for name in shapes if name not in wanted]:
        raise ValueError(f"state_dict: got {more[0]!r}, which this model lacks; it is of another model")
    if known["rule"] != expected["rule"]:
        raise ValueError(
            f"state_dict: got one of the update rule {str(known['rule'])[:12]}…, expected "
            f"{expected['rule'][:12]}…; load the rule that it was made with"
        )
    if known["groups"] != expected["groups"]:
        raise ValueError(
            f"state_dict: got parameter groups {_short(known['groups'])}, expected "
            f"{_short(expected['groups'])}; make the groups as they were, in the same order"
        )


def _state_of(name: str, entry: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A parameter's state as tensors; numbers and lists for tensors will do, as some tools write them."""
    values = {}
    for key, expected in (
        ("step", "a whole number >= 0"),
        ("length", "a finite number >= 0"),
        ("momenta", "finite numbers"),
        ("second", "finite numbers >= 0"),
    ):
        if key not in shapes:
            continue
        if not isinstance(entry, Mapping) or key not in entry:
            raise ValueError(f"state_dict: got no {key!r} for {name!r}, expected one; {_ALTERED}")
        wanted = shapes[key]
        try:
            value = torch.as_tensor(entry[key])
        except (TypeError, ValueError, RuntimeError):
            value = None
        if value is None or tuple(value.shape) != wanted:
            got = type(entry[key]).__name__ if value is None else tuple(value.shape)
            raise ValueError(
                f"state_dict: got {key!r} of another shape for {name!r}, {got}, expected {wanted}; {_ALTERED}"
            )
        good = not value.is_complex() and bool(value.isfinite().all())
        if good and key != "momenta":
            good = bool((value >= 0).all())
        if good and key == "step":
            good = float(value).is_integer()
        if not good:
            got = f" {float(value)}" if key == "step" and not value.is_complex() else " other values"
            raise ValueError(f"state_dict: got{got} as {key!r} of {name!r}, expected {expected}; {_ALTERED}")
        values[key] = value.detach().float()
    return values


def _short(groups: list[list[str]]) -> str:
    return "; ".join(f"{', '.join(group[:3])}{', …' if len(group) > 3 else ''}" for group in groups)
