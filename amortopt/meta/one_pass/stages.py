"""What is meta-trained one after the other: readings and rounds, each with a schedule of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from amortopt.metanets import Metanet, Rounds
from amortopt.metanets.rounds.model import Reading


@dataclass(frozen=True)
class Stage:
    """A part of meta-training, with a schedule of learning rates of its own.

    A stage begins where earlier ones are: with the maps of the last stage of its reading, or else of the last
    stage; rounds that are new repeat the last trained one.

    Attributes:
        reading: What passes read: ``"batch"``, ``"function"`` or ``"both"``; None: what the metanet declares.
        rounds: Rounds of a pass; None: all that the metanet has.
        share: Share of the run's steps, in (0, 1].
    """

    reading: Reading | None = None
    rounds: int | None = None
    share: float = 1.0


class Place(NamedTuple):
    """Where a step is.

    Attributes:
        number: Number of its stage, from 0.
        first: First step of the stage.
        end: First step after it.
    """

    number: int
    first: int
    end: int


@dataclass(frozen=True)
class Stages:
    """The stages of a run, in order."""

    each: tuple[Stage, ...]

    @classmethod
    def of(cls, metanet: Metanet, stages: Sequence[Stage] | None) -> Stages:
        """Stages that a metanet can be trained in; by default its first reading with all rounds.

        Raises:
            ValueError: The shares do not sum to 1, or the metanet has not such readings or rounds.
        """
        if not isinstance(metanet, Rounds):
            if stages:
                raise ValueError(
                    f"stages: got {len(stages)}, but {metanet.name!r} has no rounds; leave them out"
                )
            return cls((Stage(),))
        if not stages:
            return cls((Stage(metanet.readings[0], metanet.rounds),))
        shares = [stage.share for stage in stages]
        if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                f"stages: got shares {shares} of all steps, expected positive ones that sum to 1"
            )
        for stage in stages:
            if stage.reading not in metanet.readings:
                raise ValueError(
                    f"stages: got the reading {stage.reading!r}, but the metanet has "
                    f"{metanet.readings}; change model.metanet.conditions"
                )
            if stage.rounds is not None and not 1 <= stage.rounds <= metanet.rounds:
                raise ValueError(
                    f"stages: got {stage.rounds} rounds, expected 1 to the metanet's {metanet.rounds}"
                )
        return cls(tuple(stages))

    def __len__(self) -> int:
        return len(self.each)

    def __getitem__(self, number: int) -> Stage:
        return self.each[number]

    def at(self, step: int, steps: int) -> Place:
        """Where step ``step`` of a run of so many is; steps beyond its end are in the last stage."""
        share = 0.0
        place = Place(0, 0, steps)
        for number, stage in enumerate(self.each):
            first = round(share * steps)
            share += stage.share
            place = Place(number, first, round(share * steps))
            if step < place.end:
                break
        return place

    def model_of(self, number: int) -> Stage | None:
        """The earlier stage where a stage begins; None for the first."""
        earlier = self.each[:number]
        same = [stage for stage in earlier if stage.reading == self.each[number].reading]
        return (same or [*earlier])[-1] if earlier else None

    def begun(self, number: int) -> dict[Reading | None, int | None]:
        """Readings that are trained in the stages up to one, with the rounds of the last stage of each."""
        return {stage.reading: stage.rounds for stage in self.each[: number + 1]}
