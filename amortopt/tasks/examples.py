"""Examples: inputs and targets that all networks share, or that each network has for itself.

Legend: B networks, N examples, n chosen examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from amortopt._types import Params
from amortopt.system.numbers import check_counts

Gradient: TypeAlias = Callable[[Params], Params]
"""From params [B, ...] to each network's gradient of a mean objective there, with their names and shapes."""
_ELEMENTS = 2**22
"""Numbers of examples that are projected at once, which bounds the memory."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where the examples of a portion are.

    Attributes:
        at: Positions [n], or [B, n] of each network.
        mask: Which of them count, bool [B, n]; None: all.
        taken: Their number for each network, [B], or [1] where networks share them.
    """

    at: Tensor
    mask: Tensor | None
    taken: Tensor


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and targets of one network, or of many.

    Attributes:
        x: Inputs [N, ...] that all networks share, or [B, N, ...] with ``shared=False``.
        y: Targets [N, ...] or [B, N, ...].
        shared: Whether all networks read the same examples.
        mask: Which examples count, bool [N] or [B, N]: False marks padding, where networks have different
            numbers of examples. None: all of them.

    Raises:
        ValueError: If the leading axes of x, y and mask differ.
    """

    x: Tensor
    y: Tensor
    shared: bool = True
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        axes = 1 if self.shared else 2
        lead = self.x.shape[:axes]
        names = "[N, ...], as all networks share them" if self.shared else "[B, N, ...], examples per network"
        if len(lead) < axes or self.y.shape[:axes] != lead:
            raise ValueError(
                f"y: got {tuple(self.y.shape)} targets for {tuple(self.x.shape)} inputs, expected one target "
                f"for each input and both of shape {names}"
            )
        if self.mask is not None and (self.mask.shape != lead or self.mask.dtype != torch.bool):
            raise ValueError(
                f"mask: got {self.mask.dtype} {tuple(self.mask.shape)}, expected bool {tuple(lead)}"
            )

    @classmethod
    def from_list(cls, parts: Sequence[tuple[Tensor, Tensor]]) -> Examples:
        """Examples [B, N, ...] from each network's inputs [N_b, ...] and targets [N_b, ...].

        Where the numbers N_b differ, zeros pad them to the largest, and the mask marks the padding.

        Raises:
            ValueError: If there are no networks, or a network has no examples or as many targets as it has
                not inputs.

        Examples:
            >>> Examples.from_list([(torch.ones(n, 3), torch.ones(n)) for n in (2, 1)]).mask
            tensor([[ True,  True],
                    [ True, False]])
        """
        if not parts:
            raise ValueError("parts: got no networks, expected inputs and targets for at least one")
        for b, (x, y) in enumerate(parts):
            if len(x) != len(y) or len(x) == 0:
                raise ValueError(
                    f"parts[{b}]: got {len(x)} inputs and {len(y)} targets, expected as many, at least one"
                )
        x, y = (pad_sequence([part[i] for part in parts], batch_first=True) for i in range(2))
        sizes = torch.tensor([len(part[0]) for part in parts], device=x.device)
        mask = torch.arange(x.shape[1], device=x.device) < sizes[:, None]  # [B, N]
        return cls(x, y, shared=False, mask=None if bool(mask.all()) else mask)

    def __len__(self) -> int:
        """Number of examples N of a network, padding included."""
        return self.x.shape[0 if self.shared else 1]

    def counts(self, networks: int) -> Tensor:
        """Number of examples of every network, without padding: float [networks]."""
        mask = self.mask
        if mask is None:
            return torch.full((networks,), float(len(self)), device=self.x.device)
        return mask.sum(-1).float().expand(networks)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Examples:
        """Move to a device, and real numbers to a dtype; itself where nothing changes."""
        x, y = (t.to(device, dtype if t.is_floating_point() else None) for t in (self.x, self.y))
        mask = None if self.mask is None else self.mask.to(device)
        same = x is self.x and y is self.y and mask is self.mask
        return self if same else replace(self, x=x, y=y, mask=mask)

    def take(self, index: Tensor | slice) -> Examples:
        """Choose examples by positions [n], a slice or a bool mask [N], the same for all networks.

        With positions [B, n], each network's, shared examples become examples per network.
        """
        place: tuple[Tensor | slice, ...] = (index,) if self.shared else (slice(None), index)
        shared = self.shared
        if isinstance(index, Tensor) and index.ndim == 2:
            shared = False
            if not self.shared:
                place = (torch.arange(len(index), device=index.device).unsqueeze(1), index)
        mask = None if self.mask is None else self.mask[place]
        return Examples(self.x[place], self.y[place], shared, mask)

    def of(self, networks: Tensor | slice) -> Examples:
        """Examples of some networks, by their positions [b]; itself where all networks share them."""
        if self.shared:
            return self
        mask = None if self.mask is None else self.mask[networks]
        return replace(self, x=self.x[networks], y=self.y[networks], mask=mask)

    def portions(self, count: int, least: int) -> list[Examples]:
        """So many portions of the examples, which all together are all of them.

        Of a network's N examples each has the larger of N / count, rounded up, and ``least``, but at most N;
        so portions overlap where ``least`` is more than a share. Examples are sorted by class, where targets
        are classes, and then by a fixed projection, and a portion has evenly spaced ones: nearly as much of
        every class as of all examples. So what is in it depends on the examples, not on their order.

        Args:
            count: Number of portions.
            least: Examples of a portion at least.

        Raises:
            ValueError: One of them is no whole number of at least 1.

        Examples:
            >>> batch = Examples(torch.arange(10.0)[:, None], torch.arange(10) % 2)
            >>> [portion.x[:, 0].tolist() for portion in batch.portions(2, 4)]
            [[0.0, 4.0, 8.0, 3.0, 7.0], [2.0, 6.0, 1.0, 5.0, 9.0]]
        """
        return [self._portion(places) for places in self._places(count, least)]

    def portioned(
        self, gradient_on: Callable[[Examples], Gradient], networks: int
    ) -> Callable[[int, int], list[tuple[Gradient, Tensor]]]:
        """From the arguments of ``portions`` to a gradient on each, and its number of examples [networks].

        A portion is made when it is asked for, so that only one of them is in memory.

        Args:
            gradient_on: From examples to a gradient on them.
            networks: Number of networks.
        """

        def on(places: Places) -> Gradient:
            return lambda params: gradient_on(self._portion(places))(params)

        def of(count: int, least: int) -> list[tuple[Gradient, Tensor]]:
            return [
                (on(places), places.taken.float().expand(networks)) for places in self._places(count, least)
            ]

        return of

    def _portion(self, places: Places) -> Examples:
        return replace(self.take(places.at), mask=places.mask)

    def _places(self, count: int, least: int) -> list[Places]:
        """Where the examples of each portion are."""
        check_counts(count=count, least=least)
        order = self.in_order()  # [N] or [B, N], padding last
        sizes = self.counts(1 if self.shared else len(self.x)).long()[:, None]  # [B, 1]
        taken = torch.maximum(sizes.clamp(max=least), (sizes + count - 1) // count)
        k = torch.arange(int(taken.max()), device=order.device)  # [n]
        inside = k < taken
        mask = None if bool(inside.all()) else inside
        portions = []
        for r in range(count):
            # (k + r / count) N / n, in integers, so that none is missed.
            at = torch.where(inside, (k * count + r) * sizes // (taken * count), 0)  # [B, n]
            portions.append(Places(order[at[0]] if self.shared else order.gather(1, at), mask, taken[:, 0]))
        return portions

    def in_order(self) -> Tensor:
        """Positions in an order that depends on the examples alone: [N], or [B, N] of each network.

        Sorted by whether they count, by class, where targets are classes, and by a fixed projection of inputs
        and other targets. Examples that are equal keep their order.
        """
        axes = 1 if self.shared else 2
        lead, classes = self.x.shape[:axes], self.y.ndim == axes and not self.y.is_floating_point()
        parts = [self.x] if classes else [self.x, self.y]
        rows = [part.reshape(lead.numel(), -1) for part in parts]
        # Sines of whole numbers are linearly independent over the rationals: rows of few values, such as
        # pixels, tie only where they are equal.
        along = torch.arange(1, sum(row.shape[1] for row in rows) + 1, device=self.x.device).double().sin()
        size = max(1, _ELEMENTS // max(1, len(along)))
        projected = [
            (torch.cat([row.double() for row in some], 1) * along).sum(1)
            for some in zip(*(row.split(size) for row in rows), strict=True)
        ]
        order = torch.cat(projected).view(lead).argsort(dim=-1, stable=True)
        keys = [self.y] if classes else []
        for key in keys if self.mask is None else [*keys, ~self.mask]:
            order = order.gather(-1, key.gather(-1, order).long().argsort(dim=-1, stable=True))
        return order

    def chunks(self, size: int) -> Iterator[Examples]:
        """The examples in their order, ``size`` at a time; views."""
        return (self.take(slice(start, start + size)) for start in range(0, len(self), size))

    def noisy(self, noise: float, generator: torch.Generator | None = None) -> Examples:
        """Add white noise to the inputs; itself where ``noise`` is 0.

        Args:
            noise: Standard deviation in units of the standardised inputs, so 1 is as strong as the signal.
            generator: Source of randomness, on the device of ``x``.

        Raises:
            ValueError: If ``noise`` is negative or not finite, or inputs are symbols.
        """
        if not 0 <= noise < float("inf"):
            raise ValueError(f"noise: got {noise}, expected a finite standard deviation >= 0")
        if noise == 0:
            return self
        x = self.x
        if not x.is_floating_point():
            raise ValueError(f"noise: got {noise} for inputs of {x.dtype}, expected 0; symbols take no noise")
        drawn = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return replace(self, x=x + noise * drawn)
