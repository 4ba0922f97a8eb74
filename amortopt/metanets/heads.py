"""Heads of functionals: what the numbers that are read from a network mean, and how they are learned.

Legend: B networks, n units, C classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.system.registry import Registry

HEADS: Registry[Head] = Registry("head")
"""Heads by the name that a functional's ``head`` gives."""


class Head(nn.Module, ABC):
    """What a functional's raw numbers mean.

    Args:
        raw: How many raw numbers there are for each network, or each unit.
        units: Neuron group of which every unit gets numbers; None for one answer about the whole network.
    """

    name: str

    def __init__(self, raw: int, units: str | None) -> None:
        super().__init__()
        self.raw, self.units = raw, units

    @abstractmethod
    def forward(self, raw: Tensor) -> Tensor:
        """Raw numbers [..., raw] to the answer [..., k]."""

    @abstractmethod
    def observe(self, target: Tensor) -> None:
        """Take notice of the targets of all training networks, once, before training.

        Raises:
            ValueError: They are missing, constant, or no targets of this head.
        """

    @abstractmethod
    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """Training loss of raw numbers [..., raw] against targets, one number.

        Raises:
            ValueError: The targets have another shape, or values that this head cannot give.
        """

    def _check_shape(self, raw: Tensor, target: Tensor, expected: torch.Size) -> None:
        if target.shape != expected:
            raise ValueError(
                f"target: got shape {tuple(target.shape)}, expected {tuple(expected)} for {len(raw)} networks"
            )


@HEADS.register("classes")
class Classes(Head):
    """Logits of C classes; cross-entropy.

    Args:
        count: Number of classes C.
        units: Neuron group of which every unit has a class; None: the network has.
        smoothing: Share of a label that training spreads over all classes, in [0, 1).

    Attributes:
        seen: Which classes some training network had, bool [C].

    Raises:
        ValueError: An argument is out of its range.
    """

    seen: Tensor

    def __init__(self, count: int, *, units: str | None = None, smoothing: float = 0.0) -> None:
        if not isinstance(count, int) or count < 2:
            raise ValueError(f"head.count: got {count!r}, expected at least 2 classes")
        if not 0 <= smoothing < 1:
            raise ValueError(f"head.smoothing: got {smoothing!r}, expected a number in [0, 1)")
        super().__init__(count, units)
        self.count, self.smoothing = count, smoothing
        self.register_buffer("seen", torch.zeros(count, dtype=torch.bool))

    def forward(self, raw: Tensor) -> Tensor:
        """Logits, as they are."""
        return raw

    def observe(self, target: Tensor) -> None:
        self._check_labels(target)
        classes = target.unique()
        if len(classes) < 2:
            raise ValueError(
                f"labels: all {target.numel()} networks have class {classes.tolist()}, "
                "expected at least two classes; from one nothing can be learned"
            )
        self.seen.zero_()
        self.seen[classes] = True

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        self._check_shape(raw, target, raw.shape[:-1])
        self._check_labels(target)
        return F.cross_entropy(raw.flatten(0, -2), target.flatten(), label_smoothing=self.smoothing)

    def probabilities(self, logits: Tensor, classes: Sequence[int] | None = None) -> Tensor:
        """Probabilities of classes, [..., C] or [..., len(classes)].

        Args:
            logits: [..., C].
            classes: Some of the classes; None for all.

        Raises:
            ValueError: There is no such class, or no training network had it.
        """
        probabilities = logits.softmax(-1)
        if classes is None:
            return probabilities
        for label in classes:
            if not isinstance(label, int) or not 0 <= label < self.count or not bool(self.seen[label]):
                known = ", ".join(map(str, self.seen.nonzero().flatten().tolist()))
                raise ValueError(
                    f"classes: got {label!r}, which no network had that this was trained on; it knows "
                    f"{known or 'none: it is untrained'}"
                )
        return probabilities[..., list(classes)]

    def _check_labels(self, target: Tensor) -> None:
        if target.is_floating_point() or target.dtype == torch.bool:
            raise ValueError(f"labels: got {target.dtype}, expected whole numbers from 0 to {self.count - 1}")
        if target.numel() and (int(target.min()) < 0 or int(target.max()) >= self.count):
            raise ValueError(
                f"labels: got {int(target.min())} to {int(target.max())}, expected 0 to "
                f"{self.count - 1}: the head has {self.count} classes; raise head.count"
            )


