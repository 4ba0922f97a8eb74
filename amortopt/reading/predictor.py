"""Predict a property of a network from its weights alone, with the interval that held-out networks showed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import stack
from amortopt.metanets import Classes, Functional
from amortopt.optim.networks import (
    Network,
    OutOfFamilyWarning,
    as_list,
    check_networks,
    plain,
    read_networks,
    warn_widths,
)
from amortopt.optim.one_shot import ScaleGMNOptimizer
from amortopt.reading.sizes import unusual
from amortopt.release import Release, list_shipped, load_release
from amortopt.symmetry import FamilyMismatchError
from amortopt.tasks import family_names, make_family


@dataclass(frozen=True)
class Prediction:
    """What a predictor says of a network.

    Attributes:
        value: The predicted number; of classes, the probability of the likeliest.
        low: Lower end of the interval; None where the release has none. Classes have no interval.
        high: Upper end.
        label: The likeliest class; None for numbers.
        labels: Classes that cannot be ruled out, the likeliest first; empty for numbers.
        coverage: Share of held-out networks whose truth lay inside, at least; None without an interval.
    """

    value: float
    low: float | None = None
    high: float | None = None
    label: int | None = None
    labels: tuple[int, ...] = ()
    coverage: float | None = None

    def __str__(self) -> str:
        if self.label is not None:
            return f"class {self.label} (probability {self.value:.3f})"
        if self.low is None or self.high is None or self.coverage is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ({100 * self.coverage:g} % interval {self.low:.4g} to {self.high:.4g})"


class Predictor:
    """Applies a trained functional to networks of its family, whatever their classes and names.

    Args:
        release: A release of a functional of whole networks, with a head for classes or one number.

    Attributes:
        functional: The functional, in eval mode.
        family: Its family of networks; None if the release names none that is known here.

    Raises:
        ValueError: The release holds something else.
    """

    def __init__(self, release: Release) -> None:
        functional = release.module
        if not isinstance(functional, Functional):
            raise ValueError(f"release: got a {release.kind}, expected a functional; see amortopt.load")
        head = functional.head
        if head.units is not None or (head.raw != 1 and not isinstance(head, Classes)):
            raise ValueError(
                "release: its head gives several numbers or numbers of units, expected classes or one "
                "number; call its module on params: load_release(folder).module(params)"
            )
        self.release, self.functional = release, functional.eval()
        family = release.family
        known = family is not None and family["name"] in family_names()
        self.family = make_family(**family) if known and family is not None else None
        calibration = release.results.get("calibration")
        self.calibration: Mapping[str, Any] = calibration if isinstance(calibration, Mapping) else {}

    def __repr__(self) -> str:
        return f"Predictor({self.release.name!r}, {self.functional.config['head']}, family {self.family})"

    @overload
    def __call__(self, models: nn.Module, *, example_input: Any = None) -> Prediction: ...
    @overload
    def __call__(self, models: Sequence[nn.Module], *, example_input: Any = None) -> list[Prediction]: ...
    def __call__(self, models: Any, *, example_input: Any = None) -> Any:
        """Predict.

        Args:
            models: A network, or a list of networks of any mix of widths; not modified.
            example_input: What their forward takes, for tracing; by default zeros of the family's input
                shape.

        Returns:
            A prediction, or a list of them.

        Raises:
            FamilyMismatchError: A network is outside of the family; the first difference is named.
            ValueError: No network, or weights that are NaN or infinite.

        Warns:
            OutOfFamilyWarning: Other hidden widths than the family's, or weights of other sizes than those of
                the networks that it was trained on, such as those of an untrained network.
        """
        single = isinstance(models, nn.Module)
        where = lambda i: "" if single else f"models[{i}]: "  # noqa: E731
        many = as_list(models)
        check_networks(many, inplace=False, frozen="keep", where=where)
        with plain():
            networks = read_networks(self.functional.spec, many, example_input, self.family, where)
            warn_widths({change for network in networks for change in network.match.width_changes})
            for i, network in enumerate(networks):
                for name, value in network.params.items():
                    if not bool(value.isfinite().all()):
                        raise ValueError(
                            f"{where(i)}parameter {network.match.params[name]!r} is NaN or infinite, "
                            "expected finite weights"
                        )
            self._warn_of_sizes(networks, where)
            answers = self._answers([network.params for network in networks])
        predictions = [self._prediction(answer) for answer in answers]
        return predictions[0] if single else predictions

    def _warn_of_sizes(self, networks: Sequence[Network], where: Callable[[int], str]) -> None:
        """Warn once of all networks whose weights have other sizes than those of training."""
        bounds, texts = self.release.results.get("weight_sizes"), []
        for i, network in enumerate(networks):
            if not isinstance(bounds, Mapping) or network.match.width_changes:
                continue
            if (found := unusual(self.functional.spec, network.params, bounds)) is not None:
                name, size, low, high = found
                texts.append(
                    f"{where(i)}{network.match.params[name]!r} has root mean square {size:.3g} in balanced "
                    f"scales, networks that {self.release.name} was trained on have {low:.3g} to {high:.3g}"
                )
        if texts:
            listed = "; ".join(texts[:3]) + ("; ..." if len(texts) > 3 else "")
            warnings.warn(
                f"unlike the networks of training, as untrained networks are: {listed}; the answer and its "
                "interval mean nothing there",
                OutOfFamilyWarning,
                stacklevel=3,
            )

    def of_params(self, params: Params) -> list[Prediction]:
        """Predict for networks given as params [B, ...] by the family's names."""
        with plain():
            return [self._prediction(answer) for answer in self.functional(params)]

    def _answers(self, networks: Sequence[Params]) -> list[Tensor]:
        """The head's answer of each network; networks of equal shapes run as one batch."""
        first = next(self.functional.parameters())
        alike: dict[Any, list[int]] = {}
        for i, params in enumerate(networks):
            alike.setdefault(tuple(p.shape for p in params.values()), []).append(i)
        batches = [
            stack([{k: p.to(first) for k, p in networks[i].items()} for i in rows]) for rows in alike.values()
        ]
        answers: dict[int, Tensor] = {}
        for rows, batch in zip(alike.values(), self.functional.forward_mixed(batches), strict=True):
            answers |= dict(zip(rows, batch, strict=True))
        return [answers[i] for i in range(len(networks))]

    def _prediction(self, answer: Tensor) -> Prediction:
        radius, coverage = self.calibration.get("radius"), self.calibration.get("coverage")
        if isinstance(self.functional.head, Classes):
            p = self.functional.head.probabilities(answer)
            order = torch.argsort(p, descending=True).tolist()
            kept = [c for c in order if radius is None or 1 - float(p[c]) <= radius] or order[:1]
            return Prediction(float(p[order[0]]), label=order[0], labels=tuple(kept), coverage=coverage)
        value = float(answer[0])
        if radius is None:
            return Prediction(value)
        low, high = value - radius, value + radius
        ends = (getattr(self.functional.head, "low", None), getattr(self.functional.head, "high", None))
        low, high = (
            (low if ends[0] is None else max(low, ends[0])),
            (high if ends[1] is None else min(high, ends[1])),
        )
        return Prediction(value, low, high, coverage=coverage)


