"""The command `amortopt info`: the symmetry of a module, printed and proved."""

from __future__ import annotations

import inspect
import math
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from amortopt.symmetry import UnknownOperationWarning, extract
from amortopt.system.files import write_whole
from amortopt.system.imports import import_named

_ELEMENTS = 3
_LARGEST = 10**9  # numbers of an input; 4 GB
_FORM = "sizes separated by commas, such as 1,3,64,64, or 1,16:50 for integers below 50"


def info(
    module: str,
    input: str | None = None,
    strict: bool = False,
    probes: int | None = 64,
    rows: int = 40,
    json: Path | None = None,
) -> None:
    """Print what may be permuted and rescaled in a network, and prove it by running it.

    The proof moves the weights by random elements and compares the outputs in eval and in training mode;
    then it tries what the table does not allow, and prints where the table could be larger. The exit status
    is 2 if the proof fails.

    Args:
        module: ``package.module:name``, such as ``torchvision.models:resnet18``: a network, or what makes one
            when called without arguments. It is imported, as by ``import package.module``; modules in the
            current folder can be imported too.
        input: Shape of an example input with its batch axis, such as ``1,3,64,64``; ``1,16:50`` are integers
            below 50, such as tokens. Several inputs are separated by semicolons.
        strict: Whether an operation that no rule covers is an error, instead of a note.
        probes: At most how many things outside the table to try, a forward pass each; null for all.
        rows: How much of a long table to print; 0 for all of it.
        json: A file to write the table to.

    Raises:
        ValueError: The module or the input is not what it should be, or the symmetry did not hold.
    """
    inputs = _example_inputs(input)
    network = _network(module)
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnknownOperationWarning)
        spec = extract(network, inputs, strict=strict)
    seconds = time.perf_counter() - started
    for k, table in enumerate(repr(spec).split("\n\n")):
        heading, *lines = table.split("\n")
        if rows and len(lines) > rows + 1:
            lines[rows:] = [f"... {len(lines) - rows} more (--rows 0 prints all)"]
        print("\n" * (k > 0) + "\n".join([heading, *lines]))
    for message in dict.fromkeys(str(w.message) for w in caught if w.category is UnknownOperationWarning):
        print(f"\nnote: {message}")
    print(f"\nfound in {seconds:.1f} s: {spec.gauge_dimension()}", flush=True)
    proving = time.perf_counter()

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty() and time.perf_counter() - proving > 5:
            end = "\r" if done < total else "\r\033[K"
            print(f"tried {done} of {total} things outside the table", end=end, file=sys.stderr, flush=True)

    proof = spec.verify(network, inputs, elements=_ELEMENTS, probes=probes, progress=show)
    if not proof.errors:
        raise ValueError(f"input: {proof}")
    if not proof.holds:
        raise ValueError(f"the symmetry does not hold, which is a fault of amortopt: {proof}")
    print(f"\nproof: {proof}")
    if json is not None:
        write_whole(json, spec.to_json().encode())
        print(f"\nwritten to {json}")


def _network(name: str) -> nn.Module:
    target = import_named(name, "module")
    if isinstance(target, nn.Module):
        return target.eval()
    if not callable(target):
        raise ValueError(
            f"module: {name} is {type(target).__name__}, expected an nn.Module or what makes one when called"
        )
    try:
        inspect.signature(target).bind()
    except TypeError as error:
        raise ValueError(
            f"module: {name} cannot be called without arguments ({error}); write a function that makes the "
            "network"
        ) from error
    except ValueError:
        pass  # it has no signature that can be read
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            network = target()
        except Exception as error:
            raise ValueError(
                f"module: making {name} failed, in its own code: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"module: {name} makes {type(network).__name__}, expected an nn.Module")
    return network.eval()


def _example_inputs(text: str | None) -> tuple[Tensor, ...]:
    if not text:
        raise ValueError(f"input: got nothing, expected --input with {_FORM}")
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for part in text.split(";"):
        shape, colon, below = part.partition(":")
        sizes = [size.strip() for size in shape.split(",")]
        if not all(n.isdecimal() and int(n) > 0 for n in [*sizes, *([below.strip()] if colon else [])]):
            raise ValueError(f"input: got {part!r}, expected positive {_FORM}")
        lengths = [int(size) for size in sizes]
        if math.prod(lengths) > _LARGEST or (colon and int(below) > 2**63 - 1):
            raise ValueError(
                f"input: got {part!r}, more than {_LARGEST:,} numbers or integers of more than 64 bits; give "
                "the shape of one small batch"
            )
        if colon:
            inputs.append(torch.randint(int(below), lengths, generator=generator))
        else:
            inputs.append(torch.randn(lengths, generator=generator))
    return tuple(inputs)
