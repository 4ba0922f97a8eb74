"""The end of a run: measure the metanet on test networks and test data, write the release checkpoint."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import amortopt
from amortopt.meta.one_pass.data import ZooDataModule
from amortopt.meta.one_pass.fleet_data import FleetDataModule
from amortopt.meta.one_pass.module import OnePassModule
from amortopt.meta.one_pass.problem_data import ProblemDataModule
from amortopt.release import Release, measure_statistics, save_release
from amortopt.tasks import ProblemFamily, evaluate_many


@torch.no_grad()
def write_release(
    folder: str | os.PathLike[str],
    module: OnePassModule,
    data: ZooDataModule | ProblemDataModule | FleetDataModule,
    *,
    name: str,
    recipe: dict[str, Any],
    seed: int,
    steps: int,
    seconds: float,
    commit: str | None,
    rivals: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure what the averaged metanet does to test networks, on the test data; write its release.

    Args:
        folder: Where it goes.
        module: Trained module; its average is released.
        data: Loaded data, on the module's device.
        name: Name of the checkpoint.
        recipe: All settings of the run.
        seed: Seed of the run.
        steps: Steps of the run.
        seconds: Time of training.
        commit: Commit of the code that trained; see [commit][amortopt.meta.one_pass.results.commit].
        rivals: What other ways to improve the same test networks are called -> losses [n] and scores [n] that
            they reach.
        facts: What else to record among the results.

    Returns:
        Scores (accuracies in [0, 1], PSNR in dB; with the standard error of their mean over networks) and
        losses ``"before"`` and ``"after"`` all passes, number of networks, mean ratio of the L1 norms after
        and before. For a metanet that reads L1 strengths, ``"after"`` is at strength 0 (at the lowest one if
        0 is not trained), and ``"by l1"`` is a table over some of them, with the objective (loss plus
        strength times L1 norm) and the L1-norm cut in it.

    Raises:
        ValueError: If the weights are not finite, or the folder holds something else.
        OSError: If it cannot be written.
    """
    held = data.testing()
    networks, test, read = held.params, held.data, held.read
    strengths = [0.0]
    if data.l1_range is not None:
        strengths = ([0.0] if data.l1_range.zero else []) + data.l1_range.points(5)
    reached = {l1: module.evaluate(module.average, networks, test, read, l1=l1)["test"] for l1 in strengths}
    first = reached[strengths[0]]
    objective = module.problem.objective
    summary = partial(_summary, objective.score_name)
    loss, score = evaluate_many(module.network, networks, test["test"], objective)
    results: dict[str, Any] = {
        "networks": len(loss),
        "data": "test",
        "l1_norm_ratio": 1 - first.l1_cut.mean().item(),
        "before": summary(loss, score),
        **{key: summary(*reached) for key, reached in (rivals or {}).items()},
        "after": summary(first.loss, first.score),
        **(facts or {}),
    }
    if data.l1_range is not None:
        results["by l1"] = {
            f"{strength:g}": summary(result.loss, result.score)
            | {"mean_objective": result.objective.mean().item(), "mean_l1_cut": result.l1_cut.mean().item()}
            for strength, result in reached.items()
        }
    results["training"] = {
        "steps": steps,
        "skipped_steps": module.skipped,
        "seconds": round(seconds, 1),
        "hardware": hardware(module.device),
    }
    statistics = None
    # A fleet's data stay where they are: the module's problem is only what the release records of them.
    problems = data.problems if isinstance(data, FleetDataModule) else module.problem
    if not isinstance(data, ZooDataModule) and isinstance(problems, ProblemFamily) and data.read is not None:
        fewest, most = data.read
        statistics = measure_statistics(
            module.average, module.network, networks, problems, fewest=fewest, examples=most
        )
    release = Release(
        module.average,
        name,
        [{"problem": module.problem.to_config(), "family": module.family.to_config()}],
        recipe=recipe,
        seeds={"metanet and draws": seed} | data.seeds(),
        results=results,
        commit=commit,
        l1_range=data.l1_range,
        passes=module.passes,
        statistics=statistics,
    )
    save_release(folder, release)
    return results


def _summary(name: str, loss: Tensor, score: Tensor) -> dict[str, float]:
    # Of the mean over networks: how little a few of them say.
    error = {"standard_error": score.std().item() / len(score) ** 0.5} if len(score) > 1 else {}
    return {
        f"mean_{name}": score.mean().item(),
        **error,
        f"max_{name}": score.max().item(),
        f"min_{name}": score.min().item(),
        "mean_loss": loss.mean().item(),
    }


_RESULTS = (":(exclude)benchmarks/results", ":(exclude)docs/results")


def commit() -> str | None:
    """Commit of the checkout that the package runs from, with "-dirty" if it was changed since.

    Results of measurements are no change: what writes them runs the code of the commit. Ask at the start of
    a run: the checkout may have moved on by its end.

    Returns:
        The hash; None if the package does not run from a git checkout.
    """
    root = Path(amortopt.__file__).resolve().parent.parent
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None

    def ask(*arguments: str) -> str:
        command = [git, "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    try:
        changed = ask("status", "--porcelain", "-uno", "--", ".", *_RESULTS)
        return ask("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (subprocess.SubprocessError, OSError):
        return None


def hardware(device: torch.device) -> str:
    """What a run used, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''} of {os.cpu_count()} cores"
