"""Build a zoo: draw hyper-parameters, train many base networks at once, store them shard by shard."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from amortopt._types import Params
from amortopt.functional.networks import finite_networks, params_of
from amortopt.system.devices import check_device
from amortopt.system.extras import needed_for
from amortopt.tasks import Family, Problem, evaluate_many, init_many
from amortopt.tasks.problem import SPLITS
from amortopt.training import train_epochs
from amortopt.zoo.config import Table, ZooConfig, draw_table
from amortopt.zoo.store import Manifest, open_folder, read_shard, remove_leftovers, write_shard, write_summary

if TYPE_CHECKING:
    from rich.progress import Progress

START_EPOCHS = 13
"""Starting networks are trained for 0 to this many epochs, as in the recipes of the zoos."""


def build_zoo(
    config: ZooConfig,
    folder: str | Path,
    *,
    shard: str = "1/1",
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> list[int]:
    """Train the base networks of a recipe and store them in a folder, as far as they are not there yet.

    The same recipe gives the same bits on the same machine, however the work is split and however often it
    was interrupted: a shard file is trained as a whole, and what it holds depends on the recipe alone.

    Args:
        config: Recipe.
        folder: Zoo folder; made if it is not there. Several processes may build into one.
        shard: ``"k/n"``: build the k-th of n parts of the zoo (k from 1), one part per process.
        device: Where to train.
        progress: Whether to show a progress bar.

    Returns:
        Numbers of the shard files that are still missing, which other processes are to build; empty if the
        zoo is complete.

    Raises:
        ValueError: If the recipe does not fit together, or the folder holds something else.
        OSError: If the disk is full; finished shards are kept.
    """
    device = check_device(device)
    module = _architecture(config.make_problem(), config.make_family(), device)
    manifest = Manifest(config.to_dict(), {name: list(p.shape) for name, p in params_of(module).items()})

    def train(number: int, on_epoch: Callable[[int], None]) -> tuple[Params, Table]:
        table, problem = draw_table(config, *manifest.bounds(number)), config.make_problem()
        params = _train(config, module, table, on_epoch)
        results = {"finite": finite_networks(params)}
        for which in SPLITS:
            examples = problem.split(which).to(device)
            loss, score = evaluate_many(module, params, examples, problem.objective)
            results |= {f"{which}_loss": loss, f"{which}_{problem.objective.score_name}": score}
        return params, table | {name: column.cpu().numpy() for name, column in results.items()}

    def work(number: int) -> int:
        return int(draw_table(config, *manifest.bounds(number))["epochs"].sum())

    return build_shards(
        folder, manifest, train, work, shard=shard, device=device, progress=progress, unit="networks x epochs"
    )


def build_shards(
    folder: str | Path,
    manifest: Manifest,
    train: Callable[[int, Callable[[int], None]], tuple[Params, Table]],
    work: Callable[[int], int],
    *,
    shard: str = "1/1",
    device: torch.device | str = "cpu",
    progress: bool = False,
    unit: str = "networks",
) -> list[int]:
    """Train and store the shard files of a zoo of any kind, as far as they are not there yet.

    Other arguments, value and errors are those of [build_zoo][amortopt.zoo.build_zoo].

    Args:
        folder: Zoo folder.
        manifest: What the folder is to hold.
        train: Number of a shard file and what to report finished work to -> params [n, ...] and table of its
            networks; has to depend on the manifest's recipe alone.
        work: Number of a shard file -> its share of the work, in ``unit``.
        unit: Unit of the work, for the progress bar.
    """
    first, slash, last = shard.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(f"shard: got {shard!r}, expected k/n with 1 <= k <= n, such as 3/8")
    folder = Path(folder)
    manifest = open_folder(folder, manifest)
    numbers = range(int(first), manifest.shards + 1, int(last))
    sound = set(numbers) & set(manifest.finished(folder))
    for number in sorted(sound):
        try:
            read_shard(folder, manifest, number)
        except ValueError as error:
            warnings.warn(f"building a shard anew: {error}", stacklevel=3)
            sound.remove(number)
    todo = [number for number in numbers if number not in sound]
    shares = {number: work(number) for number in numbers}
    with progress_bar(progress) as bar:
        job = bar.add_task("", unit=unit, total=sum(shares.values()), completed=sum(shares[n] for n in sound))
        for done, number in enumerate(todo, start=len(numbers) - len(todo) + 1):
            bar.update(job, description=f"shard {done}/{len(numbers)}")
            remove_leftovers(folder, manifest, number)
            params, table = train(number, lambda n: bar.advance(job, n))
            notes = {"torch": torch.__version__, "device": torch.device(device).type}
            write_shard(folder, manifest, number, params, table, **notes)
    missing = manifest.missing(folder)
    if not missing and (todo or not (folder / "metadata.csv").is_file()):
        write_summary(folder, manifest)
    return missing


def starting_networks(
    problem: dict[str, Any],
    family: dict[str, Any],
    *,
    count: int,
    seed: int,
    recipe: Mapping[str, Any] | None = None,
) -> Params:
    """Networks trained a little, [B, ...]: drawn as the zoos' recipes say, but with a seed of their own.

    Args:
        problem: ``problem.to_config()``.
        family: ``family.to_config()``.
        count: Number of networks B.
        seed: Takes the place of the zoo's seed; another one gives other networks.
        recipe: Other keys of the zoo's recipe, such as ``learning_rate`` or ``epochs``, where they are not
            those of [ZooConfig][amortopt.zoo.ZooConfig] with 0 to 13 epochs. Its count, seed, problem and
            family are not read.

    Raises:
        ValueError: If problem or family do not exist or do not fit, or the recipe has an unknown key.
    """
    keys: dict[str, Any] = {"epochs": START_EPOCHS} | dict(recipe or {})
    if unknown := keys.keys() - ZooConfig.__dataclass_fields__.keys():
        known = ", ".join(ZooConfig.__dataclass_fields__)
        raise ValueError(
            f"recipe: got {', '.join(sorted(unknown))}, expected keys of a zoo's recipe: {known}"
        )
    config = ZooConfig(**(keys | {"problem": problem, "family": family, "count": count, "seed": seed}))
    module = _architecture(config.make_problem(), config.make_family(), "cpu")
    return _train(config, module, draw_table(config), lambda _: None)


def _train(config: ZooConfig, module: nn.Module, table: Table, on_epoch: Callable[[int], None]) -> Params:
    """The networks of a table, drawn and trained as the recipe says, [n, ...]; on the module's device."""
    problem, device = config.make_problem(), next(module.parameters()).device
    start = init_many(config.make_family().build, table["seed"].tolist(), table["init_scale"].tolist())
    return train_epochs(
        module,
        {name: p.to(device) for name, p in start.items()},
        problem.split("train").to(device),
        problem.objective,
        config.stepper(torch.as_tensor(table["learning_rate"])),
        epochs=table["epochs"],
        seed=config.seed,
        batch_size=config.batch_size,
        input_noise=config.input_noise,
        on_epoch=lambda epoch: on_epoch(int((table["epochs"] >= epoch).sum())),
    ).params


def _architecture(problem: Problem, family: Family, device: torch.device | str) -> nn.Module:
    """A network of the family on the device, whose params do not matter; checks that it fits the problem."""
    if family.input_shape != problem.input_shape:
        raise ValueError(
            f"family: {family} takes inputs of shape {family.input_shape}, but {problem} has "
            f"{problem.input_shape}; change one of the two"
        )
    with torch.random.fork_rng(devices=[]):
        module = family.build()
    outputs = tuple(module(family.example_input()).shape[1:])
    if outputs != problem.objective.output_shape:
        raise ValueError(
            f"family: {family} has outputs of shape {outputs}, but {problem} needs "
            f"{problem.objective.output_shape}; change one of the two"
        )
    return module.to(device)


def progress_bar(shown: bool) -> Progress:
    with needed_for("building a zoo", extra="train"):
        from rich import progress as rich
    text = (rich.TextColumn(f"{{task.{field}}}") for field in ("description", "fields[unit]"))
    columns = next(text), rich.BarColumn(), rich.MofNCompleteColumn(), next(text)
    return rich.Progress(*columns, rich.TimeElapsedColumn(), rich.TimeRemainingColumn(), disable=not shown)
