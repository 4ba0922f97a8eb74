"""Proof of a symmetry: move the weights, run the network, compare. And what the symmetry leaves out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from amortopt.symmetry.action import sample
from amortopt.symmetry.proof.probes import Larger, search
from amortopt.symmetry.proof.running import MODES, Comparison, Mode, Runner, generic

if TYPE_CHECKING:
    from amortopt.symmetry.spec import SymmetrySpec


@dataclass(frozen=True, repr=False)
class Proof:
    """Result of running a network with moved weights.

    Attributes:
        errors: Mode ("eval", "training") -> the largest relative difference of an output.
        statistics: Largest relative difference of a buffer that training mode updates, after acting on it as
            the spec says; None without such buffers or without training mode.
        rtol: Largest relative difference allowed.
        elements: Random elements tried.
        low: Smallest magnitude of their scales.
        high: Largest magnitude of their scales.
        groups: Number of groups of the spec.
        moved: Number of groups that may be permuted or rescaled.
        units: Number of units in these.
        probes: Elements outside the spec that were tried.
        possible: Elements one step outside the spec, of which ``probes`` were tried.
        larger: Probes that left the function unchanged in every mode that ran: the spec could allow them.
        notes: Checks that were left out, and why.
        seconds: Time taken.
    """

    errors: Mapping[str, float]
    statistics: float | None
    rtol: float
    elements: int
    low: float
    high: float
    groups: int
    moved: int
    units: int
    probes: int = 0
    possible: int = 0
    larger: tuple[Larger, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the function stayed the same in every mode that ran, and one did."""
        errors = [*self.errors.values(), *(() if self.statistics is None else (self.statistics,))]
        return len(self.errors) > 0 and all(error <= self.rtol for error in errors)

    def __repr__(self) -> str:
        errors = [f"{error:.1e} in {mode} mode" for mode, error in self.errors.items()]
        errors += [] if self.statistics is None else [f"{self.statistics:.1e} in running statistics"]
        verdict = "holds" if self.holds else f"DOES NOT HOLD (allowed: {self.rtol:.0e})"
        shown = f"{verdict}: relative difference of the outputs {', '.join(errors)}"
        lines = [
            shown if errors else "SHOWS NOTHING: no output was compared",
            f"{self.elements} random elements in float64, scales of magnitude {self.low:g} to {self.high:g}; "
            f"they move {self.moved} of {self.groups} groups, {self.units} units",
        ]
        if self.probes:
            verdict = (
                "these change nothing, so the spec could allow:" if self.larger else "all change the function"
            )
            lines.append(f"{self.probes} of {self.possible} elements one step outside tried; {verdict}")
            lines += [f"  {larger}" for larger in self.larger]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes), f"{self.seconds:.1f} s"])


