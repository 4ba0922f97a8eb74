"""The end of a run that trained a functional or an editor: measure it on test networks, write the release."""

from __future__ import annotations

import os
from typing import Any

from amortopt.meta.functional.module import FunctionalModule
from amortopt.meta.one_pass.results import hardware
from amortopt.metanets import Classes, Functional
from amortopt.reading.scores import calibrate, distances
from amortopt.reading.sizes import measure_sizes
from amortopt.release import Release, save_release


def write_functional_release(
    folder: str | os.PathLike[str],
    module: FunctionalModule,
    *,
    name: str,
    recipe: dict[str, Any],
    seed: int,
    steps: int,
    seconds: float,
    commit: str | None,
) -> dict[str, Any]:
    """Measure the average on test networks, and write its release.

    Args:
        folder: Where it goes.
        module: Trained module.
        name: Name of the release.
        recipe: All settings of the run.
        seed: Seed of the run.
        steps: Steps of the run.
        seconds: Time of training.
        commit: Commit of the code that trained.

    Returns:
        ``"test"``: scores, see ``FunctionalModule.scores``; ``"networks"`` per part; ``"calibration"``: the
        interval that val networks showed (see `calibrate`), with the share of test networks in it;
        ``"weight_sizes"``: what is usual (see `measure_sizes`); ``"training"``.

    Raises:
        ValueError: If the weights are not finite, or the folder holds something else.
        OSError: If it cannot be written.
    """
    data, average = module.data, module.average
    assert average is not None
    test = data.part("test", module.device)
    results: dict[str, Any] = {
        "networks": {which: len(data.part(which)) for which in ("train", "val", "test")},
        "test": module.scores("test"),
    }
    if isinstance(average, Functional) and (average.head.raw == 1 or isinstance(average.head, Classes)):
        val = data.part("val", module.device)
        calibration = calibrate(average, module.raw(val.params), val.labels)
        if calibration["radius"] is not None:
            inside = distances(average, module.raw(test.params), test.labels) <= calibration["radius"]
            calibration["test_coverage"] = inside.double().mean().item()
        results["calibration"] = calibration
    if isinstance(average, Functional):
        results["weight_sizes"] = measure_sizes(average.spec, data.part("train").params)
    results["training"] = {
        "steps": steps,
        "seconds": round(seconds, 1),
        "hardware": hardware(module.device),
    }
    trained_on = {"family": data.family.to_config()}
    if data.zoo.problem.input_shape == data.family.input_shape:
        trained_on["problem"] = data.zoo.problem.to_config()
    release = Release(
        average.eval(),
        name,
        [trained_on],
        recipe=recipe,
        seeds={"module and draws": seed},
        results=results,
        commit=commit,
    )
    save_release(folder, release)
    return results
