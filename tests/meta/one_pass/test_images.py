"""Meta-training on pictures: squared error, PSNR, sines, from a recipe to `one_shot`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from amortopt import ScaleGMNOptimizer
from amortopt.cli.main import main
from amortopt.functional.networks import apply
from amortopt.meta.one_pass.module import OnePassModule
from amortopt.metanets import Rounds
from amortopt.tasks import loss_many, make_family, make_problem_family
from amortopt.tasks.problem_families.images import pixel_coordinates
from tests.meta.tiny import error_of, tiny_module

RECIPE = """
name: tiny-images
model:
  problem: {name: images, side: 8}
  family: {name: siren, widths: [2, 12, 12, 1], w0: 10.0}
  metanet: {name: rounds, rounds: 2, channels: 2, hidden: 8, step: 0.1}
  prototype: family
  log_loss: true
  lr: 0.02
  prototype_lr: 0.02
  scalar_lr: 0.003
  hold: 0.0
  ema: 0.95
  warmup_steps: 5
data:
  pool: 64
  networks: 8
  read: [64, 64]
  examples: 64
  val_networks: 8
  val_read: 64
trainer:
  max_steps: 60
  gradient_clip_val: 1.0
  val_check_interval: 30
  log_every_n_steps: 10
  limit_val_batches: 1
  accelerator: cpu
  devices: 1
"""
SIREN = make_family("siren", widths=(2, 12, 12, 1), w0=10.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("images")
    (folder / "recipe.yaml").write_text(RECIPE)
    args = ["--config", str(folder / "recipe.yaml"), "--runs", str(folder)]
    assert main(["fit", *args, "--trainer.enable_progress_bar", "false"]) == 0
    metrics = next((folder / "tiny-images").rglob("metrics.csv")).read_text()
    return folder / "tiny-images" / "release", metrics


def test_fit_learns_to_show_pictures_never_seen(run: tuple[Path, str]) -> None:
    opt = ScaleGMNOptimizer.from_pretrained(run[0])
    read, _ = make_problem_family("images", side=8).draw("test", 50, 12, 64, 64)
    networks = [SIREN.build() for _ in range(12)]
    pairs = list(zip(read.x, read.y, strict=True))

    def psnr(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        better = opt.one_shot(networks, batch=batches)
        errors = [(net(x) - y).square().mean() for net, (x, y) in zip(better, pairs, strict=True)]
        return float(-10 * torch.stack(errors).detach().log10().mean())

    # Better than the pictures' own mean grey, some being plain, and than another picture's network.
    flat = float(-10 * read.y.var(1, correction=0).clamp(min=1e-3).log10().mean())
    assert psnr(pairs) > flat + 1 > psnr([*pairs[1:], pairs[0]]) + 1


def test_validation_and_results_are_psnr(run: tuple[Path, str]) -> None:
    release, metrics = run
    columns = metrics.splitlines()[0].split(",")
    assert "val_psnr" in columns and "val_psnr_raw" in columns and "val_accuracy" not in columns
    config = json.loads((release / "config.json").read_text())
    after = config["results"]["after"]
    assert config["statistics"]["sizes"] == [64]
    assert set(after) == {"mean_psnr", "standard_error", "max_psnr", "min_psnr", "mean_loss"}
    assert "mean_psnr" in (release / "README.md").read_text()


def test_network_of_another_frequency_is_refused(run: tuple[Path, str]) -> None:
    opt = ScaleGMNOptimizer.from_pretrained(run[0])
    x = pixel_coordinates(8)
    with pytest.raises(ValueError, match="mul"):
        opt.one_shot(make_family("siren", widths=(2, 12, 12, 1), w0=20.0).build(), batch=(x, x[:, :1]))


def images_module(**options: object) -> OnePassModule:
    torch.manual_seed(0)
    return OnePassModule(
        {"name": "images", "side": 8},
        {"name": "siren", "widths": [2, 12, 12, 1], "w0": 10.0},
        {"name": "rounds", "rounds": 1, "channels": 2, "hidden": 8},
        **options,  # type: ignore[arg-type]
    )


def test_log_loss_is_the_mean_of_the_logarithms() -> None:
    module = images_module(log_loss=True)
    read, judged = module.problem.draw("train", 0, 3, 64, 64)  # type: ignore[union-attr]
    params = {name: p.expand(3, *p.shape) for name, p in SIREN.build().named_parameters()}
    (new,) = module.improve(module.metanet, params, read, None)
    losses = loss_many(module.network, new, judged, module.problem.objective)
    torch.testing.assert_close(module.meta_loss(params, judged, read, None), losses.log().mean())


def test_losses_beyond_the_most_count_by_their_logarithm() -> None:
    plain, bounded = images_module(), images_module(most_loss=0.1)
    losses = torch.tensor([0.01, 0.1, 0.2, 1e13], requires_grad=True)
    expected = torch.tensor([0.01, 0.1, 0.1 * (1 + math.log(2)), 0.1 * (1 + math.log(1e14))])
    torch.testing.assert_close(bounded._counted(losses), expected)
    (slopes,) = torch.autograd.grad(bounded._counted(losses).sum(), losses)
    torch.testing.assert_close(slopes[[0, 2, 3]], torch.tensor([1.0, 0.5, 1e-14]))
    assert plain._counted(losses) is losses
    for wrong in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match=r"most_loss: got .*, expected a positive number, or none"):
            images_module(most_loss=wrong)


def test_prototype_of_the_family_is_a_fresh_network_of_it() -> None:
    module = images_module(prototype="family")
    assert isinstance(module.metanet, Rounds)
    slots = module.metanet.matrices.unpack(module.metanet.rule("batch").start(torch.ones(1, 1)))
    fresh = {name: p[0] for name, p in slots.items()}
    x = pixel_coordinates(8)
    torch.testing.assert_close(apply(module.network, fresh, x), module.network(x), rtol=1e-4, atol=1e-6)


def test_prototype_of_the_family_needs_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    args = ["--config", str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path)]
    other = ["--model.metanet", "{name: scalegmn, width: 8, channels: 2, layers: 1, heads: 2}"]
    assert "prototype: got 'family'" in error_of([*args, *other], capsys)


def test_scores_are_printed_with_their_unit() -> None:
    assert images_module().problem.objective.score_text(29.987) == "29.99 dB"
    assert tiny_module().problem.objective.score_text(0.643) == "64.3 %"