def verify(
    spec: SymmetrySpec,
    model: nn.Module,
    example_input: Any,
    *,
    elements: int = 3,
    seed: int = 0,
    probes: int | None = 64,
    probe_seconds: float = 5.0,
    modes: Sequence[Mode] = MODES,
    low: float = 1e-1,
    high: float = 1e1,
    noise: float = 0.5,
    rtol: float = 1e-9,
    progress: Callable[[int, int], None] | None = None,
) -> Proof:
    """Check by running it that a network computes the same under its symmetry, and not under more.

    Random elements move the parameters and the buffers of the spec; the network runs in float64 before and
    after. Random numbers in training mode are replaced by their expectation. Noise is added to the weights
    first, since a network at its initialisation has symmetries that it loses in training. The network is not
    modified.

    Then elements one step outside the spec are tried, for every group that is neither input nor output: a
    permutation where none is allowed, one that ignores the owner, the next larger scale kind. If one changes
    nothing, the spec is valid, but smaller than it could be.

    Args:
        spec: The claimed symmetry.
        model: The network.
        example_input: What its forward takes, as for [extract][amortopt.symmetry.extract]; floating inputs
            that are all zero are replaced by random ones.
        elements: How many random elements.
        seed: Of the elements and of the choice of probes.
        probes: Maximal number of elements outside the spec, spread over the groups; None for all, without
            limit of time. Each costs a forward pass.
        probe_seconds: Time after which no further probe is started.
        modes: Which of "eval" and "training" to run.
        low: Smallest magnitude of a scale.
        high: Largest magnitude of a scale.
        noise: Standard deviation of the noise added to the weights, relative to the root mean square of every
            parameter; 0 for the weights as they are.
        rtol: Largest allowed norm of the difference relative to the norm of the output.
        progress: Called with the numbers of probes done and to do.

    Returns:
        The proof; ``proof.holds`` is False if an output differs by more than ``rtol``.

    Raises:
        ValueError: Parameters or buffers of the spec are not those of the model, the model does not run on
            the input or has no values (meta device), or an option is out of range.

    Examples:
        >>> import torch
        >>> from amortopt.symmetry import extract
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        >>> x = torch.randn(5, 4)
        >>> proof = verify(extract(net, x), net, x)
        >>> proof.holds, proof.moved, proof.larger
        (True, 1, ())
    """
    start = time.perf_counter()
    _check_options(elements=elements, seed=seed, probes=probes)
    _check_options(probe_seconds=probe_seconds, noise=noise, rtol=rtol)
    if unknown := [mode for mode in modes if mode not in MODES] or not modes:
        raise ValueError(f"modes: got {unknown or 'none'}, expected some of {MODES}")
    params, state = dict(model.named_parameters()), dict(model.named_buffers())
    if empty := [n for n, t in {**params, **state}.items() if t.is_meta or isinstance(t, FakeTensor)]:
        raise ValueError(
            f"model: {empty[0]!r} is on the meta device or fake and has no values, so nothing can be run; "
            "load the weights, or extract and verify the same class with small widths and few layers"
        )
    missing = [name for name in params if name not in spec.params]
    unknown = [name for name in spec.params if name not in params]
    unknown += [name for name in spec.buffers if name not in state]
    if missing or unknown:
        raise ValueError(
            f"spec: got one that has {unknown}, which the model lacks, and lacks {missing}, which it has; "
            "extract it from this model"
        )

    def compare(seed: int = 0, noise: float = noise) -> Comparison:
        return Comparison(spec, generic(Runner(model, example_input), spec.buffers, noise, seed), modes)

    comparison = compare()
    if noise and not comparison.finite:
        comparison = compare(noise=0)
        if comparison.undefined:
            raise ValueError(
                "model: its output at the example input is NaN, at its weights as they are and at others, so "
                "nothing can be compared; pass a row of your data"
            )
        comparison.notes.append("weights taken as they are: disturbed ones give outputs that are not finite")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(elements):
        g = sample(spec, generator=generator, low=low, high=high, device=comparison.device)
        comparison.try_element(g)
    movable = [
        group
        for group in spec.groups
        if group.kind != "none" or any(spec.group(name).permutable for name in spec.owners(group.name))
    ]
    proof = Proof(
        dict(comparison.errors),
        comparison.statistics,
        rtol,
        elements,
        low,
        high,
        len(spec.groups),
        len(movable),
        sum(group.size for group in movable),
        notes=tuple(comparison.notes),
    )
    if proof.holds and probes != 0:
        tried, possible, larger = search(
            spec,
            comparison,
            compare,
            count=probes,
            seconds=probe_seconds,
            generator=generator,
            rtol=rtol,
            progress=progress,
        )
        proof = replace(proof, probes=tried, possible=possible, larger=larger)
    if random := sorted(comparison.runner.random):
        names = ", ".join(random)
        note = f"random numbers ({names}) replaced by their mean; what could be larger is tried with draws"
        proof = replace(proof, notes=(*proof.notes, note))
    return replace(proof, seconds=time.perf_counter() - start)


def _check_options(**options: float | None) -> None:
    """Raise a ``ValueError`` for an option of [verify][amortopt.symmetry.verify] that is out of range."""
    for name, value in options.items():
        counts = name in ("elements", "seed", "probes")
        smallest = 1 if name == "elements" else 0
        if value is None and name == "probes":
            continue
        if isinstance(value, bool) or not isinstance(value, int if counts else int | float):
            kind = "a whole number" if counts else "a number"
            raise ValueError(f"{name}: got {value!r}, expected {kind}")
        if not smallest <= value < float("inf"):
            raise ValueError(f"{name}: got {value!r}, expected at least {smallest}, and finite")
