"""Elements of the symmetry group and what they do to parameters.

Legend: B networks, n units of a group, m units of its owner, r = n / m units in every run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.symmetry.axes import Axis, Block
from amortopt.symmetry.blocks import join, read

if TYPE_CHECKING:
    from amortopt.symmetry.spec import SymmetrySpec


@dataclass(frozen=True)
class Element:
    """One permutation and one scale per neuron group.

    Unit o of the moved network is unit ``permutations[group][o]`` of the original, multiplied by
    ``scales[group][o]``. The permutation of a group with an owner is of all its units: it moves runs as the
    owner's permutation moves their units.

    Attributes:
        permutations: Group -> int64 [n], or [B, n] with one per network.
        scales: Group -> [n] or [B, n], unitless, nonzero.
    """

    permutations: dict[str, Tensor]
    scales: dict[str, Tensor]


def sample(
    spec: SymmetrySpec,
    *,
    generator: torch.Generator,
    low: float = 1e-1,
    high: float = 1e1,
    batch: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Element:
    """Draw a random element.

    Args:
        spec: Symmetry of the base network.
        generator: Source of randomness, on the CPU, so that a seed gives the same element everywhere.
        low: Smallest magnitude of a scale; magnitudes are log-uniform for kinds ``positive`` and ``free``.
        high: Largest magnitude of a scale.
        batch: Number of networks B to draw one element each for; None for one element without that axis.
        dtype: Type of the scales.
        device: Where the element goes.

    Returns:
        An element with all groups of ``spec``: the identity where nothing is allowed, uniform permutations
        and signs; a group with an owner moves with it.

    Raises:
        ValueError: ``low`` and ``high`` are not 0 < low <= high.
    """
    if not 0 < low <= high < math.inf:
        raise ValueError(f"low, high: got {low}, {high}, expected 0 < low <= high")
    count = 1 if batch is None else batch
    permutations: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    for group in spec.groups:
        # [B, n]: the owner's permutation of the runs, then one inside every run
        run = spec.run(group.name)
        shape = (count, group.size // run, run)
        inside = torch.arange(run).expand(shape)
        if group.permutable:
            inside = torch.rand(shape, generator=generator, dtype=torch.float64).argsort(-1)
        owner = group.within
        runs = torch.zeros(count, 1, dtype=torch.int64) if owner is None else permutations[owner]
        permutations[group.name] = (runs[:, :, None] * run + inside).reshape(count, group.size)
        shape = (count, group.size)
        scale = torch.ones(shape, dtype=torch.float64)
        if group.kind in ("positive", "free"):
            uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
            scale = torch.exp(math.log(low) + (math.log(high) - math.log(low)) * uniform)
        if group.kind in ("sign", "free"):
            scale = scale * (2 * torch.randint(2, shape, generator=generator) - 1)
        scales[group.name] = scale
    row = slice(None) if batch is not None else 0
    return Element(
        {name: permutation[row].to(device) for name, permutation in permutations.items()},
        {name: scale[row].to(device=device, dtype=dtype) for name, scale in scales.items()},
    )


def identity(spec: SymmetrySpec, *, dtype: torch.dtype = torch.float64) -> Element:
    """The element that changes nothing."""
    return Element(
        {group.name: torch.arange(group.size) for group in spec.groups},
        {group.name: torch.ones(group.size, dtype=dtype) for group in spec.groups},
    )


def inverse(g: Element) -> Element:
    """The element that undoes ``g``."""
    back = {name: torch.argsort(permutation, dim=-1) for name, permutation in g.permutations.items()}
    return Element(back, {name: 1 / g.scales[name].gather(-1, back[name]) for name in g.scales})


def compose(g: Element, h: Element) -> Element:
    """The element that does ``h`` first and ``g`` after.

    Args:
        g: Second element.
        h: First element, of the same groups and batch.

    Returns:
        k with ``act(spec, k, p) == act(spec, g, act(spec, h, p))``.
    """
    return Element(
        {name: h.permutations[name].gather(-1, g.permutations[name]) for name in g.permutations},
        {name: g.scales[name] * h.scales[name].gather(-1, g.permutations[name]) for name in g.scales},
    )


def act(
    spec: SymmetrySpec, g: Element, params: Params, *, batched: bool = False, dual: bool = False
) -> Params:
    r"""Move params along their symmetry orbit.

    For W between groups a (out) and b (in): :math:`W' = S_a P_a W P_b^\top S_b^{-1}` (Kalogeropoulos et al.
    2024, eq. 2), that is :math:`W'_{oi} = q_o W_{\pi_a(o) \pi_b(i)} / q_i`. An axis with exponent e, and with
    further groups in ``also``, has the product of their :math:`q^e`.

    Args:
        spec: Symmetry of the base network.
        g: One permutation and one scale per neuron group; with a leading axis B, one element per network.
        params: Qualified name -> tensor, with a leading axis B if ``batched``; not modified. All parameters
            of ``spec``, and any of its buffers.
        batched: Whether the tensors have a leading network axis.
        dual: Use the opposite exponents: how gradients move, so that the sum of w * g stays.

    Returns:
        New params, same names, shapes, dtype and device.

    Raises:
        ValueError: ``g`` lacks a group of ``spec``, or names or shapes of ``params`` are not those of
            ``spec``.
    """
    _check_names(spec, g, params)
    if not batched and (many := [name for name, q in g.scales.items() if q.ndim > 1]):
        raise ValueError(f"g: got one scale per network for {many}, expected batched=True with it")
    return act_on_some(spec, g, params, batched=batched, dual=dual)


def act_on_some(
    spec: SymmetrySpec, g: Element, params: Params, *, batched: bool = False, dual: bool = False
) -> Params:
    """[act][amortopt.symmetry.act] for any of the spec's parameters and buffers, unchecked."""
    action = _Action(spec, g, 1 if batched else 0, -1 if dual else 1)
    return {name: action.on_param(name, tensor) for name, tensor in params.items()}


