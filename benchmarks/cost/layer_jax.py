"""The published form of a UNF layer in compiled JAX, timed for layer.py; needs jax and numpy only.

    python layer_jax.py CASE.npz RESULT.npz    # started by layer.py

A layer of Zhou et al. 2024 (arXiv 2402.05232) sums, over all pairs of tensors and all terms of a pair, the
term times that term's own matrix [C_in, C_out]; a bias is added per output. One network's pass is written
plainly, mapped over the batch with ``jax.vmap`` and compiled with ``jax.jit``, forward and backward together.
A term that does not depend on an output axis keeps size 1 there and is broadcast by the addition, after its
matmul.

Reads the case, writes outputs and gradients once, then answers every line on standard input with the seconds,
by the clock and of the processor, of as many passes as the line says, until the input ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
if hasattr(os, "sched_setaffinity"):  # every pool of XLA's has one thread then
    os.sched_setaffinity(0, {int(os.environ.get("UNF_CORE", min(os.sched_getaffinity(0))))})

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import numpy as np

Spec = tuple[int, ...]


def groupings(spec: Spec) -> Iterator[tuple[int, ...]]:
    """All partitions of axes into parts of one group each, as the part of every axis, in order."""

    def extend(parts: tuple[int, ...], group_of: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        axis = len(parts)
        if axis == len(spec):
            yield parts
            return
        for part, group in enumerate(group_of):
            if group == spec[axis]:
                yield from extend((*parts, part), group_of)
        yield from extend((*parts, len(group_of)), (*group_of, spec[axis]))

    yield from extend((), ())


def term(x: Any, parts: tuple[int, ...], out_shape: tuple[int, ...]) -> Any:
    """One term: x [*in_shape, C] -> what broadcasts to [*out_shape, C].

    Args:
        x: The input.
        parts: Part of every output axis, then of every input axis.
        out_shape: Sizes of the output's axes.
    """
    rank = len(out_shape)
    out, into = parts[:rank], parts[rank:]
    kept = sorted({part for part in into if part in out})
    distinct = list(dict.fromkeys(into))
    # Diagonals of the input, then means over the parts that no output axis has.
    for part in distinct:
        axes = [axis for axis, p in enumerate(into) if p == part]
        while len(axes) > 1:
            x = jnp.moveaxis(jnp.diagonal(x, axis1=axes[-2], axis2=axes[-1]), -1, axes[-2])
            into = (*into[: axes[-1]], *into[axes[-1] + 1 :])
            axes.pop()
    lost = tuple(axis for axis, part in enumerate(into) if part not in kept)
    x = jnp.mean(x, axis=lost) if lost else x
    into = tuple(part for part in into if part in kept)
    if len(set(out)) == rank:
        order = [into.index(part) for part in out if part in into]
        x = jnp.transpose(x, (*order, len(into)))
        return jnp.expand_dims(x, tuple(axis for axis, part in enumerate(out) if part not in into))
    # Onto a diagonal: written into zeros where the output axes of a part agree.
    first = [out.index(part) for part in dict.fromkeys(out)]
    wide = list(dict.fromkeys(out))
    x = jnp.transpose(x, (*(into.index(part) for part in wide if part in into), len(into)))
    x = jnp.expand_dims(x, tuple(axis for axis, part in enumerate(wide) if part not in into))
    sizes = [out_shape[axis] for axis in first]
    x = jnp.broadcast_to(x, (*sizes, x.shape[-1]))
    grid = jnp.meshgrid(*(jnp.arange(size) for size in sizes), indexing="ij")
    index = tuple(grid[wide.index(part)] for part in out)
    return jnp.zeros((*out_shape, x.shape[-1]), x.dtype).at[index].set(x, unique_indices=True)


def layer(
    thetas: list[Any], biases: list[Any], xs: list[Any], *, specs: list[Spec], shapes: list[Spec]
) -> list[Any]:
    """One layer, one network: per tensor xs [*shape, C_in], thetas [terms, C_in, C_out], biases [C_out]."""
    outputs = []
    for spec, shape, theta, bias in zip(specs, shapes, thetas, biases, strict=True):
        y, number = bias, 0
        for x, into in zip(xs, specs, strict=True):
            for parts in groupings((*spec, *into)):
                y = y + term(x, parts, shape) @ theta[number]
                number += 1
        assert number == len(theta)
        outputs.append(jnp.broadcast_to(y, (*shape, theta.shape[-1])))
    return outputs


def main() -> None:
    """Serve one case."""
    source, target = sys.argv[1:]
    case = np.load(source)
    about = json.loads(str(case["about"]))
    specs = [tuple(spec) for spec in about["specs"]]
    shapes = [tuple(shape) for shape in about["shapes"]]

    def tensors(name: str) -> list[Any]:
        return [jnp.asarray(case[f"{name}{i}"]) for i in range(len(specs))]

    thetas, biases, xs, cotangents = (tensors(name) for name in ("theta", "bias", "x", "cotangent"))

    @jax.jit
    def both(thetas: list[Any], biases: list[Any], xs: list[Any], cotangents: list[Any]) -> Any:
        def batched(thetas: list[Any], biases: list[Any], xs: list[Any]) -> list[Any]:
            return jax.vmap(lambda one: layer(thetas, biases, one, specs=specs, shapes=shapes))(xs)

        outputs, pull = jax.vjp(batched, thetas, biases, xs)
        return outputs, pull(cotangents)

    started = time.perf_counter()
    outputs, (d_thetas, d_biases, d_xs) = jax.block_until_ready(both(thetas, biases, xs, cotangents))
    compiled = time.perf_counter() - started
    named = {"y": outputs, "d_theta": d_thetas, "d_bias": d_biases, "d_x": d_xs}
    arrays: dict[str, Any] = {
        f"{n}{i}": np.asarray(v) for n, many in named.items() for i, v in enumerate(many)
    }
    np.savez(target, **arrays)
    print(json.dumps({"compile_s": compiled, "version": jax.__version__}), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(both(thetas, biases, xs, cotangents))
            seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
