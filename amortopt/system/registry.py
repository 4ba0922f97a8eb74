"""Classes of one kind by name, as recipes give them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Generic, TypeVar

Made = TypeVar("Made")
T = TypeVar("T")
C = TypeVar("C")


class Registry(Generic[Made]):
    """Makes objects of one kind, such as problems, by the name and the arguments that a recipe gives.

    Args:
        kind: What is registered, for messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._makers: dict[str, Callable[..., Made]] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Decorator of a class, or of a function that makes an object; a class gets the name as ``name``.

        Raises:
            ValueError: If the name is taken.
        """

        def add(cls: C) -> C:
            maker: Any = cls
            if name in self._makers:
                raise ValueError(
                    f"name: {self.kind} {name!r} is already {self._makers[name].__qualname__}; choose "
                    "another name"
                )
            maker.name = name
            self._makers[name] = maker
            return cls

        return add

    def names(self, kind: type | None = None) -> list[str]:
        """Registered names, sorted; with ``kind`` only those of its subclasses."""
        makers = self._makers.items()
        return sorted(n for n, m in makers if kind is None or (isinstance(m, type) and issubclass(m, kind)))

    def make(self, name: str, *args: Any, **kwargs: Any) -> Made:
        """Call what is registered as ``name``.

        Args:
            name: One of ``names()``.
            *args: Its first arguments, which recipes do not name.
            **kwargs: Its other arguments.

        Raises:
            ValueError: If nothing is registered by that name, it has no such argument, or needs one more.
        """
        return construct(self._maker(name), f"{self.kind} {name!r}", kwargs, *args)

    def has_argument(self, name: str, argument: str) -> bool:
        """Whether what is registered as ``name`` has an argument.

        Raises:
            ValueError: If nothing is registered by that name.
        """
        return argument in inspect.signature(self._maker(name)).parameters

    def _maker(self, name: str) -> Callable[..., Made]:
        if name not in self._makers:
            known = ", ".join(self.names()) or "none"
            raise ValueError(f"name: got unknown {self.kind} {name!r}, expected one of {known}")
        return self._makers[name]


def describe(made: Any) -> dict[str, Any]:
    """``{"name": ..., **fields}`` of a registered dataclass, with lists for tuples, as json has them."""
    return {"name": made.name} | {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(made).items()}


def construct(maker: Callable[..., T], what: str, kwargs: dict[str, Any], *args: Any) -> T:
    """Call ``maker(*args, **kwargs)``; one argument too many or too few is a ``ValueError`` that names it.

    Args:
        maker: A class or function.
        what: What it makes, to begin the message with.
        kwargs: Arguments by name, such as those of a recipe.
        *args: Its first arguments, which recipes do not name.
    """
    known = dict(list(inspect.signature(maker).parameters.items())[len(args) :])
    for key in kwargs:
        if key not in known:
            raise ValueError(f"{key}: {what} has no such argument; it has {', '.join(known) or 'none'}")
    for key, argument in known.items():
        named = argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)
        if named and argument.default is argument.empty and key not in kwargs:
            raise ValueError(f"{key}: {what} needs this argument; it has {', '.join(known)}")
    return maker(*args, **kwargs)
