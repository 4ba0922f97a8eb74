"""The end of a run that trained an update rule: measure it, write the release."""

from __future__ import annotations

import os
from typing import Any

from amortopt.meta.one_pass.results import hardware
from amortopt.meta.rule.inner import validate
from amortopt.meta.rule.module import UpdateRuleModule
from amortopt.release import Release, save_release


def write_rule_release(
    folder: str | os.PathLike[str],
    module: UpdateRuleModule,
    *,
    name: str,
    recipe: dict[str, Any],
    seed: int,
    steps: int,
    seconds: float,
    commit: str | None,
) -> dict[str, Any]:
    """Train networks of unseen initialisations with the averaged rule, and write its release.

    Args:
        folder: Where it goes.
        module: Trained module.
        name: Name of the release.
        recipe: All settings of the run.
        seed: Seed of the run.
        steps: Meta steps of the run.
        seconds: Time of training.
        commit: Commit of the code that trained.

    Returns:
        ``"horizon"`` in inner steps; ``"problems"``: per inner problem the number of networks, the mean over
        steps of the loss on minibatches, and the mean and largest final loss, in nats; ``"training"``.

    Raises:
        ValueError: If the weights are not finite, or the folder holds something else.
        OSError: If it cannot be written.
    """
    horizon, networks = module.hparams["horizon"], module.hparams["val_networks"]
    problems = {}
    for problem, inner in zip(module.names, module.inner, strict=True):
        mean, final = validate(module.average, inner.to(module.device), networks, horizon)
        problems[problem] = {
            "networks": networks,
            "batch": inner.batch,
            "mean_loss": mean.mean().item(),
            "final_loss": final.mean().item(),
            "max_final_loss": final.max().item(),
        }
    results: dict[str, Any] = {"horizon": horizon, "problems": problems}
    results["training"] = {
        "steps": steps,
        "skipped_gradients": module.skipped,
        "diverged_networks": sum(runs.diverged for runs in module.runs),
        "seconds": round(seconds, 1),
        "hardware": hardware(module.device),
    }
    release = Release(
        module.average,
        name,
        [{"problem": one.problem.to_config(), "family": one.family.to_config()} for one in module.inner],
        recipe=recipe,
        seeds={"rule and draws": seed},
        results=results,
        commit=commit,
    )
    save_release(folder, release)
    return results
