"""What a rule receives and returns, and the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from amortopt.symmetry.solve.dims import Dims
from amortopt.symmetry.solve.labels import Labels


class NoRule(Exception):
    """Raised by a rule for a call that it does not cover; the message says why."""


class RuleError(RuntimeError):
    """A bug in a rule: it raised something else than NoRule. Names the operation and its module path."""


@dataclass(frozen=True)
class Value:
    """A tensor in the graph.

    Attributes:
        dims: Units and scales along each dimension.
        shape: Size of each dimension.
        param: Qualified name if it is a parameter, possibly transposed.
        buffer: Qualified name if it is a buffer.
        dtype: Its type; indexing treats masks and integers differently.
        still: Whether it is a running statistic that its norm uses, unchanged, in training mode too.
        zero: Whether it is known to be zero, and one number.
    """

    dims: Dims
    shape: tuple[int, ...]
    param: str | None = None
    buffer: str | None = None
    dtype: torch.dtype | None = None
    still: bool = False
    zero: bool = False

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


@dataclass(frozen=True)
class Call:
    """One operator call.

    Attributes:
        op: Operator without overload, "aten.conv2d".
        args: Argument name -> Value for a tensor, else the Python value; in the order of the operator's
            schema.
        shape: Shape of the output; of the first one if there are several.
        path: Module path, for messages.
        shapes: Shapes of all outputs; None for what is not a tensor.
        training: Whether the network was traced in training mode.
        integer: Whether the output holds integers or truth values.
    """

    op: str
    args: dict[str, Any]
    shape: tuple[int, ...]
    path: str
    shapes: tuple[tuple[int, ...] | None, ...] = ()
    training: bool = False
    integer: bool = False

    @property
    def name(self) -> str:
        """Operator without namespace and without the underscore of an in-place form."""
        return canonical(self.op).split(".")[-1]

    def setting(self, key: str) -> Any:
        """Any argument. Raises NoRule where the called overload has none of this name."""
        if key not in self.args:
            raise NoRule(f"it has no argument {key!r}")
        return self.args[key]

    def value(self, key: str) -> Value:
        """A tensor argument."""
        value = self.args.get(key)
        if not isinstance(value, Value):
            raise NoRule(f"its argument {key!r} is not one tensor")
        return value

    def axis(self, key: str, ndim: int) -> int:
        """An argument that names an axis of a tensor with ``ndim`` dimensions, counted from the front."""
        axis = self.setting(key)
        if not isinstance(axis, int) or not ndim:
            raise NoRule(f"its argument {key!r} is no dimension of a tensor with {ndim}")
        return axis % ndim

    def optional(self, key: str) -> Value | None:
        """A tensor argument that may be left out."""
        return None if self.args.get(key) is None else self.value(key)

    def __str__(self) -> str:
        return f"{self.op} at {self.path!r}" if self.path else self.op


@dataclass(frozen=True)
class Result:
    """Labels of an operation's output, and how the operation is recorded.

    Attributes:
        dims: Labels of the output.
        kind: Canonical name of the operation, "" for one that computes nothing (dropout in eval mode).
        config: Settings by which two calls of that kind differ, apart from parameters.
        param: Qualified name if the output is still that parameter.
        parts: Labels of every output of an operation with several; None for an output without labels.
        zero: Whether the output is one number, which is zero.
    """

    dims: Dims
    kind: str = ""
    config: tuple[tuple[str, str], ...] = ()
    param: str | None = None
    parts: tuple[Dims | None, ...] | None = None
    zero: bool = False


Rule: TypeAlias = Callable[[Labels, Call], Result]
_RULES: dict[str, Rule] = {}

_ALIASES = {
    **{"multiply": "mul", "subtract": "sub", "divide": "div", "true_divide": "div", "absolute": "abs"},
    **{"negative": "neg", "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le"},
    **{"not_equal": "ne", "arctan": "atan", "arcsin": "asin", "arccos": "acos", "arctanh": "atanh"},
    **{"arcsinh": "asinh", "arccosh": "acosh", "arctan2": "atan2", "clip": "clamp", "fix": "trunc"},
    **{"concat": "cat", "concatenate": "cat", "row_stack": "vstack", "moveaxis": "movedim", "ger": "outer"},
    **{"special_expit": "sigmoid", "special_gammaln": "lgamma", "special_psi": "digamma"},
    **{"linalg_matmul": "matmul", "unsafe_split_with_sizes": "split_with_sizes", "_conj": "conj"},
    **{"_unsafe_index": "index", "_unsafe_index_put": "index_put"},
    **{"_index_put_impl": "index_put", "conj_physical": "conj", "swapdims": "transpose"},
}
"""Operators under another name, by the name that rules are registered under."""


def canonical(op: str) -> str:
    """The name that rules know an operator by, in-place forms and aliases too: "aten.add_" -> "aten.add"."""
    space, _, name = op.rpartition(".")
    name = name if name.endswith("__") else name.removesuffix("_")
    name = _ALIASES.get(name, name)
    plain = name.removeprefix("special_")
    if f"{space}.{name}" not in _RULES and f"{space}.{plain}" in _RULES:
        name = plain
    return f"{space}.{name}"


def rule(*ops: str, space: str = "aten") -> Callable[[Rule], Rule]:
    """Register a function for operators, without namespace and overload; in-place forms are included."""

    def register(function: Rule) -> Rule:
        for op in ops:
            name = f"{space}.{op}"
            assert name not in _RULES, f"two rules for {name}"
            _RULES[name] = function
        return function

    return register


def rule_for(op: str) -> Rule | None:
    """The rule for an operator such as "aten.conv2d"; None if there is none."""
    return _RULES.get(canonical(op))


def settings(call: Call, *keys: str) -> tuple[tuple[str, str], ...]:
    """Some arguments of a call as text; absent ones are "None"."""
    return tuple((key, str(call.args.get(key))) for key in keys)
