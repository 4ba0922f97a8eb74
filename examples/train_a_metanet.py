"""Meta-train a one-pass metanet on data of your own, at tiny size, and use it.

    python examples/train_a_metanet.py                  # 100 meta steps
    python examples/train_a_metanet.py --steps 5 --networks 40

The data are two spirals in the plane. First a zoo of lightly trained networks is built, then the metanet is
trained to improve them in one pass, then it improves networks that it has not seen. Everything goes into a
temporary folder. Needs amortopt[train].
Measured: 6 s on one core of an Intel Xeon.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import amortopt
from amortopt.cli.main import main as amortopt_command
from amortopt.tasks import ArrayProblem, make_problem, register_problem
from amortopt.zoo import ZooConfig, build_zoo, load_zoo

FAMILY = {"name": "mlp", "activation": "tanh", "widths": [2, 16, 16, 2]}


@register_problem("spirals")
def spirals() -> ArrayProblem:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(2, (1500,), generator=g)
    angle = 4 * torch.rand(1500, generator=g) + 0.5
    turned = angle + 3.14159 * y + 0.15 * torch.randn(1500, generator=g)
    x = 0.5 * torch.stack([angle * turned.cos(), angle * turned.sin()], dim=1)
    return ArrayProblem((x[:1000], y[:1000]), test=(x[1000:], y[1000:]), name="spirals")


@torch.no_grad()
def accuracies(nets: list[nn.Module], x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([(net(x).argmax(1) == y).float().mean() for net in nets])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100, help="meta steps")
    parser.add_argument("--networks", type=int, default=128, help="in the zoo")
    options = parser.parse_args()
    problem = make_problem("spirals")
    with tempfile.TemporaryDirectory() as scratch:
        zoo_folder, runs = Path(scratch) / "zoo", Path(scratch) / "runs"
        recipe = ZooConfig(problem={"name": "spirals"}, family=FAMILY, count=options.networks, epochs=5)
        build_zoo(recipe, zoo_folder, progress=False)
        print(load_zoo(zoo_folder))

        settings = {
            "name": "spirals",
            "runs": runs,
            "model.problem.name": "spirals",
            **{f"model.family.{key}": str(value) for key, value in FAMILY.items()},
            "model.metanet.name": "scalegmn",
            "model.metanet.width": 32,
            "model.metanet.layers": 1,
            "model.start": "proposal",
            "data.zoo": zoo_folder,
            "data.networks": 8,
            "data.examples": 256,
            "data.val_networks": 4,
            "trainer.max_steps": options.steps,
            "trainer.accelerator": "cpu",
            "trainer.enable_progress_bar": "false",
        }
        if amortopt_command(["fit", *(f"--{key}={value}" for key, value in settings.items())]) != 0:
            raise SystemExit("fit failed")

        opt = amortopt.ScaleGMNOptimizer.from_pretrained(runs / "spirals" / "release")
    torch.manual_seed(1)
    nets = [opt.family.build() for _ in range(16)]  # fresh networks, from no zoo
    test = problem.split("test")
    before = accuracies(nets, test.x, test.y).mean()
    after = accuracies(opt.one_shot(nets), test.x, test.y).mean()
    print(f"16 new networks: {100 * before:.1f} % test accuracy, after one pass {100 * after:.1f} %")


if __name__ == "__main__":
    main()
