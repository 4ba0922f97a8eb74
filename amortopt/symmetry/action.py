"""Elements of the symmetry group and what they do to parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.symmetry.spec import Axis, Block, NeuronGroup, SymmetrySpec


@dataclass(frozen=True)
class Element:
    """One permutation and one scale per neuron group.

    Unit o of the moved network is unit ``permutations[group][o]`` of the original, multiplied by
    ``scales[group][o]``.

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
        and signs.

    Raises:
        ValueError: ``low`` and ``high`` are not 0 < low <= high.
    """
    if not 0 < low <= high < math.inf:
        raise ValueError(f"low, high: got {low}, {high}, expected 0 < low <= high")
    count = 1 if batch is None else batch
    permutations, scales = {}, {}
    for group in spec.groups:
        draws = [_draw(group, generator, math.log(low), math.log(high)) for _ in range(count)]
        rows = [torch.stack(row) if batch is not None else row[0] for row in zip(*draws, strict=True)]
        permutations[group.name] = rows[0].to(device)
        scales[group.name] = rows[1].to(device=device, dtype=dtype)
    return Element(permutations, scales)


def _draw(group: NeuronGroup, generator: torch.Generator, low: float, high: float) -> tuple[Tensor, Tensor]:
    n = group.size
    permutation = torch.randperm(n, generator=generator) if group.permutable else torch.arange(n)
    scale = torch.ones(n, dtype=torch.float64)
    if group.kind in ("positive", "free"):
        scale = torch.exp(low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64))
    if group.kind in ("sign", "free"):
        scale = scale * (2 * torch.randint(2, (n,), generator=generator) - 1)
    return permutation, scale


def identity(spec: SymmetrySpec, *, dtype: torch.dtype = torch.float64) -> Element:
    """The element that changes nothing."""
    return Element(
        {group.name: torch.arange(group.size) for group in spec.groups},
        {group.name: torch.ones(group.size, dtype=dtype) for group in spec.groups},
    )


def act(
    spec: SymmetrySpec, g: Element, params: Params, *, batched: bool = False, dual: bool = False
) -> Params:
    r"""Move params along their symmetry orbit.

    For W between groups a (out) and b (in): :math:`W' = S_a P_a W P_b^\top S_b^{-1}` (Kalogeropoulos et al.
    2024, eq. 2), that is :math:`W'_{oi} = q_o W_{\pi_a(o) \pi_b(i)} / q_i`.

    Args:
        spec: Symmetry of the base network.
        g: One permutation and one scale per neuron group; with a leading axis B, one element per network.
        params: Qualified name -> tensor, with a leading axis B if ``batched``; not modified.
        batched: Whether the tensors have a leading network axis.
        dual: Use the opposite exponents: how gradients move, so that the sum of w * g stays.

    Returns:
        New params, same names, shapes, dtype and device.

    Raises:
        ValueError: ``g`` lacks a group of ``spec``, or names or shapes of ``params`` are not those of
            ``spec``.
    """
    _check_names(spec, g, params)
    lead = 1 if batched else 0
    sign = -1 if dual else 1
    moved: Params = {}
    for name, tensor in params.items():
        blocks = spec.blocks_of(name)
        if len(blocks) == 1 and blocks[0].start == 0 and blocks[0].stop is None:
            moved[name] = _act_on_block(blocks[0], g, tensor, lead, sign)
            continue
        pieces = []
        for block in blocks:
            stop = tensor.shape[lead] if block.stop is None else block.stop
            part = tensor.narrow(lead, block.start, stop - block.start)
            pieces.append(_act_on_block(block, g, part, lead, sign))
        moved[name] = torch.cat(pieces, dim=lead)
    return moved


def _act_on_block(block: Block, g: Element, tensor: Tensor, lead: int, sign: int) -> Tensor:
    shape = tensor.shape
    if math.prod(shape[lead:]) != math.prod(block.shape):
        lead_name, hint = ("B, ", "") if lead else ("", "; pass batched=True for a leading network axis")
        raise ValueError(
            f"params[{block.param!r}]: got shape {tuple(shape)}, expected [{lead_name}...] with "
            f"{math.prod(block.shape)} elements ({'x'.join(map(str, block.shape))}){hint}"
        )
    view = tensor.reshape(*shape[:lead], *block.shape)
    for position, axis in enumerate(block.axes):
        if axis.group is not None:
            view = _act_on_axis(axis, g, view, lead + position, lead, sign)
    return view.reshape(shape)


def _act_on_axis(axis: Axis, g: Element, view: Tensor, dim: int, lead: int, sign: int) -> Tensor:
    assert axis.group is not None
    permutation, scale = g.permutations[axis.group], g.scales[axis.group]
    if permutation.ndim == 1:
        view = view.index_select(dim, permutation)
    else:
        rows = torch.arange(view.shape[0], device=view.device)[:, None]
        view = view.movedim(dim, 1)[rows, permutation].movedim(1, dim)
    exponent = sign * axis.exponent
    if exponent == 0:
        return view
    factor = _along(scale.to(view.dtype), dim, view.ndim)
    return view * factor if exponent == 1 else view / factor


def _along(tensor: Tensor, dim: int, ndim: int) -> Tensor:
    """[n] or [B, n] shaped to broadcast with n along ``dim`` and B along the first axis."""
    shape = [1] * ndim
    shape[dim] = tensor.shape[-1]
    if tensor.ndim == 2:
        shape[0] = tensor.shape[0]
    return tensor.reshape(shape)


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


def _check_names(spec: SymmetrySpec, g: Element, params: Params) -> None:
    names = [group.name for group in spec.groups]
    if missing := [name for name in names if name not in g.permutations or name not in g.scales]:
        raise ValueError(f"g: got an element without groups {missing}, expected {names}; use sample(spec)")
    if params.keys() != set(spec.params):
        missing = [name for name in spec.params if name not in params]
        unknown = [name for name in params if name not in spec.params]
        raise ValueError(f"params: got {unknown} that the spec lacks and not {missing} that it has")
