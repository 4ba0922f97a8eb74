"""A user's networks: what is refused, which parameter is which of the family's, how values are written."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore[reportMissingImports]
from torch.nn.parameter import is_lazy

from amortopt._types import Params
from amortopt.metanets import Metanet, Rounds
from amortopt.symmetry import (
    Block,
    FamilyMismatchError,
    Match,
    SymmetrySpec,
    UnknownOperationWarning,
    extract,
    match,
)
from amortopt.symmetry.blocks import merges
from amortopt.tasks import Family

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_VALUES = (bool, int, str, bytes, complex, type(None), torch.dtype, torch.device, torch.Size)


class OutOfFamilyWarning(UserWarning):
    """A network or its problem is outside of what the checkpoint was made for; nothing is promised there."""


def warn_widths(changes: set[str]) -> None:
    """Warn of groups whose number of units is not the family's, given as texts; for callers one level up."""
    if changes:
        warnings.warn(
            f"other hidden widths than the checkpoint was trained on: {'; '.join(sorted(changes))}; results "
            "are not measured there, so check them, as accept= does in one_shot",
            OutOfFamilyWarning,
            stacklevel=3,
        )


def check_widths(changes: set[str], metanet: Metanet, *, trained: bool, guarded: bool = False) -> None:
    """Raise an error for other hidden widths where nothing good comes out of them.

    Args:
        changes: Groups whose number of units is not the family's, as texts.
        metanet: One that proposes weights of the family's widths alone serves no others.
        trained: Whether the metanet is a checkpoint's, which has seen one width of every layer. What those
            shipped make of networks with 16, 31 or 33 units for 32 is worse than a short training.
        guarded: Whether a result is only taken where it is better.
    """
    if not changes:
        return
    text = f"other hidden widths than the checkpoint's: {'; '.join(sorted(changes))}; "
    if isinstance(metanet, Rounds):
        raise FamilyMismatchError(
            text + "the weights that it proposes fit its own widths alone; use networks of these, or "
            "meta-train with others"
        )
    if trained and not guarded:
        raise FamilyMismatchError(
            text + "results there are mostly worse than what went in; use networks of its widths, or pass "
            "accept= to one_shot, which takes a result only where it is better"
        )


