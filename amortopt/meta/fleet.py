"""Meta-training on a fleet of the user's own: arrays and a class in, a checkpoint out."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as changed
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from amortopt.meta.one_pass.budget import KeepBest, TimeBudget
from amortopt.meta.one_pass.data import Held
from amortopt.meta.one_pass.fleet_data import FleetDataModule
from amortopt.meta.one_pass.module import OnePassModule
from amortopt.meta.one_pass.results import commit, write_release
from amortopt.meta.one_pass.rivals import Reached, trained_by_sgd, trained_on_all, tuned_rate
from amortopt.meta.progress import FitProgress
from amortopt.meta.quiet import quiet
from amortopt.meta.state import LAST, WholeStateIO, state_to_resume
from amortopt.metanets import Rounds
from amortopt.optim import ScaleGMNOptimizer
from amortopt.release import check_name, check_target, parameter_count
from amortopt.symmetry import extract, match
from amortopt.system.files import write_whole
from amortopt.system.numbers import check_counts
from amortopt.tasks import CrossEntropy, ModuleFamily, Objective, ProblemFamily, register_network
from amortopt.tasks.problem import Which
from amortopt.tasks.problem_families import Arrays, Folder, problem_family_names

T = TypeVar("T")
EPOCHS = 25
"""Passes over the data that the baseline takes."""


def meta_train(
    build_network: Callable[[], nn.Module],
    problems: str | os.PathLike[str] | Sequence[Any] | ProblemFamily,
    folder: str | os.PathLike[str],
    *,
    replace: bool = False,
    minutes: float = 15.0,
    steps: int = 4000,
    objective: Objective | None = None,
    name: str | None = None,
    seed: int = 0,
    val: float = 0.15,
    test: float = 0.15,
    networks: int = 32,
    read: tuple[int, int] | None = None,
    input_noise: float = 0.1,
    permute_classes: bool | None = None,
    mix_classes: float = 0.5,
    metanet: Mapping[str, Any] | None = None,
    lr: float = 0.02,
    device: str | None = None,
    progress: bool = True,
) -> ScaleGMNOptimizer:
    """Meta-train a metanet that reads its problem, on problems of the user's own, and write its checkpoint.

    Everything is checked before training: every example of every problem, the network on an input, its
    symmetry. Then tuned SGD trains networks on the validation problems, which is the baseline that the
    progress shows. The weights that are best in validation are released, and measured on the test problems,
    beside SGD from fresh weights and from the learned prototype, one pretrained initialisation for all.

    A run that was stopped goes on where it was when it is called again with the same arguments: its state is
    beside the folder, in FOLDER.run, until the checkpoint is written.

    Args:
        build_network: A class or function that makes a network when called without arguments.
        problems: A folder with one ``.npz`` file per problem, which has the arrays ``x_train``, ``y_train``,
            ``x_test``, ``y_test``; or a list of ``(x_train, y_train, x_test, y_test)``; or a family of
            problems. Train examples are what a pass reads, test examples what it is judged by.
        folder: Where the checkpoint goes; a new or an empty folder.
        replace: Whether a checkpoint that the folder has already is replaced.
        minutes: Most time of meta-training. Learning rates fall to 0 by then, so a run whose ``steps`` fit
            in gives the same weights on every machine, and another one does not.
        steps: Most steps of meta-training.
        objective: What outputs and targets are compared by; by default cross-entropy for integer targets,
            with as many classes as the network has outputs, squared error for real ones.
        name: Name of the checkpoint; by default that of the folder.
        seed: Seed of the metanet, of all draws and, for a list, of the choice of problems.
        val: Share of the problems that validation takes, for a folder or a list.
        test: Share of the problems that the measurement at the end takes, for a folder or a list.
        networks: Problems per step.
        read: Smallest and largest number of examples that a pass reads in training, log-uniform. By default
            up to as many as problems have, at most 1,000, and from a twentieth of that.
        input_noise: Standard deviation of noise on the inputs in meta-training, in units of theirs.
        permute_classes: Whether problems get their classes in random order in meta-training, which is right
            where class 3 means something else in every problem. By default that is found out: it is done
            unless one network, trained on all training problems, knows the classes of the validation
            problems.
        mix_classes: Share of problems that are put together from classes of several ones, where classes are
            permuted.
        metanet: Arguments of [Rounds][amortopt.metanets.Rounds], such as ``{"rounds": 4}``.
        lr: Learning rate of the metanet's matrices and prototype.
        device: Where it runs; by default a GPU if there is one.
        progress: Whether to show a bar and a line per validation.

    Returns:
        An optimizer with the checkpoint, as ``ScaleGMNOptimizer.from_pretrained(folder)`` gives it.

    Raises:
        ValueError: A problem, the network or an argument does not fit; the message names it. The folder is as
            it was.
        FileExistsError: The folder has a checkpoint already, and ``replace`` is not set.
        FileNotFoundError: There is no such folder of problems.

    Examples:
        >>> import numpy as np, tempfile
        >>> rng = np.random.default_rng(0)
        >>> def problem():  # which side of a line through the origin is a point on?
        ...     x = rng.normal(size=(60, 2))
        ...     y = (x @ rng.normal(size=2) > 0).astype(int)
        ...     return x[:40], y[:40], x[40:], y[40:]
        >>> def build():
        ...     return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> with tempfile.TemporaryDirectory() as scratch:
        ...     fleet = [problem() for _ in range(20)]
        ...     opt = meta_train(build, fleet, scratch + "/lines", steps=3, progress=False)
        ...     x, y, *_ = map(torch.as_tensor, fleet[0])
        ...     better = opt.one_shot(build(), batch=(x.float(), y))
    """
    numbers = {"minutes": minutes, "val": val, "test": test, "input_noise": input_noise, "lr": lr}
    _check_types(numbers | {"mix_classes": mix_classes}, seed, objective, metanet, permute_classes)
    target, name, place = _checked(folder, replace, name, minutes, steps, device)
    metanet = {"name": "rounds", **(metanet or {})}
    if metanet["name"] != "rounds" or list(metanet.get("conditions", ["batch"])) != ["batch"]:
        raise ValueError(
            f"metanet: got {metanet}, expected arguments of rounds that read a batch alone; write a recipe "
            "for amortopt fit for others"
        )
    path = register_network(build_network)
    network = _seeded(seed, build_network).eval()
    at_hand = _problems_for(network, problems, objective, val=val, test=test, seed=seed)
    _check_symmetry(build_network, network, at_hand.input_shape)
    family = ModuleFamily(path, at_hand.input_shape)
    classes = at_hand.objective.num_classes if isinstance(at_hand.objective, CrossEntropy) else 0
    exchangeable = classes > 0 and not at_hand.objective.target_shape
    data = FleetDataModule(
        at_hand,
        networks=networks,
        read=read,
        input_noise=input_noise,
        seed=seed,
        permute_classes=bool(permute_classes),
        mix_classes=mix_classes if exchangeable else 0.0,
    )
    data.load(family, place)
    _warn_of_scales(data)
    problem = {key: value for key, value in at_hand.to_config().items() if key != "path"}
    module = _seeded(
        seed,
        lambda: OnePassModule(
            problem,
            family.to_config(),
            metanet,
            prototype="normal" if _is_plain(network) else "family",
            lr=lr,
            prototype_lr=lr,
            scalar_lr=0.003,
            hold=0.0,
            ema=0.995 if steps >= 1000 else 0.98,
            warmup_steps=min(50, steps // 10),
        ),
    )
    recipe = {
        **{"problems": problem, "network": path, "metanet": metanet, "minutes": minutes, "steps": steps},
        **{"seed": seed, "networks": networks, "read": list(data.read or ()), "input_noise": input_noise},
        **{"permute_classes": permute_classes, "mix_classes": mix_classes, "lr": lr},
    }
    run = target.with_name(f"{target.name}.run")
    state, commit_at_start = _state(run, recipe | {"data": _digest(data)}), commit()

    rivals = _rivals(network, data, seed)
    if exchangeable and permute_classes is None:
        data.permute_classes = not _is_known(rivals[_COMMON]["val"], classes)
    if not data.permute_classes:
        data.mix_classes = 0.0
    goal = at_hand.objective.score_text(float(rivals[_SGD]["val"].score.mean()))
    if progress:
        print(
            f"{len(data.pooled.x)} problems to train on, {len(data.validation().read.x)} to validate, "
            f"{len(data.testing().read.x)} to test; networks of {path} with {parameter_count(network):,} "
            f"parameters\nto beat in validation: {goal} by {_SGD} on the same examples"
        )

    every, best, budget = max(1, min(200, steps // 10)), KeepBest(), TimeBudget(minutes, steps)
    saving = ModelCheckpoint(  # after every validation
        run, filename=LAST.removesuffix(".ckpt"), save_on_train_epoch_end=False, enable_version_counter=False
    )
    shown = [FitProgress(goal=f"{goal} by {_SGD}")] if progress else []
    with quiet():
        trainer = L.Trainer(
            accelerator="gpu" if place.type == "cuda" else "cpu",
            devices=1,
            max_epochs=-1,
            max_steps=steps,
            val_check_interval=every,
            limit_val_batches=1,
            num_sanity_val_steps=0,
            log_every_n_steps=every,
            gradient_clip_val=1.0,
            enable_model_summary=False,
            enable_progress_bar=progress,
            logger=False,
            callbacks=[best, budget, saving, *shown],
            plugins=[WholeStateIO()],
        )
        trainer.fit(module, data, ckpt_path=state, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt  # which Lightning has taken to close the run; its state is kept
    module.to(place)
    best.finish(module, data.validation(), trainer.global_step)
    rivals[_PROTOTYPE] = _from_prototype(module, data, seed)
    results = write_release(
        folder,
        module,
        data,
        name=name,
        recipe=recipe,
        seed=seed,
        steps=trainer.global_step,
        seconds=budget.elapsed,
        commit=commit_at_start,
        rivals={key: (reached["test"].loss, reached["test"].score) for key, reached in rivals.items()},
        facts={"permuted classes": data.permute_classes, "validation": best.table()},
    )
    shutil.rmtree(run, ignore_errors=True)
    if progress:
        goals, score = at_hand.objective, f"mean_{at_hand.objective.score_name}"
        rows = (f"{key} {goals.score_text(results[key][score])}" for key in ("before", *rivals, "after"))
        print(f"{target}: {goals.score_name} on {results['networks']} test problems: {', '.join(rows)}")
    return ScaleGMNOptimizer.from_pretrained(folder)


_SGD, _COMMON = f"tuned SGD, {EPOCHS} epochs", "one network for all problems"
_PROTOTYPE = f"learned prototype, tuned SGD, {EPOCHS} epochs"


def _checked(
    folder: str | os.PathLike[str],
    replace: bool,
    name: str | None,
    minutes: float,
    steps: int,
    device: str | None,
) -> tuple[Path, str, torch.device]:
    """Folder and name of the checkpoint, and the device; raises for what would fail late."""
    check_target(folder)
    target = Path(folder)
    if not replace and target.is_dir() and any(target.iterdir()):
        raise FileExistsError(
            f"folder: {target} has a checkpoint already; pass replace=True to replace it, or another folder"
        )
    name = target.resolve().name if name is None else name
    try:
        check_name(name)
    except ValueError as error:
        raise ValueError(f"{error}; pass another name= or folder") from error
    if not 0 < minutes < math.inf:
        raise ValueError(f"minutes: got {minutes}, expected a positive number")
    check_counts(steps=steps)
    gpu = torch.cuda.is_available()
    if device not in (None, "cpu", "cuda") or (device == "cuda" and not gpu):
        raise ValueError(
            f"device: got {device!r}, expected 'cpu'" + (" or 'cuda'" if gpu else ", no GPU is found")
        )
    return target, name, torch.device(device or ("cuda" if gpu else "cpu"))


def _check_types(
    numbers: Mapping[str, Any], seed: Any, objective: Any, metanet: Any, permute_classes: Any
) -> None:
    """Raise a ``ValueError`` for arguments that are of another kind than expected."""
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"{key}: got {value!r}, expected a number")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed: got {seed!r}, expected a whole number from 0 to 2**32 - 1")
    if objective is not None and not isinstance(objective, Objective):
        raise ValueError(
            f"objective: got {objective!r}, expected an Objective such as amortopt.tasks.CrossEntropy(10)"
        )
    if metanet is not None and not isinstance(metanet, Mapping):
        raise ValueError(f"metanet: got {metanet!r}, expected arguments by name, such as {{'rounds': 4}}")
    if permute_classes not in (None, True, False):
        raise ValueError(f"permute_classes: got {permute_classes!r}, expected True, False or None")


def _seeded(seed: int, make: Callable[[], T]) -> T:
    """What a function makes with the random state of a seed; the caller's is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _problems_for(
    network: nn.Module,
    problems: Any,
    objective: Objective | None,
    *,
    val: float,
    test: float,
    seed: int,
) -> ProblemFamily:
    """The family of the user's problems, with an objective that fits the network's outputs.

    Raises:
        ValueError: Problems or their sizes do not fit, or the network cannot run on their inputs.
    """

    if problems is None:
        raise ValueError(
            "problems: got None, expected a folder, a list of (x_train, y_train, x_test, y_test), or a family"
        )

    def made(objective: Objective | None) -> ProblemFamily:
        config = None if objective is None else objective.to_config()
        if isinstance(problems, str | os.PathLike):
            try:
                return Folder(os.fspath(problems), config, val, test)
            except FileNotFoundError as error:
                raise FileNotFoundError(str(error).replace("path:", "problems:", 1)) from error
        return Arrays(problems, config, val, test, seed)

    if isinstance(problems, ProblemFamily):
        if objective not in (None, problems.objective):
            raise ValueError(
                f"objective: got {objective}, but the family of problems has its own; leave it out"
            )
        if problems.to_config()["name"] not in problem_family_names():
            raise ValueError(
                f"problems: {problems} has no registered name, by which the checkpoint would find it; "
                "decorate its class with amortopt.tasks.register_problem_family(name)"
            )
        family = problems
    else:
        family = made(objective)
    shape = family.input_shape
    try:
        with torch.no_grad():
            outputs = network(torch.zeros(2, *shape))
    except Exception as error:
        raise ValueError(
            f"build_network: the network fails on inputs of shape {[2, *shape]}, as the problems have them "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    got = tuple(outputs.shape[1:]) if isinstance(outputs, Tensor) else type(outputs).__name__
    expected = family.objective.output_shape
    if isinstance(family.objective, CrossEntropy) and objective is None and isinstance(got, tuple) and got:
        classes = family.objective.num_classes
        if got[:-1] == expected[:-1] and got[-1] > classes and family is not problems:
            return made(CrossEntropy(got[-1], family.objective.target_shape))
    if got != expected:
        largest = getattr(family, "largest_label", None)
        label = "" if largest is None else f", which is {largest.value}, in {largest.where}"
        raise ValueError(
            f"build_network: for an input the network returns {got}, expected {expected} for targets of "
            f"{family.objective}; change its last layer, or the targets: whole numbers are classes, counted "
            f"from 0 to the largest{label}; real ones are fitted"
        )
    return family


def _check_symmetry(
    build_network: Callable[[], nn.Module], network: nn.Module, shape: tuple[int, ...]
) -> None:
    """Raise a ``ValueError`` unless the symmetry of the networks can be read, and is that of all of them."""
    try:
        spec = extract(network, torch.zeros(1, *shape), strict=True)
    except ValueError as error:
        raise ValueError(f"build_network: the symmetry of the network cannot be read: {error}") from error
    other = _seeded(1, build_network).eval()
    if [(n, p.shape) for n, p in network.named_parameters()] != [
        (n, p.shape) for n, p in other.named_parameters()
    ]:
        raise ValueError(
            "build_network: made networks of two shapes in two calls, expected one architecture; fix its "
            "widths"
        )
    match(spec, spec)  # as one_shot will compare networks with it


def _is_plain(network: nn.Module) -> bool:
    """Whether all parameters are weights and biases of layers, so that a prototype may start from noise."""
    layers = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    plain = {id(p) for layer in network.modules() if isinstance(layer, layers) for p in layer.parameters()}
    return all(id(p) in plain for p in network.parameters())


def _warn_of_scales(data: FleetDataModule) -> None:
    """Warn of inputs with which networks hardly train."""
    mean, std = data.input_moments
    if not 0.1 <= std <= 10 or abs(mean) > 10 * std:
        warnings.warn(
            f"problems: the inputs have mean {mean:.3g} and standard deviation {std:.3g}, with which "
            "networks hardly train; standardise them, in meta-training and later in one_shot alike",
            stacklevel=3,
        )


def _state(run: Path, settings: Mapping[str, Any]) -> Path | None:
    """The state of an earlier run with the same settings, or None after making the folder of a new one.

    Raises:
        ValueError: The folder holds a run with other settings.
    """
    file, state = run / "settings.json", run / LAST
    settings = json.loads(json.dumps(settings))
    if state.is_file() and file.is_file():
        earlier = json.loads(file.read_text(encoding="utf-8"))
        if differing := [key for key in settings if settings[key] != earlier.get(key)]:
            raise ValueError(
                f"folder: {run} holds a run that was stopped, with another {', '.join(differing)}; call with "
                f"the same arguments to go on with it, or delete {run} to start anew"
            )
        return state_to_resume(run, "last")
    write_whole(file, json.dumps(settings, indent=2).encode())
    return None


def _digest(data: FleetDataModule) -> str:
    """Checksum of all examples of the training problems."""
    digest = hashlib.sha256()
    for tensor in (data.pooled.x, data.pooled.y):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _rivals(network: nn.Module, data: FleetDataModule, seed: int) -> dict[str, dict[Which, Reached]]:
    """What the validation and test problems' networks reach without a metanet."""
    held: dict[Which, Held] = {"val": data.validation(), "test": data.testing()}
    objective = data.problems.objective
    device = data.pooled.x.device
    module = copy.deepcopy(network).to(device).requires_grad_(False)
    rate = tuned_rate(module, held["val"], "val", objective, epochs=EPOCHS, seed=seed)
    by_sgd: dict[Which, Reached] = {
        which: trained_by_sgd(module, part, which, objective, rate=rate, epochs=EPOCHS, seed=seed)
        for which, part in held.items()
    }
    return {_SGD: by_sgd, _COMMON: trained_on_all(module, data.pooled, held, objective, seed=seed)}


@torch.no_grad()
def _from_prototype(module: OnePassModule, data: FleetDataModule, seed: int) -> dict[Which, Reached]:
    """What SGD makes of the learned prototype on the test problems: of a pretrained initialisation."""
    held: dict[Which, Held] = {"val": data.validation(), "test": data.testing()}
    metanet, network, objective = module.average, copy.deepcopy(module.network), data.problems.objective
    assert isinstance(metanet, Rounds)
    for which, part in held.items():
        conditions = module.conditions(metanet, part.params, part.read, None)
        (prototype,) = metanet.after_rounds(part.params, conditions, rounds=0)
        held[which] = changed(part, params=prototype)
    with torch.enable_grad():
        rate = tuned_rate(network, held["val"], "val", objective, epochs=EPOCHS, seed=seed)
        return {
            "test": trained_by_sgd(
                network, held["test"], "test", objective, rate=rate, epochs=EPOCHS, seed=seed
            )
        }


def _is_known(reached: Reached, classes: int) -> bool:
    """Whether a network for all problems knows the classes of problems that it was not trained on.

    Its loss has to be below that of equal probabilities, log C, by a twentieth and three standard errors.
    """
    chance = math.log(classes)
    error = float(reached.loss.std(correction=0)) / len(reached.loss) ** 0.5
    return float(reached.loss.mean()) < chance - max(0.05 * chance, 3 * error)
