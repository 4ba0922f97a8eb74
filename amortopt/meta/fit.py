"""The command `amortopt fit`."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import yaml
from jsonargparse import ArgumentError  # pyright: ignore[reportPrivateImportUsage]
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from amortopt.meta.functional.data import NetworksDataModule
from amortopt.meta.functional.module import FunctionalModule
from amortopt.meta.functional.results import write_functional_release
from amortopt.meta.one_pass.data import ZooDataModule
from amortopt.meta.one_pass.module import OnePassModule
from amortopt.meta.one_pass.problem_data import ProblemDataModule
from amortopt.meta.one_pass.results import commit, write_release
from amortopt.meta.progress import FitProgress
from amortopt.meta.quiet import quiet
from amortopt.meta.rule.module import UpdateRuleModule
from amortopt.meta.rule.results import write_rule_release
from amortopt.meta.state import LAST, WholeStateIO, state_to_resume
from amortopt.release import check_name, check_target
from amortopt.system.recipes import recipes_first
from amortopt.tasks import problem_family_names


class FitCLI(LightningCLI):
    """Parses a meta-training recipe and makes module, data and Trainer; runs nothing by itself.

    Args:
        args: Arguments of the command, recipes first.
    """

    def __init__(self, args: list[str]) -> None:
        model = model_of(args)
        self.rule = "rule" in model
        reads_problems = str(model.get("problem", {}).get("name")) in problem_family_names()
        module, data = OnePassModule, ProblemDataModule if reads_problems else ZooDataModule
        if self.rule:
            module, data = UpdateRuleModule, None
        elif "functional" in model or "editor" in model:
            module, data = FunctionalModule, NetworksDataModule
        super().__init__(
            module,
            data,
            save_config_callback=None,  # the release holds the recipe, the loggers hold the settings
            trainer_defaults={"max_epochs": -1, "num_sanity_val_steps": 0, "enable_model_summary": False},
            seed_everything_default=0,
            args=args,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": "amortopt fit", "exit_on_error": False, "allow_abbrev": False},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what belongs to the run as a whole."""
        parser.add_argument("--name", type=str, default="run", help="Name of the run and of its checkpoint.")
        parser.add_argument("--runs", type=str, default="runs", help="Logs and states go to RUNS/NAME.")
        parser.add_argument(
            "--out",
            type=str | None,
            default=None,
            help="Folder of the release checkpoint [RUNS/NAME/release].",
        )
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="Resume: 'last', or a .ckpt file of a run."
        )
        parser.add_argument("--save_every", type=int, default=500, help="Save the state every so many steps.")
        if not self.rule:
            parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse ``args``, whatever the process was called with."""
        assert isinstance(args, list)
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            advice = "" if "--config" in args else "; give a recipe, such as --config mnist1d_mlp_tanh"
            raise ValueError(" ".join(str(error).split()) + advice) from error

    def before_instantiate_classes(self) -> None:
        """Raise a ``ValueError`` for what would otherwise fail only at the end of the run."""
        check_name(self.config["name"])
        check_target(self.out)
        self.state()
        if self.config["save_every"] < 1:
            raise ValueError(f"save_every: got {self.config['save_every']}, expected at least 1 step")

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.config["runs"]) / self.config["name"]

    @property
    def out(self) -> Path:
        """Folder of the release checkpoint."""
        return Path(self.config["out"]) if self.config["out"] else self.folder / "release"

    def state(self) -> Path | None:
        """The state to resume from; raises a ``ValueError`` if there is none or it would be overwritten."""
        return state_to_resume(self.folder, self.config["ckpt_path"])

    @property
    def recipe_roots(self) -> list[Path]:
        """Folders above the recipe, the nearest first: a zoo recipe that it names may lie there."""
        files = [Path(str(path)).resolve() for path in self.config["config"] or []]
        return [folder for file in files for folder in file.parents]

    def recipe(self) -> dict[str, Any]:
        """All settings of the run, except the places where it reads and writes."""
        text = self.parser.dump(self.config, format="json", skip_link_targets=False)
        places = ("config", "out", "runs", "ckpt_path")
        return {key: value for key, value in json.loads(text).items() if key not in places}

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The Trainer, with loggers, states and progress of the run."""
        settings = self.config_init["trainer"]
        if settings["max_steps"] < 1:
            raise ValueError(
                f"trainer.max_steps: got {settings['max_steps']}, expected at least 1: rates and penalties "
                "follow the share of the steps that are done; max_time may stop a run before"
            )
        if settings["accumulate_grad_batches"] != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches: got {settings['accumulate_grad_batches']}, expected 1; "
                f"raise {'networks' if self.rule else 'data.networks'} instead"
            )
        if self.rule and settings["gradient_clip_val"] is not None:
            raise ValueError(
                f"trainer.gradient_clip_val: got {settings['gradient_clip_val']}, expected none; "
                "set model.clip"
            )
        callbacks: list[L.Callback] = [
            ModelCheckpoint(
                self.folder,
                filename=LAST.removesuffix(".ckpt"),
                every_n_train_steps=self.config["save_every"],
                save_top_k=1,
                enable_version_counter=False,
            )
        ]
        if settings["max_time"] is None:
            callbacks.append(Timer())  # otherwise the Trainer has one
        if settings["enable_progress_bar"] is not False:
            callbacks.append(FitProgress())
        if settings["logger"] in (None, True):
            csv = CSVLogger(self.config["runs"], name=self.config["name"])
            board = TensorBoardLogger(self.config["runs"], name=self.config["name"], version=csv.version)
            kwargs["logger"] = [csv, board]
        kwargs["callbacks"] = [*(settings["callbacks"] or []), *callbacks]
        plugins = settings["plugins"] or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), WholeStateIO()]
        try:
            return super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:
            raise ValueError(f"trainer: {' '.join(str(error).split())}") from error


