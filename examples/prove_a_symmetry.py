"""Find the symmetry of a torchvision network, prove it, and move the network along it.

    python examples/prove_a_symmetry.py                 # resnet18
    python examples/prove_a_symmetry.py --network squeezenet1_1 --probes 2

Needs torchvision (amortopt[vision]).
Measured: 6 s on one core of an Intel Xeon.
"""

from __future__ import annotations

import argparse

import torch
import torchvision

from amortopt import symmetry


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet18", help="a name in torchvision.models")
    parser.add_argument("--probes", type=int, default=8, help="things outside the table to try")
    options = parser.parse_args()
    torch.manual_seed(0)
    net = torchvision.models.get_model(options.network).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)

    spec = symmetry.extract(net, images)
    print(
        f"{options.network}: {len(spec.params)} parameters, {len(spec.groups)} groups of units, for example"
    )
    print(
        "\n".join(
            f"  {group.name}: {group.size} units, {group.kind}, {group.origin}" for group in spec.groups[:4]
        )
    )
    print(spec.gauge_dimension())
    print(spec.verify(net, images, elements=1, probes=options.probes))

    # Permute and rescale units at random, running statistics of norms included.
    g = symmetry.sample(
        spec, generator=torch.Generator().manual_seed(0), low=0.1, high=10.0, dtype=torch.float64
    )
    tensors = dict([*net.named_parameters(), *net.named_buffers()])
    weights = {name: tensors[name].detach().clone() for name in [*spec.params, *spec.buffers]}
    moved = symmetry.act(spec, g, weights)
    with torch.no_grad():
        before = net(images)
        for name, value in moved.items():
            tensors[name].copy_(value)
        after = net(images)
    distance = sum((moved[name] - weights[name]).norm() ** 2 for name in weights) ** 0.5
    size = sum(value.norm() ** 2 for value in weights.values()) ** 0.5
    change = (after - before).norm() / before.norm()
    print(f"weights moved by {distance / size:.2f} times their norm, outputs by {change:.1e} of theirs")

    back = symmetry.act(spec, symmetry.inverse(g), moved)
    error = max(
        ((back[name] - weights[name]).norm() / weights[name].norm().clamp_min(1e-300)).item()
        for name in weights
    )
    print(f"the inverse brings every tensor back to within {error:.0e}")


if __name__ == "__main__":
    main()
