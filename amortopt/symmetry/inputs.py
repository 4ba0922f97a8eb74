"""What a network is called with and what it returns, in the forms in which users have them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_LEAVES = (str, bytes, int, float, complex, type(None), torch.Size, torch.dtype, torch.device, nn.Module)


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
            module: The network, whose ``forward`` says what a dict is.

        Raises:
            ValueError: There is no tensor in it.
        """
        given = example_input
        if isinstance(given, tuple) and not hasattr(given, "_fields"):
            pair = len(given) == 2 and isinstance(given[0], tuple) and isinstance(given[1], dict)
            inputs = cls(given[0], given[1]) if pair else cls(given, {})
        elif isinstance(given, Mapping) and _takes(module, given):
            inputs = cls((), {str(key): value for key, value in given.items()})
        else:
            inputs = cls((given,), {})
        if not inputs.tensors:
            got = [type(x).__name__ for x in (*inputs.args, *inputs.kwargs.values())]
            raise ValueError(
                f"example_input: got {got}, expected what forward takes, with at least one tensor: a tensor, "
                "a tuple of arguments, a dict of keyword arguments or (args, kwargs)"
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


def _takes(module: nn.Module, given: Mapping[Any, Any]) -> bool:
    """Whether ``forward`` has the keys of a dict as keywords."""
    try:
        inspect.signature(module.forward).bind(**given)
    except TypeError:
        return False
    return True


def _shown(value: Any) -> str:
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

    A cache of keys and values, beside other outputs, is a network's own memory and left out.
    """
    found = list(_tensors(output, is_cache))
    return found or list(_tensors(output))


def is_cache(value: Any) -> bool:
    """Whether an object is a decoder's cache, such as transformers' ``DynamicCache``, by its class' name."""
    return any(cls.__name__.endswith("Cache") for cls in type(value).__mro__)


def apart(module: nn.Module) -> nn.Module:
    """A copy of a network that shares its tensors; what a forward stores in it does not come back."""
    tensors = [
        t
        for m in module.modules()
        for t in (*vars(m).values(), *m._parameters.values(), *m._buffers.values())
    ]
    try:
        return copy.deepcopy(module, {id(t): t for t in tensors if isinstance(t, Tensor)})
    except Exception:
        return module
