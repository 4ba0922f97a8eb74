"""Arguments and outputs of a network, in any of the containers that users pass and return."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_LEAVES = (str, bytes, int, float, complex, type(None), torch.Size, torch.dtype, torch.device, nn.Module)
_LEAVES += (torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True)
class Inputs:
    """One call of a network: ``module(*args, **kwargs)``.

    Tensors may be anywhere inside: in lists, tuples, dicts, dataclasses and the attributes of other objects.

    Attributes:
        args: Positional arguments.
        kwargs: Arguments by keyword.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, example_input: Any, module: nn.Module) -> Inputs:
        """Read an ``example_input``.

        Args:
            example_input: A tensor; a tuple of arguments; a dict of keyword arguments; ``(args, kwargs)``,
                a tuple and a dict. Anything else, and a dict whose keys ``forward`` does not have, is the
                only argument.
            module: The network; a dict whose keys its ``forward`` accepts is taken as keyword arguments.

        Raises:
            ValueError: There is no tensor in it, or one has no rows or is NaN.
        """
        inputs = cls((example_input,), {})
        if isinstance(example_input, tuple) and not hasattr(example_input, "_fields"):
            inputs = cls(example_input, {})
            if len(example_input) == 2 and all(map(isinstance, example_input, (tuple, dict))):
                inputs = cls(*example_input)
        elif isinstance(example_input, Mapping):
            # Keyword arguments, if forward has them; otherwise its only argument.
            with contextlib.suppress(TypeError):
                inspect.signature(module.forward).bind(**example_input)
                inputs = cls((), {str(key): value for key, value in example_input.items()})
        if not inputs.tensors:
            got = [type(x).__name__ for x in (*inputs.args, *inputs.kwargs.values())]
            raise ValueError(
                f"example_input: got {got}, expected what forward takes, with at least one tensor: a tensor, "
                "a tuple of arguments, a dict of keyword arguments or (args, kwargs)"
            )
        for tensor in inputs.tensors:
            # Integers may be empty: a graph without edges, a mask of nothing.
            if tensor.ndim and (len(tensor) == 0 or (tensor.is_floating_point() and tensor.numel() == 0)):
                raise ValueError(
                    f"example_input: got a tensor of shape {list(tensor.shape)}, expected at least one "
                    "entry along every axis; pass a row of your data"
                )
            # Tensors without values, such as those of tracers, have a class of their own or are meta.
            plain = type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta
            if plain and tensor.is_floating_point() and bool(tensor.isnan().any()):
                raise ValueError(
                    f"example_input: got NaN in a tensor of shape {list(tensor.shape)}, expected what "
                    "forward takes; pass zeros or a row of your data"
                )
        return inputs

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        return list(_tensors((self.args, self.kwargs)))

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """The same call with other tensors."""
        args, kwargs = mapped((self.args, self.kwargs), function)
        return Inputs(args, kwargs)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Inputs:
        """The same call with these tensors in place of its own, in order."""
        rest = iter(tensors)
        return self.map(lambda _: next(rest))

    def __str__(self) -> str:
        shown = [_shown(x) for x in self.args] + [f"{key}={_shown(x)}" for key, x in self.kwargs.items()]
        return ", ".join(shown)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_shown(part)}" for key, part in value.items()) + "}"
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A structure with other tensors; objects without tensors are passed on as they are."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, _LEAVES) or callable(value) or next(_tensors(value), None) is None:
        return value
    if isinstance(value, tuple):
        parts = [mapped(part, function) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, list):
        return type(value)(mapped(part, function) for part in value)
    other = copy.copy(value)
    if isinstance(value, dict):
        for key, part in value.items():
            other[key] = mapped(part, function)
        return other
    for key, part in vars(value).items():
        object.__setattr__(other, key, mapped(part, function))
    return other


def _tensors(
    value: Any, skip: Callable[[Any], bool] = lambda _: False, above: tuple[int, ...] = ()
) -> Iterator[Tensor]:
    """The tensors in a structure, in the order of [mapped][amortopt.symmetry.inputs.mapped]."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, _LEAVES) or callable(value) or id(value) in above or skip(value):
        return
    else:
        if isinstance(value, list | tuple):
            parts: Any = value
        elif isinstance(value, Mapping):
            parts = list(value.values())
        elif dataclasses.is_dataclass(value):
            parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
        else:
            parts = list(getattr(value, "__dict__", {}).values())
        for part in parts:
            yield from _tensors(part, skip, (*above, id(value)))


def outputs_of(output: Any) -> list[Tensor]:
    """The tensors in what a network returned, in containers, dataclasses and other objects of any depth.

    A cache of keys and values, beside other outputs, is left out.
    """
    return list(_tensors(output, is_cache)) or list(_tensors(output))


def is_cache(value: Any) -> bool:
    """Whether an object is a decoder's cache, such as transformers' ``DynamicCache``, by its class' name."""
    return any(cls.__name__.endswith("Cache") for cls in type(value).__mro__)


def apart(module: nn.Module) -> nn.Module:
    """A copy of a network that shares its tensors, so that forward may store attributes without effect."""
    tensors = [
        t
        for m in module.modules()
        for t in (*vars(m).values(), *m._parameters.values(), *m._buffers.values())
    ]
    try:
        return copy.deepcopy(module, {id(t): t for t in tensors if isinstance(t, Tensor)})
    except Exception:
        return module


def first_line(error: Exception) -> str:
    """What an error says, in one line; a missing key, whose text is the key alone, by its name."""
    if isinstance(error, KeyError) and error.args:
        return f"it asks for the key {error.args[0]!r}, which is not there"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__
