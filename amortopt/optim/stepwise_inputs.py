"""What a user gives to a learned optimizer: model, spec, rule, parameter groups and their options."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.release import load_release
from amortopt.symmetry import Axis, Block, NeuronGroup, SymmetrySpec, extract

COMPILED = "_orig_mod."


def unwrapped(model: Any) -> nn.Module:
    """The network that was compiled, or in ``DistributedDataParallel``; a ``ValueError`` if it is none."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model: got {type(model).__name__}, expected the nn.Module itself: its symmetry is read, not "
            "only its parameters; where a trainer calls optimizer_class(parameters), pass it "
            "UNFOptimizer.factory(model, x)"
        )
    while isinstance(model, (OptimizedModule, DataParallel, DistributedDataParallel)):
        model = model._orig_mod if isinstance(model, OptimizedModule) else model.module
    return model


def name_in_model(name: str) -> str:
    """The name without what wrappers put before it."""
    while name.startswith((COMPILED, "module.")):
        name = name.split(".", 1)[1]
    return name


def read_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, tied ones once.

    Raises:
        ValueError: There are none, one is lazy or holds no real numbers, or they are on several devices.
    """
    params = dict(model.named_parameters())
    if not params:
        raise ValueError(f"model: {type(model).__name__} has no parameters, expected at least one")
    for name, p in params.items():
        if is_lazy(p):
            raise ValueError(
                f"model: {name!r} is lazy, expected its shape to be known; run the model once first"
            )
        if p.is_complex() or (p.requires_grad and not p.is_floating_point()):
            raise ValueError(f"model: {name!r} is {p.dtype}, expected real floating-point parameters")
    devices = sorted({str(p.device) for p in params.values()})
    if len(devices) > 1 or devices == [str(torch.device("meta"))]:
        raise ValueError(
            f"model: got parameters on {', '.join(devices)}, expected one device with memory; move the "
            f"model first"
        )
    return params


def check_options(lr: Any, weight_decay: Any) -> None:
    """Raise a ``ValueError`` unless learning rate and weight decay of a group are in their range."""
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        number = _number(value)
        if not math.isfinite(number) or number < 0:
            raise ValueError(f"{name}: got {value!r}, expected a finite number >= 0")


def step_options(index: int, group: Mapping[str, Any], where: str = "") -> tuple[float, float]:
    """Learning rate and weight decay of a group as they are now; a scheduler may have set them.

    Raises:
        ValueError: One is missing, negative or not finite; the message starts with ``where``.
    """
    rates = []
    for name in ("lr", "weight_decay"):
        number = _number(group.get(name))
        if not math.isfinite(number) or number < 0:
            got = repr(group[name]) if name in group else "none"
            raise ValueError(
                f"{where}{name}: got {got} in parameter group {index}, expected a finite number >= 0; look "
                "at what set it, such as a scheduler or a loaded state"
            )
        rates.append(number)
    return rates[0], rates[1]


def _number(value: Any) -> float:
    single = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
    try:
        return float(value) if single or isinstance(value, (int, float)) else math.nan
    except OverflowError:
        return math.inf


def nonfinite_message(gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """What is not finite, and what to do about it; without gradients, it is the update."""
    if not gradients:
        return (
            "update: got NaN or infinite values, expected finite ones; weights are as before the step: lower "
            "lr, or see whether the rule's own weights are finite"
        )

    def first_bad(values: Mapping[str, Tensor]) -> str | None:
        return next((name for name, value in values.items() if not bool(value.isfinite().all())), None)

    if (name := first_bad(weights)) is not None:
        return (
            f"weights: got NaN or infinite values in the weight {name!r}, expected finite ones; no step can "
            "be taken from there: load weights from before"
        )
    name = first_bad(gradients)
    where = "their squares, or those of the weights" if name is None else f"the gradient of {name!r}"
    return (
        f"gradients: got NaN or infinite values in {where}, expected finite ones; weights and state are as "
        "before the step: clip the gradients, or let nonfinite='skip' leave such steps out"
    )


def read_rule(rule: UNFRule | str | os.PathLike[str]) -> UNFRule:
    """The rule, loaded if need be; a ``ValueError`` if it is neither a rule nor the place of one."""
    if isinstance(rule, UNFRule):
        return rule
    if not isinstance(rule, (str, os.PathLike)):
        raise ValueError(f"rule: got {type(rule).__name__}, expected a UNFRule, or a name or folder of one")
    module = load_release(rule, "rule").module
    assert isinstance(module, UNFRule)
    return module


def spec_of(
    model: nn.Module,
    example_input: Tensor | tuple[Any, ...] | None,
    spec: SymmetrySpec | None,
    *,
    strict: bool,
) -> SymmetrySpec:
    """The spec, or what is extracted from the model; without ``strict``, by shape where that fails."""
    if spec is not None and not isinstance(spec, SymmetrySpec):
        raise ValueError(f"spec: got {type(spec).__name__}, expected a SymmetrySpec, from extract()")
    if (spec is None) == (example_input is None):
        got = "none" if spec is None else "both"
        raise ValueError(
            f"example_input, spec: got {got}, expected one: example_input=x, such as a batch of inputs, "
            "to find the model's symmetry, or spec=extract(model, x)"
        )
    if isinstance(example_input, int | float):
        raise ValueError(
            f"example_input: got {example_input!r}, expected what the model's forward takes, such as a batch "
            "of inputs; for a learning rate pass lr="
        )
    if spec is not None:
        return spec
    if any(not p.is_floating_point() for p in model.parameters()):
        model = copy.deepcopy(model)
        for module in model.modules():  # to extract, frozen integers are constants
            for name, p in list(module.named_parameters(recurse=False)):
                if not p.is_floating_point():
                    delattr(module, name)
                    module.register_buffer(name, p.detach())
    try:
        return extract(model, example_input)  # type: ignore[arg-type]
    except ValueError as error:
        if strict:
            raise
        warnings.warn(
            "UNFOptimizer: the model could not be traced, so every tensor is read by itself, and its shape "
            f"decides between Muon and Adam; strict=True makes this an error. {error}",
            RuntimeWarning,
            stacklevel=3,
        )
        return spec_by_shape(model)


def spec_by_shape(model: nn.Module) -> SymmetrySpec:
    """Every axis of every tensor, kernel positions apart, as units that no other tensor has.

    What a tracer would call inputs and outputs is guessed: the rows of embeddings and of the last matrix.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    params = [(name, p) for name, p in model.named_parameters() if p.is_floating_point() and p.numel()]
    last = next((name for name, p in reversed(params) if p.ndim > 1 and id(p) not in embeddings), None)
    groups, blocks = [], []
    for name, p in params:
        axes = []
        for position, size in enumerate(p.shape):
            if position > 1:
                axes.append(Axis(None, 0, size, "kernel"))
                continue
            outside = position == 0 and (name == last or id(p) in embeddings)
            groups.append(NeuronGroup(f"{name}.{position}", size, "none", not outside, name))
            axes.append(Axis(groups[-1].name, 0, size))
        blocks.append(Block(name, tuple(axes)))
    return SymmetrySpec(tuple(groups), tuple(blocks))


