"""The command `amortopt one-shot`: stored weights in, better weights out."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from amortopt._types import Params
from amortopt.optim.networks import align
from amortopt.optim.one_shot import ScaleGMNOptimizer
from amortopt.system.files import write_whole
from amortopt.tasks import ProblemFamily


def one_shot(
    checkpoint: str,
    weights: Path,
    out: Path | None = None,
    passes: int | None = None,
    l1: float | None = None,
    overwrite: bool = False,
) -> None:
    """Apply a trained metanet to stored weights, once.

    A shard of a zoo, ``shard-00001-of-00016.safetensors``, is such a file.

    Args:
        checkpoint: Name of a shipped checkpoint, a folder, or a hub id.
        weights: A safetensors file with the tensors of one network, or of many with a leading network axis,
            by the family's parameter names. (The format keeps no order, so no other names can be matched.)
        out: File to write; the same names, shapes and number formats.
        passes: How often the metanet is applied in a row; by default as often as in its training.
        l1: L1 strength, for checkpoints that read it.
        overwrite: Whether to replace ``out`` if it is there.

    Raises:
        ValueError: A wrong argument, or weights that do not fit the checkpoint.
        OSError: A file cannot be read or written; nothing half-written is left.
    """
    if out is None:
        raise ValueError("out: got nothing, expected the file to write, such as --out better.safetensors")
    if out.exists() and not overwrite:
        raise ValueError(f"out: {out} is there already; choose another file, or pass --overwrite true")
    if not weights.is_file():
        raise FileNotFoundError(f"weights: got {weights}, which is no file; expected a safetensors file")
    try:
        with safetensors.safe_open(weights, framework="pt") as file:
            params: Params = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
    except SafetensorError as error:
        raise ValueError(
            f"weights: {weights} is no safetensors file, or a truncated one ({error}); write one with "
            "safetensors.torch.save_file(dict(model.state_dict()), path)"
        ) from error
    optimizer = ScaleGMNOptimizer.from_pretrained(checkpoint)
    if params.keys() != set(optimizer.spec.params):
        raise ValueError(
            f"weights: {weights} has the tensors {', '.join(params) or '(none)'}, expected "
            f"{', '.join(optimizer.spec.params)}; rename them, or use ScaleGMNOptimizer.one_shot in Python, "
            "which matches any class by structure"
        )
    better = optimizer.one_shot_params(params, batch=problem_batch(optimizer), l1=l1, passes=passes)
    # Clones: safetensors refuses tensors that share memory.
    tensors = {name: value.contiguous().clone() for name, value in better.items()}
    write_whole(out, safetensors.torch.save(tensors, metadata))
    count = len(next(iter(params.values()))) if align(optimizer.spec, params).batched else 1
    print(f"{out}: {count} network{'s' * (count != 1)}, improved by {optimizer.name}")


def problem_batch(optimizer: ScaleGMNOptimizer) -> tuple[Tensor, Tensor] | None:
    """All train data of the checkpoint's problem if its metanet reads gradients, else None."""
    if "batch" not in optimizer.metanet.conditions or optimizer.problem is None:
        return None
    if isinstance(optimizer.problem, ProblemFamily):
        raise ValueError(
            f"checkpoint: {optimizer.name} reads examples of each network's problem, which a file of weights "
            "does not hold; use ScaleGMNOptimizer.one_shot_params(params, batch=(x, y)) in Python"
        )
    data = optimizer.problem.split("train")
    return data.x, data.y