@HEADS.register("regression")
class Regression(Head):
    r"""Numbers, anywhere or in an interval.

    In an interval [low, high] the raw number is a logit, :math:`y = low + (high - low)\,\sigma(r)`, and the
    loss is the cross-entropy to the share of the interval: the loss of rates such as accuracies. Without one
    the loss is the squared error, in units of the training targets' variance.

    Args:
        outputs: How many numbers k.
        low: Lower end of the interval; None without one.
        high: Upper end.
        units: Neuron group of which every unit has numbers; None: the network has.

    Attributes:
        mean: Of the training targets [k]; zero until ``observe``.
        deviation: Their standard deviation [k]; one until ``observe``.

    Raises:
        ValueError: An argument is out of its range.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        outputs: int = 1,
        *,
        low: float | None = None,
        high: float | None = None,
        units: str | None = None,
    ) -> None:
        if not isinstance(outputs, int) or outputs < 1:
            raise ValueError(f"head.outputs: got {outputs!r}, expected at least 1")
        if (low is None) != (high is None) or (
            low is not None and high is not None and not -math.inf < low < high < math.inf
        ):
            raise ValueError(f"head.low, head.high: got {low} and {high}, expected low < high, or neither")
        super().__init__(outputs, units)
        self.low, self.high = low, high
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("deviation", torch.ones(outputs))

    def forward(self, raw: Tensor) -> Tensor:
        """Numbers [..., k], in the interval if there is one."""
        if self.low is not None and self.high is not None:
            return self.low + (self.high - self.low) * raw.sigmoid()
        return self.mean + self.deviation * raw

    def observe(self, target: Tensor) -> None:
        rows = self._checked(target).flatten(0, -2)
        if not len(rows):
            raise ValueError("targets: got none, expected one for each training network")
        spread = rows.std(0, correction=0)
        if bool((spread == 0).any()):
            constant = rows[0, spread == 0].tolist()
            raise ValueError(
                f"targets: all {len(rows)} are {constant}, expected numbers that differ; from constants "
                "nothing can be learned"
            )
        self.mean.copy_(rows.mean(0))
        self.deviation.copy_(spread)

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        target = self._checked(target)
        self._check_shape(raw, target, raw.shape)
        if self.low is not None and self.high is not None:
            share = (target - self.low) / (self.high - self.low)
            return F.binary_cross_entropy_with_logits(raw, share.to(raw.dtype))
        return F.mse_loss(raw, ((target - self.mean) / self.deviation).to(raw.dtype))

    def _checked(self, target: Tensor) -> Tensor:
        """Targets [..., k]."""
        if self.raw == 1 and (target.ndim == (1 if self.units is None else 2)):
            target = target[..., None]
        if not bool(target.isfinite().all()):
            raise ValueError(
                "targets: got NaN or infinite values, expected finite ones; leave such networks out"
            )
        if self.low is not None and self.high is not None and target.numel():
            least, most = float(target.min()), float(target.max())
            if least < self.low or most > self.high:
                raise ValueError(
                    f"targets: got {least:g} to {most:g}, expected numbers in the head's interval "
                    f"[{self.low:g}, {self.high:g}]"
                )
        return target


def make_head(config: Mapping[str, Any]) -> Head:
    """A head from ``{"name": ..., **arguments}``.

    Raises:
        ValueError: There is no such head, or no such argument, or a value is out of its range.

    Examples:
        >>> make_head({"name": "regression", "low": 0, "high": 1}).raw
        1
    """
    options = dict(config) if isinstance(config, Mapping) else {}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"head: got {config!r}, expected a mapping with a name: {', '.join(HEADS.names())}")
    return HEADS.make(name, **options)
