"""Assertions about symmetry, for this package's tests and for users' own networks and metanets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.symmetry import SymmetrySpec, act, extract, inverse, sample
from amortopt.symmetry.proof.comparison import Comparison
from amortopt.symmetry.proof.running import Runner, relative

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}


def assert_function_preserved(
    module: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    spec: SymmetrySpec | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    low: float = 1e-1,
    high: float = 1e1,
    dtype: torch.dtype = torch.float64,
    rtol: float | None = None,
) -> None:
    """Check that a network computes the same after random elements of its symmetry moved its parameters.

    Buffers of the spec, such as a norm's running statistics, move with them.

    Args:
        module: The network; run in eval mode at ``dtype``, and left as it was.
        example_input: What its forward takes; the first axis is the batch.
        spec: The claimed symmetry; extracted from the module if not given.
        seeds: One random element for each.
        low: Smallest magnitude of a scale.
        high: Largest magnitude of a scale.
        dtype: Type to compute in.
        rtol: Largest allowed norm of the difference relative to the norm of the output; by default what
            ``dtype`` can keep (1e-9 in float64).

    Raises:
        AssertionError: The function changed; the message has the error, the seed and the spec.
    """
    spec = extract(module, example_input) if spec is None else spec
    rtol = _TOLERANCES[dtype] if rtol is None else rtol
    comparison = Comparison(spec, Runner(module, example_input, dtype=dtype), ("eval",))
    if not comparison.shows:
        raise AssertionError(f"nothing was compared: {'; '.join(comparison.notes)}")
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        device = comparison.device
        comparison.try_element(
            sample(spec, generator=generator, low=low, high=high, dtype=dtype, device=device)
        )
        error = comparison.errors["eval"]
        if not error <= rtol:
            raise AssertionError(
                f"the function changed: relative difference {error:.3g}, allowed {rtol:.3g} "
                f"(seed {seed}, scales {low:g} to {high:g}, {dtype}); the spec claims too much:\n{spec!r}"
            )


def assert_equivariant(
    fn: Callable[..., Params],
    spec: SymmetrySpec,
    params: Params,
    *,
    grads: Params | None = None,
    batched: bool = False,
    seeds: Sequence[int] = (0, 1, 2),
    low: float = 1e-1,
    high: float = 1e1,
    rtol: float | None = None,
) -> None:
    """Check that ``fn(act(g, params)) == act(g, fn(params))`` for random elements g.

    The result is moved back by the inverse of g before it is compared, so that large scales hide no error.

    Args:
        fn: From params to params of the same names and shapes, such as a metanet; called with two arguments
            if ``grads`` is given.
        spec: Symmetry of the base network.
        params: Qualified name -> tensor.
        grads: Gradients, which move with the opposite exponents; None if ``fn`` takes none.
        batched: Whether tensors have a leading network axis; then every network is moved by its own element.
        seeds: One random element (per network) for each.
        low: Smallest magnitude of a scale.
        high: Largest magnitude of a scale.
        rtol: Largest allowed norm of the difference relative to the norm of the result, for every parameter;
            by default what the dtype can keep (1e-9 in float64).

    Raises:
        AssertionError: Not equivariant; the message has the worst parameter, its error and the seed.
    """
    first = next(iter(params.values()))
    rtol = _TOLERANCES[first.dtype] if rtol is None else rtol
    batch = first.shape[0] if batched else None
    with torch.no_grad():
        before = fn(params) if grads is None else fn(params, grads)
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            g = sample(
                spec,
                generator=generator,
                low=low,
                high=high,
                batch=batch,
                dtype=first.dtype,
                device=first.device,
            )
            arguments = [act(spec, g, params, batched=batched)]
            if grads is not None:
                arguments.append(act(spec, g, grads, batched=batched, dual=True))
            after = act(spec, inverse(g), fn(*arguments), batched=batched)
            errors = {name: relative(after[name], before[name]) for name in before}
            worst = max(
                errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf")
            )
            if not errors[worst] <= rtol:
                raise AssertionError(
                    f"not equivariant: {worst!r} has relative difference {errors[worst]:.3g}, allowed "
                    f"{rtol:.3g} (seed {seed}, scales {low:g} to {high:g}, {first.dtype})"
                )