class _Action:
    """One element, ready to act on any number of blocks; tensors have ``lead`` network axes."""

    def __init__(self, spec: SymmetrySpec, g: Element, lead: int, sign: int) -> None:
        self.spec, self.g, self.lead, self.sign = spec, g, lead, sign
        # A group that g leaves as it is costs no pass over the weights. Only groups that the spec fixes are
        # compared: reading a value waits for the device.
        self.unscaled = {x.name for x in spec.groups if x.kind == "none" and _all(g.scales[x.name] == 1)}
        self.in_place: set[str] = set()
        self.in_order: set[str] = set()
        for group in spec.groups:
            if group.permutable:
                continue
            units = torch.arange(group.size, device=g.permutations[group.name].device)
            if (group.within is None or group.within in self.in_place) and _all(
                g.permutations[group.name] == units
            ):
                self.in_place.add(group.name)
            run = spec.run(group.name)
            if group.name in self.in_place or _all(g.permutations[group.name] % run == units % run):
                self.in_order.add(group.name)

    def on_param(self, name: str, tensor: Tensor) -> Tensor:
        blocks = self.spec.blocks_of(name)
        moved = [self._on_block(block, read(tensor, block, self.lead)) for block in blocks]
        return join(blocks, moved, tensor.shape[self.lead :], self.lead)

    def _on_block(self, block: Block, view: Tensor) -> Tensor:
        owners = [self.spec.owner_axis(block, position) for position in range(len(block.axes))]
        for position, (axis, owner) in enumerate(zip(block.axes, owners, strict=True)):
            if axis.group is not None and owner is None and axis.group not in self.in_place:
                permutation, dim = self.g.permutations[axis.group], self.lead + position
                if permutation.ndim == 1:
                    view = view.index_select(dim, permutation)
                else:
                    networks = torch.arange(view.shape[0], device=view.device)[:, None]
                    view = view.movedim(dim, 1)[networks, permutation].movedim(1, dim)
        for position, (axis, owner) in enumerate(zip(block.axes, owners, strict=True)):
            if axis.group is not None and owner is not None:
                view = self._in_runs(view, block, position, owner)
            elif (factor := self._factor(axis, view.dtype)) is not None:
                view = view * _spread(factor, view.ndim, self.lead + position)
        return view

    def _in_runs(self, view: Tensor, block: Block, position: int, owner: int) -> Tensor:
        """Move along an axis whose units depend on those of another, which has been moved already."""
        axis, along = block.axes[position], block.axes[owner].group
        assert axis.group is not None and along is not None
        dims = (self.lead + owner, self.lead + position)
        group = self.spec.group(axis.group)
        assert group.within is not None
        # Entry (j, c) is about unit c of the run that j's owner has.
        repeats = block.axes[owner].size // self.spec.group(group.within).size
        if axis.group not in self.in_order:
            # [m, r] or [B, m, r]: which unit of its run every unit comes from
            run = self.spec.run(axis.group)
            source = (self.g.permutations[axis.group] % run).unflatten(-1, (-1, run))
            source = source.repeat_interleave(repeats, -2)
            rows = torch.arange(source.shape[-2], device=source.device)[:, None]
            if source.ndim == 3:
                networks = torch.arange(source.shape[0], device=source.device)[:, None, None]
                view = view.movedim(dims, (1, 2))[networks, rows, source].movedim((1, 2), dims)
            else:
                back = (self.lead, self.lead + 1)
                index = (slice(None),) * self.lead + (rows, source)
                view = view.movedim(dims, back)[index].movedim(back, dims)
        factor = self._factor(axis, view.dtype)
        if factor is None:
            return view
        runs = factor.unflatten(-1, (-1, axis.size)).repeat_interleave(repeats, -2)
        if position < owner:
            runs = runs.mT
        return view * _spread(runs, view.ndim, *sorted(dims))

    def _factor(self, axis: Axis, dtype: torch.dtype) -> Tensor | None:
        """[n] or [B, n]: what the units of an axis' group are multiplied by; None for 1."""
        factor = None
        for name, exponent in axis.scales:
            if name in self.unscaled:
                continue
            assert axis.group is not None
            q = self.g.scales[name].to(dtype)
            power = _power(q, exponent * self.sign)
            # A unit of an owner scales all units of its run.
            repeats = self.spec.group(axis.group).size // self.spec.group(name).size
            power = power if repeats == 1 else power.repeat_interleave(repeats, -1)
            factor = power if factor is None else factor * power
        return factor


