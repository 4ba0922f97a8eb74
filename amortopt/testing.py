"""Assertions about symmetry, for this package's tests and for users' own networks and metanets.

Both carry a negative control: where the assertion holds, a deliberately wrong spec has to fail, or nothing
was tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from amortopt._types import Params
from amortopt.symmetry import Axis, Element, SymmetrySpec, act, extract, inverse, sample
from amortopt.symmetry.proof.running import Comparison, Runner, relative, worst

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}


def assert_function_preserved(
    module: nn.Module,
    example_input: Any,
    spec: SymmetrySpec | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    low: float = 1e-1,
    high: float = 1e1,
    dtype: torch.dtype = torch.float64,
    rtol: float | None = None,
    control: bool = True,
    drawn: bool = False,
) -> None:
    """Check that a network computes the same after random elements of its symmetry moved its parameters.

    Buffers of the spec, such as a norm's running statistics, move with them.

    Args:
        module: The network; run in eval mode at ``dtype``, and left as it was.
        example_input: What its forward takes, as for [extract][amortopt.symmetry.extract].
        spec: The claimed symmetry; extracted from the module if not given.
        seeds: One random element for each.
        low: Smallest magnitude of a scale.
        high: Largest magnitude of a scale.
        dtype: Type to compute in.
        rtol: Largest allowed norm of the difference relative to the norm of the output; by default what
            ``dtype`` can keep (1e-9 in float64).
        control: Whether one of the spec's [wrong versions][amortopt.testing.wrong_specs] has to change the
            function.
        drawn: Whether random numbers of eval mode are drawn, from one seed, not replaced by their means.

    Raises:
        AssertionError: The function changed; the message has the error, the seed and the spec. Or none of
            the wrong versions changed it.
    """
    spec = extract(module, example_input) if spec is None else spec
    rtol = _TOLERANCES[dtype] if rtol is None else rtol
    runner = Runner(module, example_input, dtype=dtype)
    runner.drawn = drawn
    comparison = Comparison(spec, runner, ("eval",))
    if not comparison.nonzero:
        raise AssertionError(f"nothing was compared: {'; '.join(comparison.notes)}")
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        g = sample(spec, generator=generator, low=low, high=high, dtype=dtype, device=comparison.device)
        comparison.try_element(g)
        error = comparison.errors["eval"]
        if not error <= rtol:
            raise AssertionError(
                f"the function changed: relative difference {error:.3g}, allowed {rtol:.3g} "
                f"(seed {seed}, scales {low:g} to {high:g}, {dtype}); the spec claims too much:\n{spec!r}"
            )

    def changes(wrong: SymmetrySpec, g: Element) -> bool:
        outputs, _ = comparison.runner.run(act(wrong, g, comparison.weights))
        return not worst(outputs, comparison.before["eval"][0]) <= rtol

    if control and seeds:
        _check_control(spec, g, changes)


def wrong_specs(spec: SymmetrySpec) -> Iterator[SymmetrySpec]:
    """Deliberately wrong versions of a spec: in each, one parameter is not moved along one of its axes.

    A spec that allows nothing has no such version.

    Args:
        spec: A symmetry.

    Yields:
        Specs of the same groups, from the last parameter to the first.
    """
    for place, block in reversed(list(enumerate(spec.blocks))):
        if block.buffer or any(spec.owner_axis(block, k) is not None for k in range(len(block.axes))):
            continue  # an axis along runs needs the axis of their owner
        for k, axis in enumerate(block.axes):
            owners = () if axis.group is None else spec.owners(axis.group)
            scaled = any(spec.group(name).kind != "none" for name, _ in axis.scales)
            if scaled or any(spec.group(name).permutable for name in owners):
                left_out = (*block.axes[:k], Axis(None, 0, axis.size, "left out"), *block.axes[k + 1 :])
                other = replace(block, axes=left_out)
                yield replace(spec, blocks=(*spec.blocks[:place], other, *spec.blocks[place + 1 :]))


def _check_control(
    spec: SymmetrySpec, g: Element, notices: Callable[[SymmetrySpec, Element], bool], tries: int = 20
) -> None:
    units = {
        group.name: torch.arange(group.size, device=g.scales[group.name].device) for group in spec.groups
    }
    if all((g.permutations[n] == units[n]).all() and (g.scales[n] == 1).all() for n in units):
        return  # the identity, as happens with one unit
    wrong = [other for other, _ in zip(wrong_specs(spec), range(tries), strict=False)]
    if wrong and not any(notices(other, g) for other in wrong):
        raise AssertionError(
            f"nothing was tested: {len(wrong)} wrong versions of the spec, in which a parameter is not moved "
            "along an axis, pass too; give weights at which every parameter counts, or control=False"
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
    control: bool = True,
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
        control: Whether moving the result back by one of the spec's
            [wrong versions][amortopt.testing.wrong_specs] has to be noticed.

    Raises:
        AssertionError: Not equivariant; the message has the worst parameter, its error and the seed. Or none
            of the wrong versions was noticed.
    """
    first = next(iter(params.values()))
    dtype, device, batch = first.dtype, first.device, first.shape[0] if batched else None
    rtol = _TOLERANCES[dtype] if rtol is None else rtol
    with torch.no_grad():
        before = fn(params) if grads is None else fn(params, grads)
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            g = sample(spec, generator=generator, low=low, high=high, batch=batch, dtype=dtype, device=device)
            arguments = [act(spec, g, params, batched=batched)]
            if grads is not None:
                arguments.append(act(spec, g, grads, batched=batched, dual=True))
            moved = fn(*arguments)
            after = act(spec, inverse(g), moved, batched=batched)
            errors = {name: relative(after[name], before[name]) for name in before}
            name = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
            if not errors[name] <= rtol:
                raise AssertionError(
                    f"not equivariant: {name!r} has relative difference {errors[name]:.3g}, allowed "
                    f"{rtol:.3g} (seed {seed}, scales {low:g} to {high:g}, {dtype})"
                )

        def notices(wrong: SymmetrySpec, g: Element) -> bool:
            back = act(wrong, inverse(g), moved, batched=batched)
            return any(not relative(back[name], before[name]) <= rtol for name in before)

        if control and seeds:
            _check_control(spec, g, notices)
