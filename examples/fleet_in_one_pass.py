"""Improve a fleet of networks in one forward pass, and see what one SGD run per network would have reached.

    python examples/fleet_in_one_pass.py                # 64 networks
    python examples/fleet_in_one_pass.py --networks 8 --epochs 1

The networks are tanh MLPs 40-32-32-10 for mnist1d, of a class of this file.
Measured: 6 s on one core of an Intel Xeon.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import amortopt
from amortopt.tasks import make_problem


class Net(nn.Module):
    """Any class will do: it is traced, and matched to the checkpoint's family by what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(40, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


@torch.no_grad()
def mean_accuracy(nets: list[Net], x: Tensor, y: Tensor) -> float:
    return torch.stack([(net(x).argmax(1) == y).float().mean() for net in nets]).mean().item()


def sgd(net: Net, x: Tensor, y: Tensor, epochs: int) -> Net:
    net = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    return net


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=25, help="of SGD")
    options = parser.parse_args()
    torch.manual_seed(0)
    problem = make_problem("mnist1d")
    train, val, test = problem.split("train"), problem.split("val"), problem.split("test")
    nets = [Net() for _ in range(options.networks)]

    def report(what: str, networks: list[Net], more: str = "") -> None:
        print(f"{what:22} {100 * mean_accuracy(networks, test.x, test.y):.1f} % test accuracy{more}")

    report(f"{len(nets)} fresh networks", nets)
    opt = amortopt.ScaleGMNOptimizer.from_pretrained("mnist1d-mlp-tanh")
    opt.one_shot(nets[0])  # the first call loads what later ones reuse
    start = time.perf_counter()
    better = opt.one_shot(nets)
    each = (time.perf_counter() - start) / len(nets)
    report("one pass", better, f", {1e3 * each:.1f} ms per network")

    # Where the validation loss is not lower, a network keeps its weights.
    safe = opt.one_shot(better, accept=lambda net: F.cross_entropy(net(val.x), val.y).item())
    same = sum(torch.equal(old.a.weight, new.a.weight) for old, new in zip(better, safe, strict=True))
    report("a second pass", safe, f"; validation kept {same} of {len(nets)} as they were")

    smaller = opt.one_shot(nets, l1=0.003)  # for cross-entropy + 0.003 times the L1 norm
    norms = [sum(p.abs().sum().item() for p in net.parameters()) for net in (better[0], smaller[0])]
    report("with an L1 penalty", smaller, f", L1 norm {norms[1]:.0f} in place of {norms[0]:.0f}")

    start = time.perf_counter()
    trained = sgd(nets[0], train.x, train.y, options.epochs)
    report(
        f"SGD, {options.epochs} epochs", [trained], f", {time.perf_counter() - start:.1f} s for one network"
    )


if __name__ == "__main__":
    main()
