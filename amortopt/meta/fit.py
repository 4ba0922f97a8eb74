"""The command `amortopt fit`."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import yaml
from jsonargparse import ArgumentError  # pyright: ignore[reportPrivateImportUsage]
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from amortopt.meta.one_pass.data import ZooDataModule
from amortopt.meta.one_pass.module import OnePassModule
from amortopt.meta.one_pass.results import commit, write_release
from amortopt.meta.progress import FitProgress
from amortopt.meta.rule.module import UpdateRuleModule
from amortopt.meta.rule.results import write_rule_release
from amortopt.release import check_name, check_target

_IRRELEVANT = (
    r"\s*``instantiate_classes`` was deprecated",  # jsonargparse, called by Lightning
    r"\s*By default only one JsonargparseDeprecationWarning",
    r".*does not have many workers.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*ModelCheckpoint.*",
    r".*GPU available but not used.*",
    r"Grad strides do not match bucket view strides",  # of axes of size 1, under DDP
)
_CONFIG = ("--config", "-c")
_CHATTER = re.compile(r"💡 Tip: |[GTH]PU available: ")  # of Lightning's Trainer, on every start


class FitCLI(LightningCLI):
    """Parses a meta-training recipe and makes module, data and Trainer; runs nothing by itself.

    Args:
        args: Arguments of the command.
    """

    def __init__(self, args: list[str]) -> None:
        self.rule = about_a_rule(args)
        super().__init__(
            UpdateRuleModule if self.rule else OnePassModule,
            None if self.rule else ZooDataModule,
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
        """Parse the given arguments, whatever the process was called with."""
        assert isinstance(args, list)
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            message = " ".join(str(error).split())
            if not any(arg.split("=")[0] in _CONFIG for arg in args):
                message += "; give a recipe, such as --config recipes/mnist1d_mlp_tanh.yaml"
            raise ValueError(message) from error

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
        """The state to resume from.

        Raises:
            ValueError: If there is no such file, or a state that would be overwritten.
        """
        asked = self.config["ckpt_path"]
        if asked is None:
            if (self.folder / "last.ckpt").exists():
                raise ValueError(
                    f"name: {self.folder} holds the state of an earlier run; pass --ckpt_path last to go on "
                    "with it, or another --name or --runs"
                )
            return None
        path = self.folder / "last.ckpt" if asked == "last" else Path(asked)
        if not path.is_file():
            raise ValueError(
                f"ckpt_path: got {asked!r}, but there is no file {path}; leave it out to start anew"
            )
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"ckpt_path: {path} is no training state, or was cut off ({type(error).__name__}); "
                "leave it out to start anew"
            ) from error
        return path

    @property
    def recipe_roots(self) -> list[Path]:
        """Folders above the recipe, the nearest first: what a recipe names may lie there."""
        files = [Path(str(path)).resolve() for path in self.config["config"] or []]
        return [folder for file in files for folder in file.parents]

    def recipe(self) -> dict[str, Any]:
        """Everything that the run was told, without where it wrote."""
        text = self.parser.dump(self.config, format="json", skip_link_targets=False)
        places = ("config", "out", "runs", "ckpt_path")
        return {key: value for key, value in json.loads(text).items() if key not in places}

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The Trainer, with loggers, states and progress of the run."""
        asked = self.config_init["trainer"]
        if asked["max_steps"] < 1 and asked["max_time"] is None:
            raise ValueError(
                "trainer: got neither max_steps nor max_time, expected at least one: the learning rates fall "
                "towards the end"
            )
        if asked["accumulate_grad_batches"] != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches: got {asked['accumulate_grad_batches']}, expected 1; raise "
                f"{'networks' if self.rule else 'data.networks'} instead"
            )
        if self.rule and asked["gradient_clip_val"] is not None:
            raise ValueError(
                f"trainer.gradient_clip_val: got {asked['gradient_clip_val']}, expected none; set model.clip"
            )
        callbacks: list[L.Callback] = [
            ModelCheckpoint(
                self.folder,
                filename="last",
                every_n_train_steps=self.config["save_every"],
                save_top_k=1,
                enable_version_counter=False,
            )
        ]
        if asked["max_time"] is None:
            callbacks.append(Timer())  # otherwise the Trainer has one
        if asked["enable_progress_bar"] is not False:
            callbacks.append(FitProgress())
        if asked["logger"] in (None, True):
            csv = CSVLogger(self.config["runs"], name=self.config["name"])
            board = TensorBoardLogger(self.config["runs"], name=self.config["name"], version=csv.version)
            kwargs["logger"] = [csv, board]
        kwargs["callbacks"] = [*(asked["callbacks"] or []), *callbacks]
        try:
            return super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:
            raise ValueError(f"trainer: {' '.join(str(error).split())}") from error


