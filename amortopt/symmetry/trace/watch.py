"""What decides operations beside numbers: the text of tensors, and errors that forward catches."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable
from functools import cache
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

TEXTS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.zeros_like,
    lambda x: torch.full_like(x, float("nan")) if x.is_floating_point() else torch.ones_like(x),
    lambda x: -3 * x.detach() - 1 if x.is_floating_point() else torch.zeros_like(x),
)
"""Other values of a tensor, whose text a network is traced with."""
AT_MOST = 8
"""Caught errors, and truth values, that are tried both ways; each costs a trace."""


class Watch(TorchFunctionMode):
    """Counts texts of tensors, and calls that fail for some values inside of a ``try`` of the network.

    Args:
        text: A tensor to write instead of the one that is asked for its text; None for that one.
        failing: Index of the call that is to fail; None for none.

    Attributes:
        texts: Texts so far.
        errors: Errors of torch in forward so far; if it goes on, it catches them. Tracing may raise others.
        tried: Names of calls so far that fail for some values, and whose errors the network may catch.
    """

    def __init__(self, text: Callable[[Tensor], Tensor] | None = None, failing: int | None = None) -> None:
        super().__init__()
        self.text, self.failing = text, failing
        self.texts, self.tried, self.errors = 0, list[str](), 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.__repr__, Tensor.__format__) and called_by_network(sys._getframe(1)):
            self.texts += 1
            if self.text is not None:
                args = (self.text(args[0]), *args[1:])
        name = str(getattr(func, "__name__", "")).removeprefix("linalg_")
        name = name if name.endswith("__") else name.removesuffix("_")
        if name in _FAILS and _indexes(name, args) and _caught(sys._getframe(1)):
            self.tried.append(name)
            if self.failing == len(self.tried) - 1:
                raise _FAILS[name](f"{name}: as it would for other values")
        try:
            return func(*args, **(kwargs or {}))
        except Exception:
            self.errors += bool(_frames(sys._getframe(1)))
            raise


_LINEAR_ALGEBRA = (
    *("cholesky", "inv", "inverse", "solve", "lstsq", "eig", "eigh", "eigvals", "eigvalsh", "svd", "svdvals"),
    *("pinv", "lu_factor", "ldl_factor", "tensorinv", "tensorsolve"),
)
_BY_INDEX = (
    *("embedding", "embedding_bag", "__getitem__", "__setitem__", "take", "index_select", "gather"),
    *("scatter", "scatter_add", "take_along_dim", "cross_entropy", "nll_loss"),
)
_OF_A_RANGE = ("multinomial", "bernoulli", "binary_cross_entropy", "one_hot", "bincount", "_assert")
_FAILS: dict[str, type[Exception]] = {
    **{name: torch.linalg.LinAlgError for name in _LINEAR_ALGEBRA},  # pyright: ignore[reportPrivateImportUsage]
    **{name: IndexError for name in _BY_INDEX},
    **{name: RuntimeError for name in _OF_A_RANGE},
}
"""Functions of torch that fail for some values of their arguments -> what they raise."""


def _indexes(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an item is asked for by a tensor of indices, which may lie outside."""
    if name not in ("__getitem__", "__setitem__"):
        return True
    by = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(x, Tensor) and x.dtype != torch.bool for x in by)


def _frames(frame: FrameType | None) -> list[FrameType]:
    """The frames of the network, from the innermost to its forward; none outside of it."""
    found: list[FrameType] = []
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name == "amortopt.symmetry.trace.program":
            return found  # the forward of FlatModule
        if name.split(".")[0] != "torch":
            found.append(frame)
        frame = frame.f_back
    return []


def called_by_network(frame: FrameType) -> bool:
    """Whether the network calls what this frame is of, not what traces it."""
    between = ("__torch_function__", "handle_torch_function", "__repr__", "__format__")
    while frame.f_code.co_name in between and frame.f_back is not None:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")).split(".")[0] != "torch" and bool(_frames(frame))


def _caught(frame: FrameType) -> bool:
    """Whether the network goes on after an error at its present line."""
    return any(
        first <= frame.f_lineno <= last for frame in _frames(frame) for first, last in _guarded(frame.f_code)
    )


@cache
def _guarded(code: CodeType) -> tuple[tuple[int, int], ...]:
    """First and last lines of ``try`` blocks with a handler that does not raise, and of ``suppress``."""
    try:
        lines, start = inspect.getsourcelines(code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError, TypeError):
        return ()
    ranges: list[tuple[int, int]] = []
    for node in ast.walk(tree):
        goes_on = isinstance(node, ast.Try) and any(
            not isinstance(handler.body[-1], ast.Raise) for handler in node.handlers
        )
        suppresses = isinstance(node, ast.With) and any(
            isinstance(item.context_expr, ast.Call) and "suppress" in ast.unparse(item.context_expr.func)
            for item in node.items
        )
        if isinstance(node, ast.Try | ast.With) and (goes_on or suppresses):
            shift = max(start, 1) - 1
            ranges.append((node.body[0].lineno + shift, (node.body[-1].end_lineno or 0) + shift))
    return tuple(ranges)