def main(args: list[str]) -> None:
    """Run `amortopt fit`.

    Args:
        args: Arguments after the command's name.

    Raises:
        ValueError: If the arguments or the recipe are wrong.
        OSError: If a file cannot be read or written.
    """
    with quiet():
        cli = FitCLI(recipes_first(args, "fit"))
        trainer, module, data = cli.trainer, cli.model, getattr(cli, "datamodule", None)
        commit_at_start = commit()
        if isinstance(module, UpdateRuleModule) and not any(True for _ in module.rule.parameters()):
            print(
                f"{cli.out}: {_release(cli, commit_at_start)}; a rule without a network has nothing to train"
            )
            return
        if data is not None:
            data.recipe_roots = cli.recipe_roots
        trainer.fit(module, data, ckpt_path=cli.state(), weights_only=True)
        if trainer.interrupted:
            return
        trainer.save_checkpoint(cli.folder / LAST, weights_only=False)
        if not trainer.is_global_zero:
            return
        module.to(trainer.strategy.root_device)
        results = _release(cli, commit_at_start)
    print(f"{cli.out}: {results}, after {trainer.global_step} steps")
    if trainer.global_step < trainer.max_steps:
        print(
            f"stopped by trainer.max_time before step {trainer.max_steps}: the rates had not fallen to the "
            "end; go on with --ckpt_path last and more time"
        )


def _release(cli: FitCLI, commit_at_start: str | None) -> str:
    """Write the release; returns its results as text."""
    module = cli.model
    timers = [each for each in cli.trainer.callbacks if isinstance(each, Timer)]  # pyright: ignore
    facts: dict[str, Any] = {
        "name": cli.config["name"],
        "recipe": cli.recipe(),
        "seed": int(cli.config["seed_everything"]),
        "steps": cli.trainer.global_step,
        "seconds": max((timer.time_elapsed() for timer in timers), default=0.0),
        "commit": commit_at_start,
    }
    if isinstance(module, UpdateRuleModule):
        results = write_rule_release(cli.out, module, **facts)
        losses = (f"{name} {problem['final_loss']:.3f}" for name, problem in results["problems"].items())
        return f"train losses after {results['horizon']} inner steps: {', '.join(losses)}"
    if isinstance(module, FunctionalModule):
        results = write_functional_release(cli.out, module, **facts)
        scores = ", ".join(f"{name} {value:.4f}" for name, value in results["test"].items())
        return f"{results['networks']['test']} test networks: {scores}"
    results = write_release(cli.out, module, cli.datamodule, **facts)
    passes = "one pass takes" if module.passes == 1 else f"{module.passes} passes take"
    objective = module.problem.objective
    before, after = (
        objective.score_text(results[when][f"mean_{objective.score_name}"]) for when in ("before", "after")
    )
    tested = f"{results['networks']} test networks"
    return f"{passes} {tested} from {before} to {after} mean test {objective.score_name}"


def model_of(args: list[str]) -> dict[str, Any]:
    """What the recipes and options say of the model, as far as it decides what is trained, and on what.

    Returns:
        ``"rule"``, ``"functional"`` or ``"editor"`` is in it if one is trained; ``"problem"`` is a mapping
        with its name, if there is one.
    """
    model: dict[str, Any] = {}
    for option, value in pairwise(args):
        if option == "--config":
            try:
                recipe = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError):
                continue  # the parser says what is wrong with it
            part = recipe.get("model") if isinstance(recipe, dict) else None
            model |= part if isinstance(part, dict) else {}
    for option, value in pairwise([*args, ""]):
        name, _, inline = option.partition("=")
        if kind := re.match(r"--model\.(rule|functional|editor)(\.|$)", name):
            model[kind[1]] = True
        elif name in ("--model.problem", "--model.problem.name"):
            try:
                problem = yaml.safe_load(inline or value)
            except yaml.YAMLError:
                continue
            model["problem"] = problem if isinstance(problem, dict) else {"name": problem}
    if not isinstance(model.get("problem"), dict):
        model["problem"] = {}
    return model
