"""Better weights in one forward pass: the shell around a trained metanet."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, TypeVar, overload

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets import L1Range, Metanet
from amortopt.optim.limits import random_inputs
from amortopt.optim.networks import (
    align,
    as_list,
    check_flags,
    check_networks,
    check_widths,
    copied,
    is_better,
    plain,
    read_networks,
    warn_widths,
    write,
)
from amortopt.optim.passes import Call, improve_networks, improve_stack, keep_back, warn_of
from amortopt.optim.report import Report
from amortopt.optim.running import (
    Code,
    Fleet,
    check_rounds,
    checked_batch,
    checked_l1,
    device_of,
    function_is_read,
)
from amortopt.release import (
    FamilyStatistics,
    Release,
    check_passes,
    load_release,
    measure_statistics,
    parameter_count,
    save_release,
)
from amortopt.symmetry import SymmetrySpec
from amortopt.system.devices import check_device
from amortopt.system.extras import needed_for
from amortopt.system.threads import PROCESS_STATE
from amortopt.tasks import (
    CrossEntropy,
    Family,
    Problem,
    ProblemFamily,
    init_many,
    make_family,
    make_problem_or_family,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

M = TypeVar("M", bound=nn.Module)
Pair: TypeAlias = tuple[Tensor, Tensor]


class _ParamsOptions(TypedDict, total=False):
    """Keyword arguments of ``one_shot_params``; see there."""

    batch: Pair | Sequence[Pair] | None
    function: bool | None
    l1: float | Sequence[float] | Tensor | None
    passes: int | None
    rounds: int | None


class _Options(_ParamsOptions, total=False):
    """Keyword arguments of ``one_shot``; see there."""

    inplace: bool
    accept: Callable[[Any], float] | Literal["holdout"] | None
    frozen: Literal["error", "keep"]
    example_input: Tensor | tuple[Tensor, ...] | None


class ScaleGMNOptimizer:
    """Improves networks of the family that a metanet was trained for, each in one forward pass.

    It computes theta' = f(theta, gradient, lambda), after Kalogeropoulos et al. 2024 and Kuipers et al. 2025;
    the metanet f and what it reads are the checkpoint's. It does so on the metanet's device and in float32,
    or in float64 where a network or the metanet has it; results come back in each network's dtype and device.

    Args:
        metanet: The trained metanet; used in eval mode, not modified.
        family: Base networks that it was trained on, or ``family.to_config()``. Without it every call of
            ``one_shot`` needs ``example_input``.
        problem: Problem that it was trained on, or ``problem.to_config()``; needed if the metanet reads
            gradients.
        name: Name for ``repr`` and ``save_pretrained``.
        l1_range: L1 strengths that the metanet was trained for; others get a warning. None: not known.
        passes: How often it was applied in a row in training, the default of ``one_shot``.
        statistics: What problems of its family look like to it, so that ``one_shot`` warns of others; see
            ``measure_statistics``. None: not known.

    Raises:
        ValueError: A family or problem that does not exist, or ``passes`` that is no positive whole number.
    """

    def __init__(
        self,
        metanet: Metanet,
        *,
        family: Family | Mapping[str, Any] | None = None,
        problem: Problem | Mapping[str, Any] | None = None,
        name: str = "untitled",
        l1_range: L1Range | None = None,
        passes: int = 1,
        statistics: FamilyStatistics | None = None,
    ) -> None:
        check_passes(passes)
        self.metanet = metanet
        self.family = make_family(**family) if isinstance(family, Mapping) else family
        self.problem = make_problem_or_family(**problem) if isinstance(problem, Mapping) else problem
        self.name = name
        self.l1_range = l1_range
        self.passes = passes
        self.statistics = statistics
        self._release: Release | None = None

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, device: torch.device | str | None = None
    ) -> ScaleGMNOptimizer:
        """Load a checkpoint.

        Args:
            source: Name of a shipped checkpoint, a folder, or a Hugging Face hub id ``"owner/name"``; see
                [load_release][amortopt.load_release].
            device: Where the metanet runs; by default the CPU. Networks may be on other devices.

        Raises:
            FileNotFoundError: No such checkpoint, or one of its files is missing.
            ValueError: A file was truncated, altered, or is of another version, or there is no such device.
        """
        with PROCESS_STATE:
            release = load_release(source, "metanet")
        assert isinstance(release.module, Metanet)
        if device is not None:
            release.module.to(check_device(device))
        keys = ("family", "problem", "name", "l1_range", "passes", "statistics")
        facts = {key: getattr(release, key) for key in keys}
        optimizer = cls(release.module, **facts)
        optimizer._release = release
        return optimizer

    @property
    def spec(self) -> SymmetrySpec:
        """Symmetry of the family."""
        return self.metanet.spec

    @overload
    def one_shot(
        self, models: M, *, return_report: Literal[False] = ..., **options: Unpack[_Options]
    ) -> M: ...
    @overload
    def one_shot(
        self, models: M, *, return_report: Literal[True], **options: Unpack[_Options]
    ) -> tuple[M, Report]: ...
    @overload
    def one_shot(
        self, models: Sequence[M], *, return_report: Literal[False] = ..., **options: Unpack[_Options]
    ) -> list[M]: ...
    @overload
    def one_shot(
        self, models: Sequence[M], *, return_report: Literal[True], **options: Unpack[_Options]
    ) -> tuple[list[M], Report]: ...
    def one_shot(
        self,
        models: Any,
        *,
        inplace: bool = False,
        accept: Callable[[Any], float] | Literal["holdout"] | None = None,
        batch: Pair | Sequence[Pair] | None = None,
        function: bool | None = None,
        l1: float | Sequence[float] | Tensor | None = None,
        frozen: Literal["error", "keep"] = "error",
        example_input: Tensor | tuple[Tensor, ...] | None = None,
        passes: int | None = None,
        rounds: int | None = None,
        return_report: bool = False,
    ) -> Any:
        """Improve one network or many.

        Class and parameter names do not matter: each network is traced and matched to the family by
        structure. Networks of equal shapes run as one batch. Everything is checked and computed before
        anything is written, so an error leaves all networks as they were. Threads may call it at once; they
        take turns.

        Args:
            models: A network, or a list of networks of any mix of widths.
            inplace: Write into the networks' own parameter tensors, which optimizers may hold, instead of
                copying the networks.
            accept: Validation loss of a network; where the new network's is not lower (NaN is not), the
                original's weights are kept. It gets copies, in the network's own mode, and may do as it likes
                with them. Or ``"holdout"``: a fifth of every batch is kept back, about a fifth of each class,
                and the loss on it decides.
            batch: Inputs [N, ...] and targets [N, *target_shape] of the problem, such as labels [N], for
                checkpoints that read gradients; all networks read the same. Or a list of such pairs, one for
                each network, of any sizes.
            function: Whether to read what each network itself answers, for checkpoints that do: by default
                where no batch is given. True with a batch: both are read.
            l1: L1 strength >= 0, one or one per network, for checkpoints that read it; 0 if not given.
            frozen: What to do with parameters that do not require gradients: ``"error"``, or ``"keep"`` to
                leave them as they are.
            example_input: What the networks' forward takes, for tracing; by default zeros of the family's
                input shape.
            passes: How often the metanet is applied in a row, gradients being computed anew each time; by
                default as often as in training, ``passes``, which is once for most checkpoints.
            rounds: Gradients in a pass, for checkpoints that have several; by default all.
            return_report: Return a [Report][amortopt.optim.Report] too.

        Returns:
            New networks with buffers, mode, device, dtype and ``requires_grad`` of the given ones, or with
            ``inplace`` the given ones: one for one, a list for a list, in order. With ``return_report``, a
            pair of that and the report.

        Raises:
            FamilyMismatchError: A network is outside the family; the first difference is named. Or it has
                other hidden widths than the checkpoint's, and no ``accept``. A ValueError.
            ValueError: No networks, parameters that are NaN, infinite, frozen, tied or on mixed devices, an
                argument that is missing, out of range or not read by this checkpoint, or a result that the
                dtype cannot hold.

        Warns:
            OutOfFamilyWarning: Other hidden widths than the family's; once per call. A problem outside of the
                family, by the checkpoint's ``statistics``; a network that came out worse on its own batch, or
                was confident of other answers than the batch, or where there is none the result, has; once
                per call, all of them.
            OutOfRangeWarning: An L1 strength outside of ``l1_range``; once per call.
        """
        started = time.perf_counter()
        single = isinstance(models, nn.Module)
        where = lambda i: "" if single else f"models[{i}]: "  # noqa: E731
        # 1. Check everything.
        many = as_list(models)
        check_flags(inplace=inplace, return_report=return_report)
        if accept is not None and not callable(accept) and accept != "holdout":
            raise ValueError(
                f"accept: got {accept!r}, expected a callable that takes a model and returns a loss, or "
                "'holdout'"
            )
        shape = None if self.family is None else self.family.input_shape
        if example_input is not None:
            shape = example_input.shape[1:] if isinstance(example_input, Tensor) else None
        call = self._call(
            batch,
            function,
            l1,
            passes,
            rounds,
            len(many),
            shape,
            holdout=accept == "holdout",
            exact=return_report,
            symbols=self._reads_symbols(example_input),
        )
        check_networks(many, inplace=inplace, frozen=frozen, where=where)
        # 2. Compute.
        with PROCESS_STATE, plain():
            networks = read_networks(self.spec, many, example_input, self.family, where)
            changes = {change for network in networks for change in network.match.width_changes}
            trained = self._release is not None
            check_widths(changes, self.metanet, trained=trained, guarded=accept is not None)
            warn_widths(changes)
            better, reports = improve_networks(call, networks, where)
        warn_of(reports, single)
        # 3. Write.
        if callable(accept):
            results = [write(copied(m, where(i)), better[i]) for i, m in enumerate(many)]
            taken = [is_better(accept, results[i], m, where(i)) for i, m in enumerate(many)]
            reports = [replace(report, accepted=taken[i]) for i, report in enumerate(reports)]
        results = []
        if not inplace:
            results = [copied(m, where(i)) for i, m in enumerate(many)]
        for i, model in enumerate(results or many):
            if reports[i].accepted:
                write(model, better[i])
        results = results or many
        result = results[0] if single else results
        return (result, Report(tuple(reports), time.perf_counter() - started)) if return_report else result

    @overload
    def one_shot_params(
        self, params: Params, *, return_report: Literal[False] = ..., **options: Unpack[_ParamsOptions]
    ) -> Params: ...
    @overload
    def one_shot_params(
        self, params: Params, *, return_report: Literal[True], **options: Unpack[_ParamsOptions]
    ) -> tuple[Params, Report]: ...
    def one_shot_params(
        self,
        params: Params,
        *,
        batch: Pair | Sequence[Pair] | None = None,
        function: bool | None = None,
        l1: float | Sequence[float] | Tensor | None = None,
        passes: int | None = None,
        rounds: int | None = None,
        return_report: bool = False,
    ) -> Any:
        """Improve networks given as tensors.

        Args:
            params: The family's parameter names, or others in the same order, -> tensors; all with one more,
                leading axis for B networks or none. Not modified.
            batch: As for ``one_shot``.
            function: As for ``one_shot``.
            l1: As for ``one_shot``.
            passes: As for ``one_shot``.
            rounds: As for ``one_shot``.
            return_report: As for ``one_shot``.

        Returns:
            New tensors that require no gradient, with the keys, shapes, dtypes and device of ``params``; with
            ``return_report``, a pair of these and the report.

        Raises:
            ValueError: Names, number or shapes of ``params`` do not fit the family, they are NaN or infinite,
                or what ``one_shot`` raises for the other arguments.

        Warns:
            OutOfFamilyWarning: As for ``one_shot``.
            OutOfRangeWarning: An L1 strength outside of ``l1_range``.
        """
        started = time.perf_counter()
        check_flags(return_report=return_report)
        alignment = align(self.spec, params)
        batched, names = alignment.batched, alignment.names
        count = len(next(iter(params.values()))) if batched else 1
        shape = None if self.family is None else self.family.input_shape
        call = self._call(
            batch,
            function,
            l1,
            passes,
            rounds,
            count,
            shape,
            exact=return_report,
            symbols=self._reads_symbols(None),
        )
        check_widths(set(alignment.width_changes), self.metanet, trained=self._release is not None)
        warn_widths(set(alignment.width_changes))
        if (call.batch is not None or call.function is not None) and self.family is None:
            raise ValueError(
                "batch, function: this optimizer knows no family to compute gradients with; pass family= to "
                "its constructor"
            )

        def label(b: int, name: str) -> str:
            return f"params[{names[name]!r}]" + (f", network {b}," if batched else "")

        with PROCESS_STATE, plain():
            module: nn.Module = nn.Identity()
            if self.family is not None:
                with torch.random.fork_rng(devices=[]):
                    module = self.family.build()
            device = device_of(self.metanet)
            tensors = {name: params[key].detach().to(device) for name, key in names.items()}
            if not batched:
                tensors = {name: value[None] for name, value in tensors.items()}
            device = next(iter(params.values())).device
            fleet = Fleet([Code(module.to(device), list(range(count)), None, device)])
            better, reports = improve_stack(call, fleet, tensors, label)
            by_key = {key: better[name] if batched else better[name][0] for name, key in names.items()}
            # Copies: a metanet may return the very tensors that it got.
            new = {key: by_key[key].to(p.device, copy=True) for key, p in params.items()}
        warn_of(reports, not batched)
        return (new, Report(tuple(reports), time.perf_counter() - started)) if return_report else new

    def _call(
        self,
        batch: Any,
        function: bool | None,
        l1: Any,
        passes: int | None,
        rounds: int | None,
        count: int,
        shape: Sequence[int] | None,
        *,
        exact: bool,
        symbols: bool,
        holdout: bool = False,
    ) -> Call:
        """Check what is read beside ``count`` networks; raises a ``ValueError``."""
        passes = self.passes if passes is None else passes
        check_passes(passes)
        check_rounds(rounds, self.metanet)
        read = function_is_read(function, batch, self.metanet)
        if read and self.problem is None:
            raise ValueError(
                "function: this optimizer knows no problem to take the loss from; pass problem= to its "
                "constructor"
            )
        objective = self.problem.objective if read and self.problem is not None else None
        data = checked_batch(batch, self.metanet, self.problem, shape, count, symbols=symbols)
        held = None
        if holdout:
            if data is None:
                raise ValueError(
                    "accept: got 'holdout', but no batch is read to keep a part of back; pass a callable "
                    "that returns a validation loss"
                )
            data, held = keep_back(data, count)
        strengths = checked_l1(l1, count, self.metanet, self.l1_range)
        asked = self.family.input_shape if data is None and self.family is not None and not symbols else None
        classes = self.problem.objective if self.problem is not None and asked is not None else None
        return Call(
            self.metanet,
            data,
            objective,
            held,
            strengths,
            passes,
            rounds,
            self.statistics,
            exact,
            None if asked is None or not isinstance(classes, CrossEntropy) else random_inputs(asked),
        )

    def measure_statistics(
        self, problems: int = 512, *, fewest: int = 1, examples: int = 1000
    ) -> FamilyStatistics | None:
        """Measure what problems of the family look like to this checkpoint, and warn of others from now on.

        It runs passes on validation problems, which takes seconds to a minute. ``save_pretrained`` writes the
        statistics.

        Args:
            problems: How many; at most all that the family has.
            fewest: Fewest examples of a problem that passes are to read.
            examples: Most examples; at most as many as a problem has.

        Returns:
            The statistics, also in ``statistics``; None where the checkpoint reads no batch or has fewer than
            16 problems for validation.

        Raises:
            ValueError: It was not trained on a family of problems, or knows no family of networks.
        """
        if not isinstance(self.problem, ProblemFamily) or self.family is None:
            raise ValueError(
                f"statistics: {self.name} was trained on {self.problem} and networks of {self.family}, "
                "expected a family of problems and one of networks; pass problem= and family="
            )
        with PROCESS_STATE, plain():
            fresh = init_many(self.family.build, range(64))
            with torch.random.fork_rng(devices=[]):
                network = self.family.build().to(device_of(self.metanet))
            self.statistics = measure_statistics(
                self.metanet,
                network,
                fresh,
                self.problem,
                count=problems,
                fewest=fewest,
                examples=examples,
            )
        return self.statistics

    def _reads_symbols(self, example_input: Any) -> bool:
        """Whether the networks may take integers, as far as an example tells."""
        if example_input is None and self.family is not None:
            example_input = self.family.example_input()
        return not (isinstance(example_input, Tensor) and example_input.is_floating_point())

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the checkpoint, with the metanet's weights as they are now; returns the folder.

        Args:
            folder: A new or empty folder, or one that holds only a checkpoint, which is replaced.

        Raises:
            ValueError: No path, or the folder holds other files.
            OSError: The disk is full or the folder cannot be written; what was there before is still there.
        """
        trained_on = {"problem": self.problem, "family": self.family}
        entry = {key: value.to_config() for key, value in trained_on.items() if value is not None}
        release = self._release or Release(self.metanet, self.name, [entry] if entry else [])
        now = {"module": self.metanet} | {
            key: getattr(self, key) for key in ("l1_range", "passes", "statistics")
        }
        return save_release(folder, replace(release, **now))

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, **kwargs: Any
    ) -> str:
        """Upload the checkpoint to the Hugging Face hub; returns the address of the commit.

        Args:
            repo_id: ``"owner/name"``; the repository is made if there is none.
            private: Whether a new repository is private.
            token: Access token; by default the one that ``huggingface_hub`` finds.
            **kwargs: For ``HfApi.upload_folder``, such as ``commit_message`` or ``revision``.
        """
        import tempfile

        with needed_for("push_to_hub", extra="hub"):
            from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.save_pretrained(Path(scratch) / "checkpoint")
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **kwargs))

    def __repr__(self) -> str:
        kind, count = self.metanet.name or type(self.metanet).__name__, parameter_count(self.metanet)
        reads = ", ".join(["weights", *sorted(self.metanet.conditions)])
        trained = "" if self.l1_range is None else f" trained for {self.l1_range}"
        times = f"; {self.passes} passes" if self.passes > 1 else ""
        return (
            f"ScaleGMNOptimizer({self.name!r}: {kind} with {count:,} parameters on "
            f"{device_of(self.metanet)}, reads {reads}{trained}{times}; family {self.family}, "
            f"problem {self.problem})"
        )