def main(args: list[str]) -> None:
    """Run `amortopt fit` with the given arguments.

    Raises:
        ValueError: If the arguments or the recipe are wrong.
        OSError: If a file cannot be read or written.
    """
    with _quiet():
        cli = FitCLI(_config_first(args))
        trainer, module, data = cli.trainer, cli.model, getattr(cli, "datamodule", None)
        made_by = commit()
        if isinstance(data, ZooDataModule):
            data.recipe_roots = cli.recipe_roots
        trainer.fit(module, data, ckpt_path=cli.state(), weights_only=True)
        if trainer.interrupted:
            return
        trainer.save_checkpoint(cli.folder / "last.ckpt", weights_only=False)
        if not trainer.is_global_zero:
            return
        module.to(trainer.strategy.root_device)
        said = _release(cli, made_by)
    print(f"{cli.out}: {said}, after {trainer.global_step} steps")


def _release(cli: FitCLI, made_by: str | None) -> str:
    """Write the release checkpoint; returns what it can do, in words."""
    module = cli.model
    about: dict[str, Any] = {
        "name": cli.config["name"],
        "recipe": cli.recipe(),
        "seed": int(cli.config["seed_everything"]),
        "steps": cli.trainer.global_step,
        "seconds": seconds_of(cli.trainer),
        "commit": made_by,
    }
    if isinstance(module, UpdateRuleModule):
        results = write_rule_release(cli.out, module, **about)
        reached = (f"{name} {problem['final_loss']:.3f}" for name, problem in results["problems"].items())
        return f"train losses after {results['horizon']} inner steps: {', '.join(reached)}"
    results = write_release(cli.out, module, cli.datamodule, **about)
    passes = "one pass takes" if module.passes == 1 else f"{module.passes} passes take"
    before, after = (100 * results[when]["mean_accuracy"] for when in ("before", "after"))
    tested = f"{results['networks']} test networks"
    return f"{passes} {tested} from {before:.1f} % to {after:.1f} % mean test accuracy"


def about_a_rule(args: list[str]) -> bool:
    """Whether a recipe or an option has ``model.rule``: an update rule is trained, not a one-pass metanet."""
    for position, arg in enumerate(args):
        option, _, value = arg.partition("=")
        if option == "--model.rule" or option.startswith("--model.rule."):
            return True
        if option not in _CONFIG:
            continue
        path = Path(value or "".join(args[position + 1 : position + 2]))
        try:
            model = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("model")
        except (OSError, ValueError, AttributeError, yaml.YAMLError):
            continue  # the parser says what is wrong with it
        if isinstance(model, dict) and "rule" in model:
            return True
    return False


def seconds_of(trainer: L.Trainer) -> float:
    """Time of training so far, earlier parts of a resumed run included."""
    return max((t.time_elapsed() for t in trainer.callbacks if isinstance(t, Timer)), default=0.0)  # pyright: ignore


def _config_first(args: list[str]) -> list[str]:
    # jsonargparse lets the later argument win; what is typed must win over the recipe wherever it stands.
    first: list[str] = []
    rest: list[str] = []
    position = 0
    while position < len(args):
        option = args[position].split("=")[0]
        width = 2 if args[position] in _CONFIG else 1
        (first if option in _CONFIG else rest).extend(args[position : position + width])
        position += width
    return first + rest


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings that are about other ways to train than this one, and without chatter."""

    def says_something(record: logging.LogRecord) -> bool:
        return not _CHATTER.match(record.getMessage())

    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(says_something)
    try:
        with warnings.catch_warnings():
            for message in _IRRELEVANT:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.removeFilter(says_something)
