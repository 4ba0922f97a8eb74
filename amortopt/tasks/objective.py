"""Objectives: what a network's outputs are compared with, as a loss to minimise and a score to report.

Legend: ... leading axes, one per stack of networks; N examples, C classes; S axes of one example's targets.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from amortopt.system.registry import Registry, describe


class Objective(ABC):
    """A loss, the mean over examples of a number per example, and the score that tables show.

    Final classes are frozen dataclasses: [CrossEntropy][amortopt.tasks.CrossEntropy],
    [SoftCrossEntropy][amortopt.tasks.SoftCrossEntropy], [SquaredError][amortopt.tasks.SquaredError] and
    [Mean][amortopt.tasks.Mean].
    """

    name: ClassVar[str]
    """Name by which [make_objective][amortopt.tasks.make_objective] finds it."""
    target_shape: tuple[int, ...]
    """Shape S of one example's targets."""

    @property
    @abstractmethod
    def output_shape(self) -> tuple[int, ...]:
        """Shape of what a network returns for one example."""

    @property
    @abstractmethod
    def score_name(self) -> str:
        """Name of the score in tables, such as ``accuracy``; the higher a score, the better."""

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of every example.

        Args:
            outputs: [..., N, *output_shape].
            targets: [N, *target_shape], or with the leading axes of ``outputs``.

        Returns:
            [..., N]; differentiable in ``outputs`` to any order.
        """

    @abstractmethod
    def score_terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What the score needs of every example: shapes as in ``losses``."""

    @abstractmethod
    def score_from(self, mean: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Score, given the mean of ``score_terms`` over the examples [...] and all their targets."""

    @abstractmethod
    def check_targets(self, y: Tensor, argument: str) -> None:
        """Raise a ``ValueError`` that begins with ``argument`` unless [N, ...] are targets of this kind."""

    def loss(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean loss over the examples.

        Args:
            outputs: [..., N, *output_shape]; leading axes are networks.
            targets: [N, *target_shape], the same for all networks, or with their axes in front.
            mask: Which examples count, bool [N] or [..., N]; None: all. A network without any has loss 0.

        Returns:
            [...], a scalar for one network; differentiable in ``outputs`` to any order.

        Raises:
            ValueError: If ``outputs`` or ``targets`` have another shape.
        """
        self.check_shapes(outputs, targets)
        return masked_mean(self.losses(outputs, targets), mask)

    def score(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Score over the examples; arguments, shapes and errors as in ``loss``."""
        self.check_shapes(outputs, targets)
        return self.score_from(masked_mean(self.score_terms(outputs, targets), mask), targets, mask)

    @abstractmethod
    def matching(self) -> Objective:
        """How far a network is from another one, whose outputs are the targets.

        Raises:
            ValueError: If outputs do not say what a network answers.
        """

    def score_text(self, score: float) -> str:
        """A score with its unit, such as ``"64.3 %"``."""
        unit = {"accuracy": " %", "psnr": " dB"}.get(self.score_name, "")
        return f"{100 * score:.1f}{unit}" if unit == " %" else f"{score:.2f}{unit}"

    def to_config(self) -> dict[str, Any]:
        """JSON-able ``{"name": ..., **fields}``; ``make_objective(**config)`` makes the same objective."""
        return describe(self)

    def check_shapes(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise a ``ValueError`` unless outputs and targets have the shapes that ``loss`` takes."""
        wanted = self.output_shape
        axes = outputs.ndim - len(wanted)
        if axes < 1 or outputs.shape[axes:] != wanted:
            raise ValueError(
                f"outputs: got {tuple(outputs.shape)}, expected [..., N, {', '.join(map(str, wanted))}] for "
                f"{self}; change the network's last layer, or the objective"
            )
        examples = outputs.shape[: axes + len(self.target_shape)]
        if targets.shape not in (examples, examples[axes - 1 :]):
            raise ValueError(
                f"targets: got {tuple(targets.shape)}, expected {tuple(examples[axes - 1 :])} or "
                f"{tuple(examples)} for outputs {tuple(outputs.shape)} and {self}"
            )


def masked_mean(each: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of [..., N] over the examples where ``mask`` ([N] or [..., N]) is True; 0 where it nowhere is."""
    if mask is None:
        return each.mean(-1)
    return torch.where(mask, each, 0).sum(-1) / mask.sum(-1).clamp(min=1)


_OBJECTIVES: Registry[Objective] = Registry("objective")


@_OBJECTIVES.register("cross_entropy")
@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Cross-entropy in nats between logits and classes; the score is the accuracy.

    Attributes:
        num_classes: Number of classes C.
        target_shape: () for one class per input, (T,) for one class at each of T positions.
    """

    num_classes: int
    target_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_shape", tuple(self.target_shape))
        if self.num_classes < 1:
            raise ValueError(f"num_classes: got {self.num_classes}, expected at least 1")

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (*self.target_shape, self.num_classes)

    @property
    def score_name(self) -> str:
        return "accuracy"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        shape = outputs.shape[:-1]
        each = F.cross_entropy(outputs.flatten(0, -2), targets.expand(shape).flatten(), reduction="none")
        return self._over_positions(each.unflatten(0, shape))

    def score_terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._over_positions((outputs.argmax(-1) == targets).to(outputs.dtype))

    def score_from(self, mean: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        return mean

    def check_targets(self, y: Tensor, argument: str) -> None:
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise ValueError(
                f"{argument}: got y of {y.dtype}, expected class indices such as torch.int64; convert with "
                "y.long()"
            )
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"{argument}: got labels from {low} to {high} in y, expected class indices from 0 to "
                f"{self.num_classes - 1}"
            )

    def matching(self) -> SoftCrossEntropy:
        return SoftCrossEntropy(self.output_shape)

    def _over_positions(self, each: Tensor) -> Tensor:
        return each.flatten(-len(self.target_shape)).mean(-1) if self.target_shape else each


@_OBJECTIVES.register("soft_cross_entropy")
@dataclass(frozen=True)
class SoftCrossEntropy(Objective):
    """Cross-entropy in nats between logits and another network's logits; the score is how often they agree.

    Attributes:
        target_shape: Shape of one target and of one output: (..., C) for C classes.
    """

    target_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_shape", tuple(self.target_shape))
        if not self.target_shape:
            raise ValueError("target_shape: got (), expected the classes as its last axis")

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.target_shape

    @property
    def score_name(self) -> str:
        return "agreement"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._over_positions(-(targets.softmax(-1) * outputs.log_softmax(-1)).sum(-1))

    def score_terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._over_positions((outputs.argmax(-1) == targets.argmax(-1)).to(outputs.dtype))

    def score_from(self, mean: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        return mean

    def check_targets(self, y: Tensor, argument: str) -> None:
        _check_real(y, argument)

    def matching(self) -> SoftCrossEntropy:
        return self

    def _over_positions(self, each: Tensor) -> Tensor:
        axes = len(self.target_shape) - 1
        return each.flatten(-axes).mean(-1) if axes else each


@_OBJECTIVES.register("squared_error")
@dataclass(frozen=True)
class SquaredError(Objective):
    r"""Mean squared error, over the numbers of a target too; the score is PSNR or R².

    Attributes:
        target_shape: Shape of one target, which is also the shape of one output.
        score_kind: ``"r2"``, :math:`1 - \text{MSE} / \text{Var}(y)` with the variance around each
            component's mean over the examples; or ``"psnr"``, :math:`10 \log_{10}(\text{peak}^2 /
            \text{MSE})` in dB.
        peak: Difference between the largest and the smallest possible target, of PSNR.
    """

    target_shape: tuple[int, ...] = (1,)
    score_kind: Literal["r2", "psnr"] = "r2"
    peak: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_shape", tuple(self.target_shape))
        if self.score_kind not in ("r2", "psnr"):
            raise ValueError(f"score_kind: got {self.score_kind!r}, expected r2 or psnr")
        if not 0 < self.peak < math.inf:
            raise ValueError(f"peak: got {self.peak}, expected the positive range of the targets")

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.target_shape

    @property
    def score_name(self) -> str:
        return self.score_kind

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = (outputs - targets).square()
        return each.flatten(-len(self.target_shape)).mean(-1) if self.target_shape else each

    def score_terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.losses(outputs, targets)

    def score_from(self, mean: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.score_kind == "psnr":
            return 10 * torch.log10(self.peak**2 / mean)
        flat = targets.flatten(-len(self.target_shape)) if self.target_shape else targets.unsqueeze(-1)
        flat = flat.mT  # [..., components, N]
        along = None if mask is None else mask.unsqueeze(-2)
        centred = flat - masked_mean(flat, along).unsqueeze(-1)
        return 1 - mean / masked_mean(centred.square(), along).mean(-1)

    def check_targets(self, y: Tensor, argument: str) -> None:
        _check_real(y, argument)

    def matching(self) -> SquaredError:
        return self


@_OBJECTIVES.register("mean")
@dataclass(frozen=True)
class Mean(Objective):
    """Mean of the network's outputs, for networks that compute a loss per example themselves.

    Targets are not read. The score is minus the mean.
    """

    target_shape = ()

    @property
    def output_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def score_name(self) -> str:
        return "minus_mean"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs

    def score_terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs

    def score_from(self, mean: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        return -mean

    def check_targets(self, y: Tensor, argument: str) -> None:
        pass

    def matching(self) -> Objective:
        raise ValueError(f"{self}: its networks return losses, not answers; read a batch instead")


def _check_real(y: Tensor, argument: str) -> None:
    if not y.is_floating_point():
        raise ValueError(f"{argument}: got y of {y.dtype}, expected real numbers such as torch.float32")
    if not bool(y.isfinite().all()):
        raise ValueError(f"{argument}: y has NaN or infinite values; leave those examples out")


def make_objective(name: str, **fields: Any) -> Objective:
    """Make an objective by name.

    Args:
        name: ``"cross_entropy"``, ``"soft_cross_entropy"``, ``"squared_error"`` or ``"mean"``.
        **fields: Fields of its class; lists are taken as tuples.

    Raises:
        ValueError: If there is no such objective or field, or a value does not fit.

    Examples:
        >>> make_objective("cross_entropy", num_classes=10)
        CrossEntropy(num_classes=10, target_shape=())
    """
    return _OBJECTIVES.make(name, **fields)
