"""What one call of ``one_shot`` did to each network."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class NetworkReport:
    """What one call did to one network.

    Losses are means over the network's batch, without an L1 term; None or empty if no batch was read.

    Attributes:
        examples: Number of examples that were read; 0 if no batch was.
        given: Loss of the network as it was given.
        losses: Loss of every proposal that a gradient was taken at, on the examples that the round read, and
            last of the result on all: R + 1 numbers for R rounds, the first one of the learned prototype.
        gradients: Norm of each of these gradients.
        held: Objective on the examples that ``accept="holdout"`` kept back, as given and after; loss plus L1
            strength times L1 norm.
        seconds: Time of the call's computation, shared evenly among the networks that ran as one batch.
        notes: What is worth knowing and no cause for alarm, such as classes that the batch does not have.
        warnings: What lies outside of what the checkpoint was made for.
        accepted: Whether the result was taken; False: the network's weights are as they were.
    """

    examples: int = 0
    given: float | None = None
    losses: tuple[float, ...] = ()
    gradients: tuple[float, ...] = ()
    held: tuple[float, float] | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    accepted: bool = True

    @property
    def after(self) -> float | None:
        """Loss of the result on the batch; None if no batch was read."""
        return self.losses[-1] if self.losses else None

    def __str__(self) -> str:
        parts = [f"{1000 * self.seconds:.2g} ms"]
        if self.given is not None:
            path = " -> ".join(f"{loss:.3f}" for loss in self.losses)
            parts.append(f"loss on {self.examples} examples {self.given:.3f}; on the way {path}")
        if self.held is not None:
            parts.append(f"held back {self.held[0]:.3f} -> {self.held[1]:.3f}")
        parts.append("taken" if self.accepted else "not taken, weights are as they were")
        lines = [", ".join(parts), *(f"note: {note}" for note in self.notes)]
        return "\n  ".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


@dataclass(frozen=True)
class Report:
    """What one call of ``one_shot`` did.

    Attributes:
        networks: One for every network, in order.
        seconds: Time of the whole call, tracing and checks included.
    """

    networks: tuple[NetworkReport, ...]
    seconds: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """Every warning once."""
        return tuple(dict.fromkeys(text for network in self.networks for text in network.warnings))

    def __str__(self) -> str:
        taken = sum(network.accepted for network in self.networks)
        head = f"{taken} of {len(self.networks)} results taken, {self.seconds:.2g} s"
        before = [network.given for network in self.networks if network.given is not None]
        after = [network.after for network in self.networks if network.after is not None]
        if before and after:
            head += f"; mean loss on the batches {fmean(before):.3f} -> {fmean(after):.3f}"
        shown = [f"{i}: {network}" for i, network in enumerate(self.networks[:_SHOWN])]
        if len(self.networks) > _SHOWN:
            shown.append(f"... and {len(self.networks) - _SHOWN} more, in .networks")
        return "\n".join([head, *shown])


_SHOWN = 20