def _power(q: Tensor, exponent: int) -> Tensor:
    if exponent < 0:
        return 1 / _power(q, -exponent)
    return q if exponent == 1 else q**exponent


def _spread(factor: Tensor, ndim: int, *dims: int) -> Tensor:
    """[*dims] or [B, *dims] shaped to broadcast along ``dims``, in ascending order, and B along the first."""
    shape = [1] * ndim
    for dim, size in zip(dims, factor.shape[-len(dims) :], strict=True):
        shape[dim] = size
    if factor.ndim > len(dims):
        shape[0] = factor.shape[0]
    return factor.reshape(shape)


def _all(condition: Tensor) -> bool:
    try:
        return bool(condition.all())
    except RuntimeError:
        return False  # under vmap the values of one network cannot be looked at


def _check_names(spec: SymmetrySpec, g: Element, params: Params) -> None:
    names = [group.name for group in spec.groups]
    if missing := [name for name in names if name not in g.permutations or name not in g.scales]:
        raise ValueError(f"g: got an element without groups {missing}, expected {names}; use sample(spec)")
    missing = [name for name in spec.params if name not in params]
    unknown = sorted(params.keys() - set(spec.params) - set(spec.buffers))
    if missing or unknown:
        parts = [f"without {missing}"] * bool(missing)
        parts += [f"with {unknown}, which the spec does not move"] * bool(unknown)
        raise ValueError(
            f"params: got them {' and '.join(parts)}; give all of spec.params, under these names, and of the "
            "buffers those of spec.buffers"
        )