def check_flags(**flags: object) -> None:
    """Raise a ``ValueError`` unless each is True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}: got {value!r}, expected True or False")


def as_list(models: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    """The networks as a list; raises a ``ValueError`` if nothing is in it, or something that is none."""
    if isinstance(models, _CONTAINERS):
        raise ValueError(
            f"models: got {type(models).__name__}, expected a network or a list of them; pass list(models)"
        )
    many = [models] if isinstance(models, nn.Module) else models
    if not isinstance(many, list | tuple):
        raise ValueError(f"models: got {type(models).__name__}, expected an nn.Module or a list of them")
    if not many:
        raise ValueError("models: got an empty list, expected at least one network")
    for i, model in enumerate(many):
        if not isinstance(model, nn.Module) or isinstance(model, _CONTAINERS):
            raise ValueError(f"models[{i}]: got {type(model).__name__}, expected a network (nn.Module)")
    return list(many)


def check_networks(
    models: Sequence[nn.Module], *, inplace: bool, frozen: str, where: Callable[[int], str]
) -> None:
    """Check devices, frozen and shared parameters.

    Args:
        models: The networks.
        inplace: Whether their parameters will be written, so that two networks may not share one.
        frozen: ``"error"`` or ``"keep"``.
        where: Text that names network i in an error, in front of the message.

    Raises:
        ValueError: What is wrong, with the network and the parameter.
    """
    if frozen not in ("error", "keep"):
        raise ValueError(f"frozen: got {frozen!r}, expected 'error' or 'keep'")
    written: list[tuple[str, nn.Parameter]] = []
    for i, model in enumerate(models):
        if lazy := [name for name, p in model.named_parameters() if is_lazy(p)]:
            raise ValueError(
                f"{where(i)}parameter {lazy[0]!r} is lazy and has no shape yet; run the network once on data"
            )
        _check_devices({**dict(model.named_parameters()), **dict(model.named_buffers())}, where(i))
        held = [name for name, p in model.named_parameters() if not p.requires_grad]
        if held and frozen == "error":
            raise ValueError(
                f"{where(i)}frozen parameters (requires_grad=False): {', '.join(held)}; pass frozen='keep' "
                "to leave them as they are, or unfreeze them with requires_grad_(True)"
            )
        named = list(model.named_parameters(remove_duplicate=False))
        _check_memory([(f"parameter {name!r}", p) for name, p in named], where(i))
        written += [(f"models[{i}]'s {name!r}", p) for name, p in named]
    if inplace and len(models) > 1:
        _check_memory(written, "inplace: ")


def _check_devices(tensors: Mapping[str, Tensor], where: str) -> None:
    devices = {name: tensor.device for name, tensor in tensors.items()}
    first = next(iter(devices), "")
    other = next((name for name in devices if devices[name] != devices[first]), None)
    if other is not None:
        raise ValueError(
            f"{where}mixed devices: {first!r} is on {devices[first]} and {other!r} on {devices[other]}; move "
            "all to one, a network with model.to(device)"
        )
    if devices and devices[first].type == "meta":
        raise ValueError(f"{where}{first!r} is on the meta device and has no values; load the weights first")


def _check_memory(named: list[tuple[str, nn.Parameter]], where: str) -> None:
    """Raise if two of the parameters are one, or lie in the same memory."""
    spans = []
    for name, p in named:
        if p.numel() and p.layout == torch.strided:
            strides = [(size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True)]
            spans.append(
                (str(p.device), p.data_ptr(), p.data_ptr() + (sum(strides) + 1) * p.element_size(), name)
            )
            if any(size > 1 and stride == 0 for size, stride in zip(p.shape, p.stride(), strict=True)):
                raise ValueError(f"{where}{name} is an expanded tensor: its values share memory; clone it")
    spans.sort()
    for (device, _, end, name), (other_device, start, _, other) in pairwise(spans):
        if device == other_device and start < end:
            raise ValueError(
                f"{where}{name} and {other} are tied (one tensor, or the same memory), so they cannot get "
                "values of their own; give each its own tensor"
            )


@dataclass(frozen=True)
class Network:
    """A user's network beside the family's names.

    Attributes:
        model: The network.
        match: Which of its parameters is which of the family's.
        params: Its tensors, detached, by the family's names and with its axes.
    """

    model: nn.Module
    match: Match
    params: Params


def read_networks(
    spec: SymmetrySpec,
    models: Sequence[nn.Module],
    example_input: Tensor | tuple[Tensor, ...] | None,
    family: Family | None,
    where: Callable[[int], str],
) -> list[Network]:
    """Trace networks and match each to the family.

    Tracing costs some 25 ms, more than the optimizer itself. So networks with equal fingerprints (see
    [fingerprint][amortopt.optim.networks.fingerprint]) share one trace.

    Args:
        spec: Symmetry that the metanet is for.
        models: The networks; not modified. Those that share a trace get the same object ``match``.
        example_input: What their forward takes, for tracing; by default zeros of the family's input shape.
        family: The family, if it is known.
        where: Text that names network i in an error, in front of the message.

    Raises:
        FamilyMismatchError: A network is outside the family, with the first difference.
        ValueError: A network cannot be traced.
    """
    known: dict[Hashable, Match] = {}
    networks = []
    for i, model in enumerate(models):
        inputs, key = example_input, fingerprint(model)
        if key not in known:
            if inputs is None:
                if family is None:
                    raise ValueError(
                        "example_input: this optimizer knows no family to take one from; pass a tensor "
                        "[N, ...] that the networks' forward takes"
                    )
                first = next(model.parameters(), torch.zeros(()))
                inputs = family.example_input().to(first.device, first.dtype)
            traced = model
            if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
                traced = copy.deepcopy(model)  # into ordinary tensors: torch.export takes no others
            try:
                with warnings.catch_warnings():
                    # What has no rule and matters makes the match fail, with the operation's name.
                    warnings.simplefilter("ignore", UnknownOperationWarning)
                    found = extract(traced, inputs)
                known[key] = match(spec, found)
                _check_buffers(found, where(i))
            except ValueError as error:
                text, kind = f"{where(i)}{error}", type(error)
                if example_input is None and family is not None and "example_input: " in text:
                    shape = ", ".join(["N", *map(str, family.input_shape)])
                    kind = FamilyMismatchError
                    text += (
                        f"; the family's inputs have the shape [{shape}]: pass example_input if this network "
                        "computes the same from another form of them"
                    )
                raise (kind if kind is FamilyMismatchError else ValueError)(text) from error
        tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
        networks.append(Network(model, known[key], known[key].of_family(tensors)))
    return networks


def _check_buffers(spec: SymmetrySpec, where: str) -> None:
    """Raise a ``ValueError`` if a saved buffer belongs to hidden units, which a pass gives another order."""
    moved = [
        block.param
        for block in spec.blocks
        if block.buffer
        and any(
            axis.group is not None
            and (spec.group(axis.group).permutable or spec.group(axis.group).kind != "none")
            for axis in block.axes
        )
    ]
    if moved:
        raise ValueError(
            f"{where}the buffers {', '.join(dict.fromkeys(moved))} hold numbers of each hidden unit, but a "
            "pass proposes parameters alone, whose units would not fit them; fold them into the parameters, "
            "as torch.nn.utils.fusion does with batch norms, or leave this network out"
        )


def fingerprint(value: Any, seen: dict[int, int] | None = None) -> Hashable:
    """All that decides what a network computes, apart from the values of parameters and buffers.

    Two networks with equal fingerprints have the same class (the object, not its name), and equal attributes
    in all submodules, however deep: numbers, text, containers by value; functions, plain tensors and any
    other object only if it is the very same one. What tells networks apart elsewhere, such as a global table
    with the networks as keys, is not seen. Only valid while the network lives and is not modified.

    Args:
        value: Any module, or an attribute of one; not modified.
        seen: ``id`` of every object that was met before -> its number.

    Returns:
        A nested tuple.
    """
    seen = {} if seen is None else seen
    kind: Any = type(value)
    if kind in _VALUES:
        return kind, value
    if kind is float:
        return float, value.hex()
    if id(value) in seen:
        return "again", seen[id(value)]
    seen[id(value)] = len(seen)
    # Instances of a class with slots may keep attributes outside of ``vars``.
    if issubclass(kind, nn.Module) and not any(vars(base).get("__slots__") for base in kind.__mro__):
        attributes: list[Hashable] = []
        for key, item in vars(value).items():
            if key in ("_parameters", "_buffers"):
                pairs = item.items()
                item = tuple((n, t if t is None else (type(t), t.shape, t.dtype, t.device)) for n, t in pairs)
            else:
                item = fingerprint(item, seen)
            attributes.append((key, item))
        return kind, tuple(attributes)
    if kind in (list, tuple):
        return kind, tuple(fingerprint(item, seen) for item in value)
    if kind in (set, frozenset):
        return kind, frozenset(fingerprint(item) for item in value)
    if kind in (dict, OrderedDict):
        return kind, tuple((fingerprint(key, seen), fingerprint(item, seen)) for key, item in value.items())
    return "the very same", id(value)


@dataclass(frozen=True)
class Alignment:
    """How a params dict corresponds to a family.

    Attributes:
        names: The family's parameter name -> the dict's key.
        batched: Whether tensors have a leading network axis.
        width_changes: A line for every hidden group whose number of units differs; empty if none does.
    """

    names: dict[str, str]
    batched: bool
    width_changes: tuple[str, ...]


def align(family: SymmetrySpec, params: Params) -> Alignment:
    """Match params to a family by name, or by order if the names are others.

    Args:
        family: Spec that the metanet is for.
        params: The family's names, or others in the same order, -> tensors; all with a leading network
            axis or none.

    Raises:
        ValueError: Not a dict of floating-point tensors on one device, another number of parameters, shapes
            that are not the family's (hidden widths aside), or network axes that differ.
    """
    if not isinstance(params, Mapping) or not params:
        raise ValueError(f"params: got {type(params).__name__}, expected a dict of name -> tensor, not empty")
    for key, value in params.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"params[{key!r}]: got {got}, expected a floating-point tensor")
    if any(is_functorch_wrapped_tensor(value) for value in params.values()):
        raise ValueError(
            "params: got tensors inside torch.vmap or another transform of torch.func, where no value can be "
            "checked; call one_shot_params once outside of it, with a leading axis for the networks"
        )
    _check_devices(params, "params: ")
    if len(params) != len(family.params):
        raise ValueError(
            f"params: got {len(params)} tensors ({', '.join(params)}), expected {len(family.params)} "
            f"({', '.join(family.params)})"
        )
    same = params.keys() == set(family.params)
    keys = list(family.params) if same else list(params)
    names = dict(zip(family.params, keys, strict=True))
    # Axes of length 1 are free to be there or not, so a stack of one network would pass as one network too.
    axes = {name: len(family.blocks_of(name)[0].axes) for name in names}
    stacked = all(params[key].ndim == axes[name] + 1 and len(params[key]) == 1 for name, key in names.items())
    failures: list[ValueError] = []
    for lead in (1, 0) if stacked else (0, 1):
        try:
            sizes = _group_sizes(family, {name: params[key] for name, key in names.items()}, names, lead)
        except ValueError as error:
            failures.append(error)
            continue
        changes = tuple(
            f"group {group.name!r} ({group.origin}) has {sizes[group.name]} units, the family {group.size}"
            for group in family.groups
            if sizes.get(group.name, group.size) != group.size
        )
        return Alignment(names, bool(lead), changes)
    # A network axis was meant where every tensor has one axis more.
    first = family.params[0]
    batched = params[names[first]].ndim > axes[first]
    raise failures[1 if batched and not stacked else 0]


def _group_sizes(family: SymmetrySpec, params: Params, names: dict[str, str], lead: int) -> dict[str, int]:
    """Units per group as the shapes say them; raises where they contradict each other or the family."""
    if lead:
        lengths = {names[name]: value.shape[0] if value.ndim else 0 for name, value in params.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"params: got network axes {lengths}, expected one length B >= 1 for all")
    # Units that are owned come in runs of the family's length.
    sizes = {g.name: g.size for g in family.groups if not g.permutable or g.within is not None}
    flattened: list[Block] = []
    for block in family.blocks:
        if block.slices or block.buffer:
            continue  # a slice's own sizes do not show in the parameter's shape
        shape = params[block.param].shape[lead:]
        if len(shape) != len(block.axes):
            flattened.append(block)
            continue
        expected = _lengths(family, block, sizes)  # from other tensors, not what this one says of itself
        for group, size in zip(_whole(family, block), shape, strict=True):
            if group is not None:
                sizes.setdefault(group, size)
        if list(shape) != _lengths(family, block, sizes):
            raise _misfit(names[block.param], params[block.param], block, expected, lead)
    for block in flattened:
        shape = list(params[block.param].shape[lead:])
        lengths = _lengths(family, block, sizes)
        if not shape or not merges(lengths, shape):
            raise _misfit(names[block.param], params[block.param], block, lengths, lead)
    return sizes


def _whole(family: SymmetrySpec, block: Block) -> list[str | None]:
    """The group along every axis of a block; None where the length is fixed, as that of one run is."""
    return [
        None if family.owner_axis(block, place) is not None else axis.group
        for place, axis in enumerate(block.axes)
    ]


def _lengths(family: SymmetrySpec, block: Block, sizes: dict[str, int]) -> list[int]:
    groups = zip(block.axes, _whole(family, block), strict=True)
    return [axis.size if group is None else sizes.get(group, axis.size) for axis, group in groups]


def _misfit(key: str, tensor: Tensor, block: Block, lengths: list[int], lead: int) -> ValueError:
    axes = ", ".join(map(str, (["B", *lengths] if lead else lengths)))
    return ValueError(
        f"params[{key!r}]: got shape {list(tensor.shape)}, expected [{axes}] as the family's {block.param!r} "
        f"({', '.join(map(str, block.axes))}); tensors are taken by the family's names, or else in its order"
    )


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """No autograd, and ordinary tensors even where the caller is in inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def copied(model: nn.Module, where: str) -> nn.Module:
    """A deep copy; raises a ``ValueError`` that begins with ``where`` if there can be none."""
    try:
        with plain():
            return copy.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"{where}copy.deepcopy failed on {type(model).__name__} ({type(error).__name__}: {error}); pass "
            "inplace=True without accept, which needs no copy"
        ) from error


def is_better(accept: Callable[[Any], Any], new: nn.Module, old: nn.Module, where: str) -> bool:
    """Whether ``accept`` returns a lower loss for copies of ``new`` than of ``old``; NaN is never lower."""
    losses = []
    for model in (new, old):
        value = accept(copied(model, where))
        try:
            losses.append(float(value.detach() if isinstance(value, Tensor) else value))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{where}accept returned {type(value).__name__}, expected one number, such as a loss"
            ) from error
    return losses[0] < losses[1]


def write(model: nn.Module, new: Params) -> nn.Module:
    """Write new values into a network's trainable parameters; returns the network."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Tensors made in inference mode can be written to only there.
            with torch.inference_mode(parameter.is_inference()), torch.no_grad():
                parameter.copy_(new[name])
    return model
