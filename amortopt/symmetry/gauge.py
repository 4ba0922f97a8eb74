"""How large a symmetry is, counted from its spec, and from the rank of the network's Jacobian."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from amortopt.symmetry.axes import Block
from amortopt.symmetry.proof.running import Runner, generic

if TYPE_CHECKING:
    from amortopt.symmetry.spec import SymmetrySpec


@dataclass(frozen=True, repr=False)
class GaugeDimension:
    """Size of the symmetry of a network.

    Attributes:
        continuous: Dimension of the orbit of generic weights: independent directions of rescaling.
        units: Units that may be rescaled continuously, of kind positive or free; ``units - continuous``
            combinations of their scales change no weight.
        permutation_bits: log2 of the number of permutations.
        sign_bits: log2 of the number of sign flips: one for every unit of kind sign or free.
    """

    continuous: int
    units: int
    permutation_bits: float
    sign_bits: int

    @property
    def discrete_bits(self) -> float:
        """log2 of the number of permutations and sign flips."""
        return self.permutation_bits + self.sign_bits

    def __repr__(self) -> str:
        without = self.units - self.continuous
        idle = f" (of {self.units:,} scales, {without:,} combinations change no weight)" if without else ""
        return (
            f"{self.continuous:,} continuous directions of rescaling{idle}, "
            f"{self.discrete_bits:,.0f} bits of discrete symmetry "
            f"({self.permutation_bits:,.0f} of permutations, {self.sign_bits:,} of signs)"
        )


def gauge_dimension(spec: SymmetrySpec) -> GaugeDimension:
    r"""Count a symmetry.

    Scales :math:`e^{t_u}` of the units u multiply an entry of a block by :math:`e^{\sum_u e_u t_u}`, a linear
    map of t whose rank is the number of continuous directions. It commutes with permutations of units, so by
    Schur's lemma it is enough to know its rank on the scales that are constant on every group and, for every
    group, on those that sum to zero in every run: small matrices of exponents, whose rank is exact.

    Args:
        spec: Symmetry of a network.

    Returns:
        Its size. Groups that no parameter has an axis of do not count; neither do buffers.

    Examples:
        >>> from amortopt.symmetry import extract
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> gauge_dimension(extract(net, torch.zeros(5, 4)))
        3 continuous directions of rescaling, 3 bits of discrete symmetry (3 of permutations, 0 of signs)
    """
    blocks = [block for block in spec.blocks if not block.buffer]
    scalable = {group.name for group in spec.groups if group.kind in ("positive", "free")}
    along = {name for block in blocks for group in block.groups for name in spec.owners(group)}
    flipped = {name for b in blocks for axis in b.axes for name, e in axis.scales if e % 2}
    return GaugeDimension(
        rescalings(spec, scalable),
        sum(spec.group(name).size for name in scalable),
        # n! orders of the n units of every run
        sum(
            group.size // spec.run(group.name) * math.lgamma(spec.run(group.name) + 1) / math.log(2)
            for group in spec.groups
            if group.name in along and group.permutable
        ),
        sum(g.size for g in spec.groups if g.kind in ("sign", "free") and g.name in flipped),
    )


def rescalings(spec: SymmetrySpec, scalable: set[str]) -> int:
    """Independent directions of rescaling, if it is these groups that may be rescaled."""
    blocks = [block for block in spec.blocks if not block.buffer]
    # One row a block: a Counter's update adds
    sums = [Counter[str]() for _ in blocks]
    for row_of_block, block in zip(sums, blocks, strict=True):
        for row in _exponents(spec, block, None, scalable):
            row_of_block.update(row)
    total = _rank(sums)
    for group in spec.groups:
        # Scales that sum to zero in every run; none, where runs are of one unit.
        count = group.size - group.size // spec.run(group.name)
        if count:
            rows = (row for block in blocks for row in _exponents(spec, block, group.name, scalable))
            total += count * _rank(rows)
    return total


def _exponents(
    spec: SymmetrySpec, block: Block, level: str | None, scalable: set[str]
) -> Iterator[dict[str, int]]:
    """Exponents of the scales that multiply the entries of a block: a row for every independent index.

    Args:
        spec: The symmetry.
        block: A block of it.
        level: Group whose scales, and those of groups that it owns, vary along its units and sum to zero in
            its runs; None for scales that are constant on every group.
        scalable: Groups with continuous scales.
    """
    rows: dict[int, dict[str, int]] = {}
    for position, axis in enumerate(block.axes):
        if axis.group is None or (level is not None and level not in spec.owners(axis.group)):
            continue
        owner = spec.owner_axis(block, position)
        within = spec.group(axis.group).within
        # Averaged over a run, an axis along it depends on the index of its owner's axis only.
        together = owner is not None and within is not None and level in (None, *spec.owners(within))
        row = rows.setdefault(owner if together and owner is not None else position, {})
        for name, exponent in axis.scales:
            if name in scalable and (level is None or level in spec.owners(name)):
                row[name] = row.get(name, 0) + exponent
    yield from rows.values()


def _rank(rows: Iterable[Mapping[str, int]]) -> int:
    """Exact rank of a sparse matrix of integers, by elimination."""
    pivots: dict[str, dict[str, Fraction]] = {}
    unique = {tuple(sorted(row.items())) for row in rows}
    for items in unique:
        row = {name: Fraction(value) for name, value in items if value}
        while row:
            pivot = min(row)
            if pivot not in pivots:
                pivots[pivot] = {name: value / row[pivot] for name, value in row.items()}
                break
            factor = row[pivot]
            for name, value in pivots[pivot].items():
                if (left := row.get(name, Fraction(0)) - factor * value) != 0:
                    row[name] = left
                else:
                    row.pop(name, None)
    return len(pivots)


@dataclass(frozen=True)
class NullDirections:
    """Directions in weight space that leave a function as it is, to first order.

    Attributes:
        parameters: Number of weights.
        rank: Rank of the Jacobian of the outputs with respect to them.
        gap: The smallest singular value that counts over the largest that does not; large if the rank is
            clear.
    """

    parameters: int
    rank: int
    gap: float

    @property
    def dimension(self) -> int:
        """Number of null directions."""
        return self.parameters - self.rank


def null_directions(
    model: nn.Module, inputs: Any, *, training: bool = False, noise: float = 0.5, rtol: float = 1e-10
) -> NullDirections:
    """Count the directions in weight space that leave a network's outputs as they are, to first order.

    The Jacobian of all outputs on all inputs with respect to all weights is computed in float64, a row at a
    time; meant for networks of at most a few thousand weights. Rescalings are among its null directions;
    units that no input activates, and reparametrisations that no group of units describes, add to them.

    Args:
        model: The network; left as it was.
        inputs: What its forward takes, or a tuple of that, with more numbers in the outputs than weights.
        training: Whether to run in training mode, with dropout replaced by its expectation.
        noise: Disturbance of the weights, as in [verify][amortopt.symmetry.verify].
        rtol: Singular values below this share of the largest count as zero. Rounding leaves about 1e-14,
            and the Jacobian's columns are brought to norm one first, so that the others are far above it.

    Returns:
        Rank and null directions, with the gap between what counts and what does not.

    Raises:
        ValueError: There are fewer outputs than weights, which bounds the rank whatever the network is.
    """
    runner = generic(Runner(model, inputs), (), noise)
    params = {name: p.clone().requires_grad_() for name, p in runner.params.items()}
    outputs, _ = runner.run(params, training=training, grad=True)
    y = torch.cat([t.flatten() for t in outputs if t.is_floating_point()])
    count = sum(p.numel() for p in params.values())
    if y.numel() < count:
        raise ValueError(
            f"inputs: got {y.numel()} outputs for {count} weights, expected as many or more; add inputs"
        )
    weights, rows = list(params.values()), []
    for output in y:
        gradients = torch.autograd.grad(output, weights, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    # [outputs, weights], every column divided by its norm
    jacobian = torch.stack(rows)
    norms = torch.linalg.vector_norm(jacobian, dim=0)
    values = torch.linalg.svdvals(jacobian / torch.where(norms > 0, norms, 1))
    rank = int((values > rtol * values[0]).sum())
    dropped = values[rank] if rank < count else values.new_tensor(0.0)
    return NullDirections(count, rank, float(values[rank - 1] / dropped) if dropped > 0 else math.inf)
