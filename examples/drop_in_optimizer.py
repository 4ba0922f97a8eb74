"""Train a network of your own with UNFOptimizer in the place of Adam.

    python examples/drop_in_optimizer.py                # 500 steps with each
    python examples/drop_in_optimizer.py --steps 10

A ReLU MLP 40-64-64-10 on mnist1d. Only the line that makes the optimizer differs. Adam's rate is the best of
a few, the rule's is its default; docs/results/step-by-step.md compares with optimizers that are tuned with
care.
Measured: 7 s on one core of an Intel Xeon.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import amortopt
from amortopt.tasks import make_problem


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(40, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    problem = make_problem("mnist1d")
    train, test = problem.split("train"), problem.split("test")
    for name in ("Adam", "UNFOptimizer"):
        torch.manual_seed(0)
        net = Net()
        if name == "Adam":
            optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        else:
            # Traced once with an example input; from here on an optimizer like any other.
            optimizer = amortopt.UNFOptimizer(net, example_input=train.x[:2])
        start = time.perf_counter()
        for _ in range(options.steps):
            batch = torch.randint(len(train.y), (64,))
            optimizer.zero_grad()
            F.cross_entropy(net(train.x[batch]), train.y[batch]).backward()
            optimizer.step()
        each = (time.perf_counter() - start) / options.steps
        with torch.no_grad():
            loss = F.cross_entropy(net(train.x), train.y).item()
            accuracy = (net(test.x).argmax(1) == test.y).float().mean().item()
        print(
            f"{name}: train loss {loss:.3f}, test accuracy {100 * accuracy:.1f} %, {1e3 * each:.1f} ms a step"
        )


if __name__ == "__main__":
    main()
