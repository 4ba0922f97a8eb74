"""Universal neural functionals: metanets of permutation-equivariant linear layers (Zhou et al. 2024).

Legend: B networks, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.base import Functional, Metanet, register
from amortopt.metanets.conditions import Conditions
from amortopt.metanets.unf.layer import FixedUNFLayer, UNFPool
from amortopt.metanets.unf.tensors import WeightTensors
from amortopt.symmetry import SymmetrySpec

_NONE = Conditions()


class UNFBody(nn.Module):
    """Standardised weights through UNF layers with ReLUs between them.

    Args:
        tensors: How params become tensors.
        in_channels: C of what it reads.
        width: C of the hidden layers.
        out_channels: C of what it returns.
        depth: Number of layers, at least 1.

    Attributes:
        mean: Subtracted per tensor and channel, [tensors, in_channels]; zero until ``standardize``.
        scale: Then multiplied with, likewise; one until ``standardize``.

    Raises:
        ValueError: ``depth`` or ``width`` below 1.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, tensors: WeightTensors, *, in_channels: int, width: int, out_channels: int, depth: int
    ) -> None:
        super().__init__()
        if depth < 1 or width < 1:
            raise ValueError(f"depth, width: got {depth} and {width}, expected at least 1")
        channels = [in_channels, *[width] * (depth - 1), out_channels]
        self.layers = nn.ModuleList(
            FixedUNFLayer(tensors.specs, before, after, runs=tensors.runs)
            for before, after in pairwise(channels)
        )
        self.register_buffer("mean", torch.zeros(len(tensors.specs), in_channels))
        self.register_buffer("scale", torch.ones(len(tensors.specs), in_channels))

    @torch.no_grad()
    def standardize(self, xs: Sequence[Tensor]) -> None:
        """Set mean and scale so that these tensors have mean 0 and variance 1 each.

        Args:
            xs: Per tensor [B, *shape, C]; constant ones keep their scale.
        """
        for k, x in enumerate(xs):
            rows = x.reshape(-1, x.shape[-1])
            deviation = rows.std(dim=0, correction=0)
            self.mean[k] = rows.mean(dim=0)
            self.scale[k] = torch.where(deviation > 0, 1 / deviation.clamp_min(1e-12), 1.0)

    def forward(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """Per tensor [B, *shape, in_channels] -> [B, *shape, out_channels]."""
        ys = [(x - self.mean[k]) * self.scale[k] for k, x in enumerate(xs)]
        for number, layer in enumerate(self.layers):
            ys = layer(ys if number == 0 else [F.relu(y) for y in ys])
        return ys


@register("unf_invariant")
class UNFInvariant(Functional):
    """A vector from weights that does not change when neurons are permuted, such as a predicted accuracy.

    Args:
        spec: Symmetry of the base networks; scalings are ignored.
        out_features: Length of the vector.
        width: Channels of the layers.
        depth: Number of UNF layers.
        hidden: Width of the two hidden layers of the MLP that reads the invariants.
        dropout: Share of the invariants and hidden units that training drops.

    Raises:
        ValueError: A width or the depth below 1.
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        out_features: int,
        *,
        width: int = 16,
        depth: int = 3,
        hidden: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            spec, out_features=out_features, width=width, depth=depth, hidden=hidden, dropout=dropout
        )
        if out_features < 1 or hidden < 1:
            raise ValueError(f"out_features, hidden: got {out_features} and {hidden}, expected at least 1")
        self.tensors = WeightTensors(spec)
        self.body = UNFBody(self.tensors, in_channels=1, width=width, out_channels=width, depth=depth)
        self.pool = UNFPool(self.tensors.specs)
        self.head = nn.Sequential(
            *(nn.Dropout(dropout), nn.Linear(self.pool.num_features * width, hidden), nn.ReLU()),
            *(nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out_features)),
        )

    def standardize(self, params: Params) -> None:
        """Standardise weights by the mean and variance that these networks have; once, before training.

        Args:
            params: Qualified name -> [B, *shape], such as the training networks.
        """
        self.body.standardize(self.tensors.read(params))

    def forward(self, params: Params) -> Tensor:
        """Predict.

        Args:
            params: Qualified name -> [B, *shape], all parameters of the spec.

        Returns:
            [B, out_features].

        Raises:
            ValueError: A parameter is missing or has another shape.
        """
        ys = self.body(self.tensors.read(params))
        return self.head(self.pool([F.relu(y) for y in ys]))


@register("unf")
class UNF(Metanet):
    r"""Weights to weights by UNF layers: :math:`\theta' = \theta + s\,\Delta(\theta, \nabla, \lambda)`.

    Equivariant to permutations of neurons, not to scalings. The strength s per block is zero at first: the
    identity.

    Args:
        spec: Symmetry of the family.
        width: Channels of the hidden layers.
        depth: Number of UNF layers.
        conditions: What it reads beside the weights, of ``"batch"`` and ``"l1"``.

    Raises:
        ValueError: An unknown condition, or ``depth`` or ``width`` below 1.
    """

    def __init__(
        self, spec: SymmetrySpec, *, width: int = 16, depth: int = 3, conditions: Sequence[str] = ()
    ) -> None:
        super().__init__(spec, width=width, depth=depth, conditions=list(conditions))
        self.tensors = WeightTensors(spec)
        self.body = UNFBody(
            self.tensors, in_channels=1 + len(self.conditions), width=width, out_channels=1, depth=depth
        )
        self.strength = nn.Parameter(torch.zeros(len(self.tensors.specs)))

    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        return {}

    def forward(self, params: Params, conditions: Conditions = _NONE) -> Params:
        conditions.check(self.conditions, len(next(iter(params.values()))))
        grads, l1 = conditions.gradient_at(params), conditions.l1
        read = self.tensors.read(params) if grads is None else self.tensors.read(params, grads)
        xs = read
        if l1 is not None:
            # From 1e-8 to 1, about the range in use, is from -1 to 0.
            level = torch.log10(l1.clamp_min(1e-8)) / 8
            levels = [level.to(x.dtype).view(-1, *[1] * (x.ndim - 1)).expand(*x.shape[:-1], 1) for x in xs]
            xs = [torch.cat([x, one], dim=-1) for x, one in zip(xs, levels, strict=True)]
        updates = self.body(xs)
        changed = [x[..., 0] + s * u[..., 0] for x, s, u in zip(read, self.strength, updates, strict=True)]
        return self.tensors.write(changed, params)
