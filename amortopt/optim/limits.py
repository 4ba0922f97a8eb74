"""Where a problem or a network lies outside of what a checkpoint was made for, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from amortopt.functional.networks import l1_norm
from amortopt.optim.running import Batch, Fleet, Improved
from amortopt.release import FamilyStatistics
from amortopt.release.statistics import describe
from amortopt.tasks import CrossEntropy, Objective, SquaredError

WORSE = "came out worse"
"""In a warning of a network that was better before, on its own batch."""
_WRONG, _LEAST = 1.25, 0.5
"""Factor on the loss of guessing beyond which a network's answers are wrong with confidence, and by how
much at least: among few classes an untrained network may already be further off than by the factor."""


def find_limits(
    batch: Batch,
    before: Mapping[str, Tensor],
    improved: Improved,
    l1: Tensor | None,
    statistics: FamilyStatistics | None,
    *,
    comparable: bool = True,
) -> tuple[list[list[str]], list[list[str]]]:
    """Notes and warnings on each of B networks.

    Args:
        batch: What the pass read.
        before: Params [B, ...] of the networks as given.
        improved: What came out.
        l1: L1 strengths [B]; None: 0.
        statistics: Of the checkpoint's family; None if they were not measured.
        comparable: Whether gradients were taken on as many examples as when the statistics were measured. If
            not, losses and gradients on the way are not held against them.

    Returns:
        Texts for every network: notes, and warnings.
    """
    count = len(next(iter(before.values())))
    found = describe(batch.examples, batch.objective, count)
    sizes = batch.examples.counts(count).tolist()
    plain = [True] * count if l1 is None else (l1 == 0).tolist()
    assert improved.given is not None
    given, after = improved.given, improved.losses[-1]
    penalty = [0.0] * count
    if l1 is not None:
        change = l1_norm(dict(improved.params)).double() - l1_norm(dict(before)).double()
        penalty = (l1.to(change) * change).tolist()
    met = {name: values.tolist() for name, values in found.items()}
    for step, values in enumerate(improved.losses):
        met[f"loss {step}"] = values.tolist()
    for step, values in enumerate(improved.gradients):
        met[f"gradient {step}"] = values.tolist()
    chance = _guessing(batch.objective, found, count)
    notes: list[list[str]] = []
    warnings: list[list[str]] = []
    for b in range(count):
        at = {name: values[b] for name, values in met.items()}
        if not plain[b] or not comparable:
            # Statistics are those of the objective without L1, and of a pass with all its rounds.
            at = {name: value for name, value in at.items() if not name.startswith(("loss", "gradient"))}
        worse = float(after[b]) + penalty[b] - float(given[b])
        notes.append(_missing_classes(batch, at, b, count))
        warnings.append(_outside(at, sizes[b], statistics))
        known = None if statistics is None else statistics.at("given", sizes[b])
        guessing = chance[b]
        if guessing is not None and float(given[b]) > max(
            _WRONG * guessing, guessing + _LEAST, known[2] if known else 0
        ):
            warnings[b].append(
                f"the network was wrong on this batch with confidence (loss {float(given[b]):.3g}, guessing "
                f"has {guessing:.3g}), as one that was trained for another problem is; its weights are "
                "replaced by those for this problem"
            )
        if worse > 1e-6 * max(1.0, abs(float(given[b]))):
            by = f"loss {float(given[b]):.3g} -> {float(after[b]):.3g}"
            by += "" if plain[b] else f", and L1 strength times L1 norm by {penalty[b]:+.3g}"
            warnings[b].append(
                f"the network {WORSE} than it was on its own batch ({by}), which is usual where it "
                "was trained on this very batch; let other examples decide, by a loss on these as accept=, "
                "or by accept='holdout' where it was not"
            )
    return notes, warnings


_SURE, _CHANCE = 2.5, 1.2
"""Times chance, 1 / C of C classes: from which mean probability of its answers on a network is sure of them,
and up to which share of equal answers two networks have nothing in common."""


_ELEMENTS = 2**22
"""Input elements of all networks at once, which bounds the memory."""


def random_inputs(shape: Sequence[int]) -> Tensor:
    """Standard normal inputs [1024, *shape], always the same."""
    return torch.randn(1024, *shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def find_replaced(
    fleet: Fleet, before: Mapping[str, Tensor], after: Mapping[str, Tensor], inputs: Tensor
) -> list[list[str]]:
    """Warnings on each of B networks whose answers have nothing to do with those that come out.

    A pass that reads no batch makes of every network one for its own problem. What it was trained for may be
    another one. On random inputs, networks that were trained on MNIST-1D for 20 to 400 steps have 15 to 35 %
    of their answers in common with the result, those that were trained for other problems 4 to 12 %.

    Args:
        fleet: What runs the networks.
        before: Params [B, ...] as given.
        after: Params [B, ...] that came out.
        inputs: [n, ...].
    """
    chance = 1.0
    at_once = max(16, _ELEMENTS // (fleet.count * inputs[0].numel()))
    sure, common = torch.zeros(fleet.count), torch.zeros(fleet.count)
    for part in inputs.split(at_once):
        given, new = (
            fleet.answers(dict(at), part, SquaredError()).examples.y.cpu() for at in (before, after)
        )
        if given.ndim != 3:  # not one class per input
            return [[]] * fleet.count
        chance = 1 / given.shape[-1]
        sure += given.softmax(-1).amax(-1).sum(1) / len(inputs)
        common += (given.argmax(-1) == new.argmax(-1)).sum(1) / len(inputs)
    return [
        [
            "the network was confident of other answers than the result gives (on random inputs "
            f"{float(common[b]):.0%} are equal, guessing has {chance:.0%}), as one that was trained for "
            "another problem is; its weights are replaced by those for the checkpoint's problem"
        ]
        if float(sure[b]) >= _SURE * chance and float(common[b]) <= _CHANCE * chance
        else []
        for b in range(fleet.count)
    ]


def _guessing(objective: Objective, found: Mapping[str, Tensor], count: int) -> Sequence[float | None]:
    """Loss of the best constant answer, as far as it is known."""
    if isinstance(objective, CrossEntropy):
        return [math.log(objective.num_classes)] * count
    if "target std" in found:
        return found["target std"].square().tolist()
    return [None] * count


def _missing_classes(batch: Batch, at: Mapping[str, float], b: int, count: int) -> list[str]:
    objective, examples = batch.objective, batch.examples
    if not isinstance(objective, CrossEntropy) or at.get("classes", 0) >= objective.num_classes:
        return []
    y = examples.y if examples.shared else examples.y[b]
    if examples.mask is not None:
        y = y[examples.mask if examples.shared else examples.mask[b]]
    present = set(y.unique().tolist())
    missing = [c for c in range(objective.num_classes) if c not in present]
    if not missing:
        return []
    listed = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
    return [f"no example of {'class' if len(missing) == 1 else 'classes'} {listed} is in the batch"]


def _outside(at: Mapping[str, float], examples: float, statistics: FamilyStatistics | None) -> list[str]:
    """What lies outside of the family's ranges; of several symptoms of one cause the first."""
    if statistics is None:
        return []
    if examples < (fewest := statistics.sizes[0]) / 2:
        # What so few examples look like was not measured.
        few = f"{examples:g} example{'s' * (examples != 1)}"
        return [f"{few}, the checkpoint was made for {fewest:g} and more"]
    ranges = {name: bounds for name in at if (bounds := statistics.at(name, examples)) is not None}

    def off(*names: str, only_high: bool = False) -> str | None:
        for name in names:
            if name in ranges:
                low, _, high = ranges[name]
                if at[name] > high or (at[name] < low and not only_high):
                    return name
        return None

    def range_of(name: str) -> str:
        low, _, high = ranges[name]
        return f"{at[name]:.3g}, the family's {max(low, 0):.3g} to {high:.3g}"

    texts = []
    n = f"{examples:g} example{'s' * (examples != 1)}"
    if off("mean", "std"):
        mean, std = ranges["mean"][1], ranges["std"][1]
        standard = abs(mean) < 0.1 and abs(std - 1) < 0.1
        texts.append(
            f"inputs have mean {at['mean']:.2g} and standard deviation {at['std']:.2g}; the checkpoint's "
            f"family has mean {_rounded(mean)} and {_rounded(std)}: "
            + ("standardise with x = (x - x.mean()) / x.std()" if standard else "prepare x as there")
        )
    elif name := off("norm", "norm low", "norm high", "kurtosis", "roughness"):
        what = {
            "norm": "half of the inputs have a root mean square below",
            "norm low": "10 % of the inputs have a root mean square below",
            "norm high": "90 % of the inputs have a root mean square below",
            "kurtosis": "inputs are distributed in another way: their kurtosis is",
            "roughness": "neighbouring numbers of an input differ in another way: in the mean, in standard "
            "deviations, by",
        }[name]
        texts.append(f"{what} {range_of(name)}")
    if off("target mean", "target std"):
        texts.append(
            f"targets have mean {at['target mean']:.2g} and standard deviation {at['target std']:.2g}; the "
            f"family has mean {ranges['target mean'][1]:.2g} and {ranges['target std'][1]:.2g}"
        )
    if "classes" in ranges and at["classes"] < ranges["classes"][0]:
        texts.append(
            f"classes in the batch: {at['classes']:g}, the family's batches of {n} have at least "
            f"{ranges['classes'][0]:g}"
        )
    last = max((name for name in at if name.startswith("loss")), default="", key=lambda k: int(k.split()[1]))
    if last and off(last, only_high=True):
        texts.append(
            f"the loss after the pass on {n} is {range_of(last)}: the problem is harder than those, or its "
            "targets do not follow from its inputs"
        )
    elif not texts and (name := off("gradient 0")):
        texts.append(f"the norm of the first gradient on {n} is {range_of(name)}")
    return texts


def _rounded(value: float) -> str:
    return f"{value + 0.0:.1f}" if abs(value) >= 0.05 else "0.0"
