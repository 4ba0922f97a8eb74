"""Better weights in one forward pass: the shell around a trained metanet."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets import Conditions, L1Range, Metanet
from amortopt.optim.networks import (
    align,
    as_list,
    check_networks,
    copied,
    is_better,
    plain,
    read_networks,
    warn_widths,
    write,
)
from amortopt.optim.running import checked_batch, checked_l1, device_of, improve, run
from amortopt.release import Release, check_passes, load_release, parameter_count, save_release
from amortopt.symmetry import SymmetrySpec
from amortopt.system.extras import needed_for
from amortopt.tasks import Family, Problem, make_family, make_problem_or_family

M = TypeVar("M", bound=nn.Module)


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
    ) -> None:
        check_passes(passes)
        self.metanet = metanet
        self.family = make_family(**family) if isinstance(family, Mapping) else family
        self.problem = make_problem_or_family(**problem) if isinstance(problem, Mapping) else problem
        self.name = name
        self.l1_range = l1_range
        self.passes = passes
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
            ValueError: A file was truncated, altered, or is of another version.
        """
        release = load_release(source, "metanet")
        assert isinstance(release.module, Metanet)
        if device is not None:
            release.module.to(device)
        facts = {key: getattr(release, key) for key in ("family", "problem", "name", "l1_range", "passes")}
        optimizer = cls(release.module, **facts)
        optimizer._release = release
        return optimizer

    @property
    def spec(self) -> SymmetrySpec:
        """Symmetry of the family."""
        return self.metanet.spec

    @overload
    def one_shot(
        self,
        models: M,
        *,
        inplace: bool = ...,
        accept: Callable[[M], float] | None = ...,
        batch: tuple[Tensor, Tensor] | Sequence[tuple[Tensor, Tensor]] | None = ...,
        l1: float | Sequence[float] | Tensor | None = ...,
        frozen: Literal["error", "keep"] = ...,
        example_input: Tensor | tuple[Tensor, ...] | None = ...,
        passes: int | None = ...,
    ) -> M: ...
    @overload
    def one_shot(
        self,
        models: Sequence[M],
        *,
        inplace: bool = ...,
        accept: Callable[[M], float] | None = ...,
        batch: tuple[Tensor, Tensor] | Sequence[tuple[Tensor, Tensor]] | None = ...,
        l1: float | Sequence[float] | Tensor | None = ...,
        frozen: Literal["error", "keep"] = ...,
        example_input: Tensor | tuple[Tensor, ...] | None = ...,
        passes: int | None = ...,
    ) -> list[M]: ...
    def one_shot(
        self,
        models: Any,
        *,
        inplace: bool = False,
        accept: Callable[[Any], float] | None = None,
        batch: tuple[Tensor, Tensor] | Sequence[tuple[Tensor, Tensor]] | None = None,
        l1: float | Sequence[float] | Tensor | None = None,
        frozen: Literal["error", "keep"] = "error",
        example_input: Tensor | tuple[Tensor, ...] | None = None,
        passes: int | None = None,
    ) -> Any:
        """Improve one network or many.

        Class and parameter names do not matter: each network is traced and matched to the family by
        structure. Networks of equal shapes run as one batch. Everything is checked and computed before
        anything is written, so an error leaves all networks as they were.

        Args:
            models: A network, or a list of networks of any mix of widths.
            inplace: Write into the networks' own parameter tensors, which optimizers may hold, instead of
                copying the networks.
            accept: Validation loss of a network; where the new network's is not lower (NaN is not), the
                original's weights are kept. It gets copies, in the network's own mode, and may do as it likes
                with them.
            batch: Inputs [N, ...] and targets [N, *target_shape] of the problem, such as labels [N], for
                checkpoints that read gradients; all networks read the same. Or a list of such pairs, one for
                each network, of any sizes.
            l1: L1 strength >= 0, one or one per network, for checkpoints that read it; 0 if not given.
            frozen: What to do with parameters that do not require gradients: ``"error"``, or ``"keep"`` to
                leave them as they are.
            example_input: What the networks' forward takes, for tracing; by default zeros of the family's
                input shape.
            passes: How often the metanet is applied in a row, gradients being computed anew each time; by
                default as often as in training, ``passes``, which is once for most checkpoints.

        Returns:
            New networks with buffers, mode, device, dtype and ``requires_grad`` of the given ones, or with
            ``inplace`` the given ones: one for one, a list for a list, in order.

        Raises:
            FamilyMismatchError: A network is outside the family; the first difference is named. A ValueError.
            ValueError: No networks, parameters that are NaN, infinite, frozen, tied or on mixed devices, an
                argument that is missing, out of range or not read by this checkpoint, or a result that the
                dtype cannot hold.

        Warns:
            OutOfFamilyWarning: Other hidden widths than the family's; once per call.
            OutOfRangeWarning: An L1 strength outside of ``l1_range``; once per call.
        """
        single = isinstance(models, nn.Module)
        where = lambda i: "" if single else f"models[{i}]: "  # noqa: E731
        # 1. Check everything.
        many = as_list(models)
        passes = self.passes if passes is None else passes
        check_passes(passes)
        if accept is not None and not callable(accept):
            raise ValueError(
                f"accept: got {accept!r}, expected a callable that takes a model and returns a loss"
            )
        shape = None if self.family is None else self.family.input_shape
        if example_input is not None:
            shape = example_input.shape[1:] if isinstance(example_input, Tensor) else None
        data = checked_batch(
            batch, self.metanet, self.problem, shape, len(many), symbols=self._reads_symbols(example_input)
        )
        check_networks(many, inplace=inplace, frozen=frozen, where=where)
        strengths = checked_l1(l1, len(many), self.metanet, self.l1_range)
        # 2. Compute.
        with plain():
            networks = read_networks(self.spec, many, example_input, self.family, where)
            warn_widths({change for network in networks for change in network.match.width_changes})
            better = improve(self.metanet, networks, data, strengths, passes, where)
        # 3. Write.
        results, accepted = many, set(range(len(many)))
        if not inplace or accept is not None:
            results = [write(copied(m, where(i)), better[i]) for i, m in enumerate(many)]
        if accept is not None:
            accepted = {i for i, m in enumerate(many) if is_better(accept, results[i], m, where(i))}
        if inplace:
            results = [write(m, better[i]) if i in accepted else m for i, m in enumerate(many)]
        else:
            results = [results[i] if i in accepted else copied(m, where(i)) for i, m in enumerate(many)]
        return results[0] if single else results

    def one_shot_params(
        self,
        params: Params,
        *,
        batch: tuple[Tensor, Tensor] | Sequence[tuple[Tensor, Tensor]] | None = None,
        l1: float | Sequence[float] | Tensor | None = None,
        passes: int | None = None,
    ) -> Params:
        """Improve networks given as tensors.

        Args:
            params: The family's parameter names, or others in the same order, -> tensors; all with one more,
                leading axis for B networks or none. Not modified.
            batch: As for ``one_shot``.
            l1: As for ``one_shot``.
            passes: As for ``one_shot``.

        Returns:
            New tensors that require no gradient, with the keys, shapes, dtypes and device of ``params``.

        Raises:
            ValueError: Names, number or shapes of ``params`` do not fit the family, they are NaN or infinite,
                or what ``one_shot`` raises for the other arguments.

        Warns:
            OutOfFamilyWarning: Other hidden widths than the family's.
            OutOfRangeWarning: An L1 strength outside of ``l1_range``.
        """
        alignment = align(self.spec, params)
        batched, names = alignment.batched, alignment.names
        passes = self.passes if passes is None else passes
        check_passes(passes)
        count = len(next(iter(params.values()))) if batched else 1
        strengths = checked_l1(l1, count, self.metanet, self.l1_range)
        shape = None if self.family is None else self.family.input_shape
        data = checked_batch(
            batch, self.metanet, self.problem, shape, count, symbols=self._reads_symbols(None)
        )
        warn_widths(set(alignment.width_changes))
        gradient = None
        with plain():
            if data is not None:
                if self.family is None:
                    raise ValueError(
                        "batch: this optimizer knows no family to compute gradients with; pass family= to "
                        "its constructor"
                    )
                with torch.random.fork_rng(devices=[]):
                    gradient = partial(data.gradient, self.family.build())
            tensors = {name: params[key].detach() for name, key in names.items()}
            better = run(
                self.metanet,
                tensors if batched else {name: value[None] for name, value in tensors.items()},
                Conditions(gradient, strengths, None if data is None else data.examples.counts(count)),
                passes,
                lambda b, name: f"params[{names[name]!r}]" + (f", network {b}," if batched else ""),
            )
            by_key = {key: better[name] if batched else better[name][0] for name, key in names.items()}
            # Copies: a metanet may return the very tensors that it got.
            return {key: by_key[key].to(p.device, copy=True) for key, p in params.items()}

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
        now = {"module": self.metanet, "l1_range": self.l1_range, "passes": self.passes}
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
