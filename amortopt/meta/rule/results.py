"""The end of a run that trained an update rule: measure it, write the release."""

from __future__ import annotations

import os
from typing import Any

from amortopt.meta.one_pass.results import hardware
from amortopt.meta.rule.inner import validate
from amortopt.meta.rule.module import UpdateRuleModule
from amortopt.metanets.update_rule.rule import UNFRule
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
        steps of the loss on minibatches, and the mean and largest final loss and the mean held-out one, in
        nats, and the final ones of a rule that has learned nothing, which is Muon and Adam; ``"training"``.

    Raises:
        ValueError: If the weights are not finite, or the folder holds something else.
        OSError: If it cannot be written.
    """
    networks, lr = module.hparams["val_networks"], module.hparams["val_lr"]
    horizon = module.hparams["val_horizon"] or module.hparams["horizon"]
    fresh = UNFRule("none")  # Muon and Adam
    problems = {}
    for problem, inner in zip(module.names, module.inner, strict=True):
        measured = {}
        for which, rule in (("trained", module.average), ("untrained", fresh)):
            mean, final, held_out = validate(rule, inner.to(module.device), networks, horizon, lr)
            measured[which] = {
                "mean_loss": mean.mean().item(),
                "final_loss": final.mean().item(),
                "max_final_loss": final.max().item(),
                "held_out_loss": held_out.mean().item(),
            }
        untrained = {
            f"untrained_{key}": measured["untrained"][key] for key in ("final_loss", "held_out_loss")
        }
        problems[problem] = {"networks": networks, "batch": inner.batch, **measured["trained"], **untrained}
    results: dict[str, Any] = {"horizon": horizon, "lr": lr, "problems": problems}
    results["training"] = {
        "steps": steps,
        "skipped_gradients": module.skipped,
        "diverged_networks": sum(runs.diverged for runs in module.runs) if steps else 0,
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
