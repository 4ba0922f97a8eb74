"""One pass over 64 networks of 64 different widths: packed into one batch, or one dense pass per shape.

Command: `python -m benchmarks.one_shot.mixed_widths` (one minute). Prints CPU seconds on one thread, the best
of seven rounds, for 40-h1-h2-10 networks with h in 16..47 and ScaleGMN of width 64 with 8 edge channels.

Measured on AMD EPYC, packed / one by one: one layer 0.23 / 0.20 s, with the backward pass 0.41 / 0.61 s;
two layers 0.26 / 0.39 s, with the backward pass 0.66 / 0.90 s.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import torch

from amortopt._types import Params
from amortopt.metanets import Conditions, ScaleGMN
from amortopt.symmetry import extract


def mlp(a: int, b: int) -> torch.nn.Module:
    linear = torch.nn.Linear
    return torch.nn.Sequential(linear(40, a), torch.nn.Tanh(), linear(a, b), torch.nn.Tanh(), linear(b, 10))


def best_of(run: Callable[[], list[Params]], rounds: int = 7) -> float:
    """Shortest CPU time in seconds; with gradients enabled, the backward pass is included."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        results = run()
        if torch.is_grad_enabled():
            torch.stack([p.square().sum() for better in results for p in better.values()]).sum().backward()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pairs = [(a, b) for a in range(16, 48) for b in range(16, 48)]
    widths = random.Random(0).sample(pairs, 64)
    networks = [{name: p.detach()[None] for name, p in mlp(*pair).named_parameters()} for pair in widths]
    spec = extract(mlp(32, 32), torch.zeros(1, 40))
    for layers in (1, 2):
        metanet = ScaleGMN(spec, layers=layers)
        sides: dict[str, Callable[[], list[Params]]] = {
            "packed": lambda m=metanet: m.forward_mixed(networks, [Conditions()] * len(networks)),
            "one by one": lambda m=metanet: [m(network) for network in networks],
        }
        for backward in (False, True):
            with torch.set_grad_enabled(backward):
                text = ", ".join(f"{name} {best_of(run):.3f} s" for name, run in sides.items())
            print(f"layers {layers}{', with backward pass' * backward}: {text}")


if __name__ == "__main__":
    main()