def load(source: str | os.PathLike[str]) -> Callable[..., Any]:
    """Load a release as something to call on a network.

    Args:
        source: A folder, the name of a shipped checkpoint, or a Hugging Face hub id.

    Returns:
        A [Predictor][amortopt.reading.Predictor] for a functional: network to prediction. For a metanet, its
        ``one_shot``: network to new network.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: A file was truncated or altered, or it is an update rule.
    """
    release = load_release(source)
    if release.kind == "functional":
        return Predictor(release)
    if release.kind == "metanet":
        return ScaleGMNOptimizer.from_pretrained(source).one_shot
    raise ValueError(
        f"source: {source} holds an update rule, which steps a model; use "
        "UNFOptimizer.from_pretrained(source, model, example_input=x)"
    )


def predict(
    models: Any, predictor: str | os.PathLike[str] | None = None, *, example_input: Any = None
) -> Any:
    """Predict a property of a network, or of many, from the weights alone.

    Args:
        models: A network or a list of networks.
        predictor: Name or folder of a release; by default the first shipped predictor whose family the
            networks belong to.
        example_input: As for [Predictor][amortopt.reading.Predictor].

    Returns:
        A [Prediction][amortopt.reading.Prediction], or a list of them.

    Raises:
        FamilyMismatchError: The networks are outside of the predictor's family, or of that of every shipped
            one; the differences are named.
        ValueError: What the predictor raises.
    """
    if predictor is not None:
        return Predictor(load_release(predictor, "functional"))(models, example_input=example_input)
    differences = []
    for name in list_shipped("functional"):
        try:
            return Predictor(load_release(name, "functional"))(models, example_input=example_input)
        except FamilyMismatchError as error:
            differences.append(f"{name}: {error}")
    raise FamilyMismatchError(
        "models: no shipped predictor is for such networks"
        + "".join(f"; {difference}" for difference in differences)
        + "; train one with `amortopt fit`, and pass predictor="
    )
