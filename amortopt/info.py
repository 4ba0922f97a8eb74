"""The command `amortopt info`: the symmetry of a module, printed and proved."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amortopt.symmetry import UnknownOperationWarning, extract
from amortopt.testing import assert_function_preserved

_SEEDS = (0, 1, 2, 3, 4)


def info(module: str, input: str | None = None, strict: bool = False) -> None:
    """Print what may be permuted and rescaled in a network, and prove it by running it.

    Args:
        module: ``package.module:name``, such as ``torchvision.models:resnet18``: a network, or what makes one
            when called without arguments. It is imported, as by ``import package.module``; modules in the
            current folder are found too.
        input: Shape of an example input with its batch axis, such as ``1,3,64,64``; several inputs are
            separated by semicolons.
        strict: Whether an operation that no rule covers is an error, instead of a note.

    Raises:
        ValueError: The module or the input is not what it should be, or the symmetry did not hold.
    """
    inputs = _example_inputs(input)
    network = _network(module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnknownOperationWarning)
        spec = extract(network, inputs, strict=strict)
    print(spec)
    for message in dict.fromkeys(str(w.message) for w in caught if w.category is UnknownOperationWarning):
        print(f"\nnote: {message}")
    hidden = [group for group in spec.groups if not group.trivial]
    try:
        assert_function_preserved(network, inputs, spec, seeds=_SEEDS)
    except AssertionError as error:
        raise ValueError(f"the symmetry does not hold, which is a fault of amortopt: {error}") from error
    print(
        f"\nproof: in float64 and eval mode the outputs stay the same, to 1e-9 of their norm, under "
        f"{len(_SEEDS)} random elements (scales of magnitude 0.1 to 10) that move {len(hidden)} of "
        f"{len(spec.groups)} groups, {sum(group.size for group in hidden)} units"
    )


def _network(name: str) -> nn.Module:
    path, colon, attribute = name.partition(":")
    parts = [*path.split("."), *attribute.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ValueError(
            f"module: got {name!r}, expected package.module:name, such as torchvision.models:resnet18"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(path)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"module: got {name!r}, but {error}; check the name and what is installed"
        ) from error
    if isinstance(found, nn.Module):
        return found.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            network = found()
        except TypeError as error:
            raise ValueError(
                f"module: {name} cannot be called without arguments ({error}); write a function that makes "
                "the network"
            ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"module: {name} makes {type(network).__name__}, expected an nn.Module")
    return network.eval()


def _example_inputs(text: str | None) -> tuple[Tensor, ...]:
    if not text:
        raise ValueError(
            "input: got nothing, expected a shape with the batch axis, such as --input 1,3,64,64"
        )
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(_shape(part), generator=generator) for part in text.split(";"))


def _shape(text: str) -> Sequence[int]:
    sizes = [size.strip() for size in text.split(",")]
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ValueError(
            f"input: got {text!r}, expected positive sizes separated by commas, such as 1,3,64,64"
        )
    return [int(size) for size in sizes]
