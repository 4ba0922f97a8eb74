"""Other ways to align two networks: git-re-basin's weight matching, and the package rebasin."""

from __future__ import annotations

import copy

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from benchmarks.align.networks import Table


def weight_matching(
    a: nn.Module, b: nn.Module, table: Table, *, seed: int = 0, sweeps: int = 100
) -> nn.Module:
    r"""Algorithm 1 of Ainsworth, Hayase & Srinivasa (2023), "Git Re-Basin", with a hand-written table.

    For one permutation after the other, in random orders, :math:`P \leftarrow \operatorname{LAP}(\sum_W W_a
    W_b^\top)` over all axes along it, with b's other axes as they are permuted so far, until a sweep changes
    nothing.

    Args:
        a: The network that stays.
        b: The network that is permuted; not modified.
        table: Which permutation acts along which axis.
        seed: Of the orders.
        sweeps: At most so many.

    Returns:
        A copy of b with permuted parameters. Running statistics are not in the table: measure them anew.
    """
    wa, wb = ({n: p.detach().double() for n, p in net.named_parameters()} for net in (a, b))
    sizes = {p: wa[n].shape[k] for n, axes in table.items() for k, p in enumerate(axes) if p is not None}
    orders = {p: torch.arange(size) for p, size in sizes.items()}

    def permuted(name: str, leave: int | None = None) -> Tensor:
        w = wb[name]
        for axis, p in enumerate(table[name]):
            if p is not None and axis != leave:
                w = w.index_select(axis, orders[p])
        return w

    generator = torch.Generator().manual_seed(seed)
    names = list(sizes)
    for _ in range(sweeps):
        progress = False
        for index in torch.randperm(len(names), generator=generator).tolist():
            p, n = names[index], sizes[names[index]]
            score = torch.zeros(n, n, dtype=torch.float64)
            for name, axes in table.items():
                for axis in (k for k, other in enumerate(axes) if other == p):
                    x = wa[name].movedim(axis, 0).reshape(n, -1)
                    score += x @ permuted(name, axis).movedim(axis, 0).reshape(n, -1).mT
            rows = torch.arange(n)
            order = torch.from_numpy(linear_sum_assignment(score.numpy(), maximize=True)[1])
            progress |= bool(score[rows, order].sum() > score[rows, orders[p]].sum() + 1e-12)
            orders[p] = order
        if not progress:
            break
    aligned = copy.deepcopy(b)
    with torch.no_grad():
        for name, parameter in aligned.named_parameters():
            parameter.copy_(permuted(name))
    return aligned


def by_package(a: nn.Module, b: nn.Module, inputs: Tensor) -> nn.Module:
    """What the package rebasin (PyPI) makes of b."""
    from rebasin import PermutationCoordinateDescent  # type: ignore[import-not-found]

    aligned = copy.deepcopy(b)
    PermutationCoordinateDescent(copy.deepcopy(a), aligned, inputs).rebasin()
    return aligned