def as_groups(groups: Any) -> list[dict[str, Any]]:
    """Parameter groups as a list of dicts, if they are that."""
    listed = list(groups) if isinstance(groups, Iterable) and not isinstance(groups, (str, Mapping)) else []
    odd = [group for group in listed if not isinstance(group, Mapping)]
    if odd or not listed:
        got = f"a {type(odd[0]).__name__} instead of a dict" if odd else type(groups).__name__
        got = f"{odd[0]!r:.40} instead of a dict" if odd and isinstance(odd[0], str) else got
        raise ValueError(
            f"param_groups: got {got}, expected dicts in a list: [{{'params': [names or tensors]}}]"
        )
    return [dict(group) for group in listed]


def members_of(group: Any) -> list[Any]:
    """The names or tensors of a group.

    Raises:
        ValueError: It has none.
        TypeError: They have no order, as torch.optim has it: state dicts number them.
    """
    if not isinstance(group, Mapping) or "params" not in group:
        raise ValueError(
            "param_groups: got a group without 'params', expected names or tensors there: "
            "{'params': [names or tensors]}"
        )
    members = group["params"]
    if isinstance(members, (str, Tensor)):
        return [members]
    if isinstance(members, (set, frozenset)):
        raise TypeError("param_groups: got a set as 'params', expected a list: sets have no order")
    if not isinstance(members, Iterable):
        raise ValueError(f"param_groups: got {members!r} as 'params', expected names or tensors")
    return list(members)
