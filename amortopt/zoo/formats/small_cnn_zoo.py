"""Read the Small CNN Zoo (Unterthiner et al. 2020, arXiv 2002.11448), or a folder in its format.

A folder holds checkpoints of many training runs of one architecture on one data set:

- ``weights.npy``: float [rows, columns], one flat row per checkpoint; some 270,000 rows in the published ones
- ``metrics.csv.gz``: hyper-parameters, epoch (``step``) and results, one line per row
- ``layout.csv``: which columns are which variable, in TensorFlow's axis order

The weights are mapped into memory, and only the rows that are asked for are read. Nothing is unpickled.
Legend: n networks, I input and O output channels, K kernel size.
"""

from __future__ import annotations

import csv
import gzip
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amortopt._types import Params
from amortopt.functional.networks import finite_networks, params_of
from amortopt.tasks import Family, make_family, make_problem
from amortopt.tasks.problem import SPLITS, Which
from amortopt.zoo.config import Table, even_split

WEIGHTS, METRICS, LAYOUT = "weights.npy", "metrics.csv.gz", "layout.csv"
_PROBLEMS = {
    "cifar10": "cifar10_gray",
    "svhn_cropped": "svhn_gray",
    "mnist": "mnist",
    "fashion_mnist": "fashion_mnist",
}
_NUMBERS = ("step", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
_NEEDED = ("config.activation", "config.dataset", "config.learning_rate", "modeldir", *_NUMBERS)
_EXTRA = ("optimizer", "w_init", "init_std", "l2reg", "dropout", "train_fraction")
_TEXTS = ("activation", "dataset", "modeldir", "optimizer", "w_init")  # columns that hold no number
_CHUNK = 1024  # rows converted at a time, which bounds the memory beside the result
_ADVICE = "extract the archive anew"


@dataclass(frozen=True)
class Variable:
    """A line of ``layout.csv``.

    Args:
        name: TensorFlow's name, such as ``"sequential/conv2d/kernel:0"``.
        columns: Columns of ``weights.npy``.
        shape: TensorFlow's: kernels [K, K, I, O] or [I, O], biases [O].
    """

    name: str
    columns: slice
    shape: tuple[int, ...]

    @property
    def is_kernel(self) -> bool:
        """Whether it is a kernel; otherwise it is a bias."""
        return self.name.split(":")[0].endswith("kernel")

    @property
    def order(self) -> tuple[int, ...]:
        """TensorFlow's axes in the order that PyTorch wants: [O, I, K, K] or [O, I]."""
        return tuple(range(len(self.shape)))[::-1] if len(self.shape) < 3 else (3, 2, 0, 1)


def locate(folder: Path) -> tuple[Path, str | None] | None:
    """Whether a folder is a Small CNN Zoo.

    Args:
        folder: The folder itself, or with an activation as a last part that is no folder of its own, such as
            ``cifar10/tanh``.

    Returns:
        The folder and the activation (None if it is not named); None if it is no Small CNN Zoo.
    """

    def is_one(path: Path) -> bool:
        files = (path / WEIGHTS, path / METRICS)
        return not (path / "zoo.json").exists() and any(file.is_file() for file in files)

    if is_one(folder):
        return folder, None
    return (folder.parent, folder.name) if not folder.exists() and is_one(folder.parent) else None


def read_small_cnn_zoo(
    folder: Path,
    *,
    activation: str | None = None,
    split: Which | None = None,
    max_epochs: int | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
) -> tuple[Params, Table, dict[str, Any]]:
    """Read one checkpoint of every network: its last one.

    A network is a training run (a ``modeldir``); all its checkpoints belong to the same split.

    Args:
        folder: Holds ``weights.npy``, ``metrics.csv.gz`` and ``layout.csv``.
        activation: Only networks with this activation; may be left out where there is but one.
        split: Only the networks of this split.
        max_epochs: Of every network, the last checkpoint after at most so many epochs.
        val_fraction: Share of networks for validation.
        test_fraction: Share of networks for testing.

    Returns:
        Params [n, ...] in float32 and PyTorch's axis order, the table (its ``index`` is the row of
        ``weights.npy``; val results and ``init_scale`` are NaN, as there are none) and the configuration.

    Raises:
        ValueError: If a file is missing or damaged, files do not fit together, the activation is not among
            them, or no network is selected.
    """
    missing = [name for name in (WEIGHTS, METRICS, LAYOUT) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"folder: {folder} is no whole Small CNN Zoo: {', '.join(missing)} missing; {_ADVICE}"
        )
    metrics = _read_metrics(folder / METRICS)
    weights, layout = _read_weights(folder, len(metrics["step"]))
    known = sorted(set(metrics["activation"].tolist()))
    if activation is None and len(known) == 1:
        activation = known[0]
    if activation is None or activation not in known:
        raise ValueError(
            f"activation: got {activation!r}, expected one of {', '.join(known)}, which {folder} holds; pass "
            f"activation=, or name the zoo {folder / known[-1]}"
        )
    rows, splits = _choose_rows(metrics, activation, max_epochs, (val_fraction, test_fraction))
    if split is not None:
        rows, splits = rows[splits == split], splits[splits == split]
    if len(rows) == 0:
        raise ValueError(
            f"split, max_epochs: got {split!r}, {max_epochs}, which select no network with activation "
            f"{activation} in {folder}; ask for others"
        )
    datasets = sorted(set(metrics["dataset"].tolist()))
    if len(datasets) != 1 or datasets[0] not in _PROBLEMS:
        raise ValueError(
            f"{folder / METRICS}: got config.dataset {', '.join(datasets)}, expected one of "
            f"{', '.join(_PROBLEMS)}"
        )
    problem = make_problem(_PROBLEMS[datasets[0]], preprocessing="small_cnn_zoo")
    family, params = _convert(weights, rows, layout, activation, problem.input_shape, folder / LAYOUT)
    table = {
        "index": rows,
        "seed": metrics["seed"][rows],
        "learning_rate": metrics["learning_rate"][rows],
        "init_scale": np.full(len(rows), math.nan),
        "epochs": metrics["step"][rows].astype(np.int64),
        "split": splits,
        "finite": finite_networks(params).numpy(),
    }
    for name in (f"{which}_{result}" for which in SPLITS for result in ("loss", "accuracy")):
        table[name] = metrics.get(name, metrics["step"] * math.nan)[rows]
    table |= {name: metrics[name][rows] for name in _EXTRA if name in metrics}
    config = {"problem": problem.to_config(), "family": family.to_config()}
    config |= {"seed": int(metrics["seed"][rows[0]]), "source": "Small CNN Zoo", "count": len(rows)}
    return params, table, config


def _read_metrics(path: Path) -> dict[str, np.ndarray]:
    """Columns of ``metrics.csv.gz`` that a zoo needs, [rows]; ``config.`` is left off the names."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            missing = [name for name in _NEEDED if name not in header]
            if missing:
                raise ValueError(
                    f"{path}: columns {', '.join(missing)} missing; expected the metrics of a Small CNN Zoo"
                )
            wanted = [*_NEEDED, "config.random_seed", *(f"config.{name}" for name in _EXTRA)]
            wanted = [name for name in wanted if name in header]
            places = [header.index(name) for name in wanted]
            lines = [[line[place] for place in places] for line in reader if line]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, IndexError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {_ADVICE}") from error
    if not lines:
        raise ValueError(f"{path} holds no lines; {_ADVICE}")
    columns: dict[str, np.ndarray] = {}
    for full, values in zip(wanted, zip(*lines, strict=True), strict=True):
        name = full.removeprefix("config.")
        try:
            numbers = values if name in _TEXTS else [float(v) if v else math.nan for v in values]
        except ValueError as error:
            raise ValueError(f"{path}: column {full}: {error}; {_ADVICE}") from error
        columns[name] = np.array(numbers)
    steps = columns["step"]
    if not (np.isfinite(steps).all() and (steps == steps.round()).all()):
        raise ValueError(f"{path}: column step: expected whole numbers of epochs; {_ADVICE}")
    seed = columns.pop("random_seed", np.zeros(len(lines)))
    return columns | {"seed": np.nan_to_num(seed).astype(np.int64)}


def _read_weights(folder: Path, rows: int) -> tuple[np.ndarray, list[Variable]]:
    """Weights, mapped into memory, and their variables in the order of their columns, each covered once."""
    path = folder / WEIGHTS
    try:
        weights = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is truncated or no array of numbers ({error}); {_ADVICE}") from error
    if not isinstance(weights, np.memmap) or weights.ndim != 2 or weights.dtype.kind != "f":
        raise ValueError(f"{path}: expected an array of floats [rows, columns]; {_ADVICE}")
    if len(weights) != rows:
        raise ValueError(
            f"{path}: got {len(weights)} rows, but {METRICS} has {rows}; one of the two is truncated, or of "
            f"another zoo: {_ADVICE}"
        )
    path = folder / LAYOUT
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    needed = ("varname", "start_idx", "end_idx", "shape")
    missing = [name for name in needed if not lines or lines[0].get(name) is None]
    if missing:
        raise ValueError(f"{path}: columns {', '.join(missing)} missing; expected a Small CNN Zoo's layout")
    variables: list[Variable] = []
    for line in lines:
        try:
            bounds = slice(int(line["start_idx"]), int(line["end_idx"]))
            shape = tuple(int(size) for size in re.findall(r"\d+", line["shape"]))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {line}: {error}; {_ADVICE}") from error
        variable = Variable(line["varname"], bounds, shape)
        if not re.search(r"(kernel|bias)(:\d+)?$", variable.name) or len(shape) not in (1, 2, 4):
            raise ValueError(
                f"{path}: got variable {variable.name!r} of shape {shape}, expected kernels [K, K, I, O] or "
                "[I, O] and biases [O]"
            )
        variables.append(variable)
    variables.sort(key=lambda variable: variable.columns.start)
    end = 0
    for variable in variables:
        start, stop, size = variable.columns.start, variable.columns.stop, math.prod(variable.shape)
        if start != end or stop - start != size:
            raise ValueError(
                f"{path} does not add up: {variable.name} of shape {variable.shape} has columns {start} to "
                f"{stop}, expected {end} to {end + size}"
            )
        end = stop
    if end != weights.shape[1]:
        raise ValueError(f"{path} lays out {end} columns, but {WEIGHTS} has {weights.shape[1]}; {_ADVICE}")
    return weights, variables


def _choose_rows(
    metrics: dict[str, np.ndarray], activation: str, max_epochs: int | None, fractions: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Row of every network's last checkpoint, ascending, and the split of each."""
    rows = np.flatnonzero(metrics["activation"] == activation)
    # The published table names the run, others name the checkpoint in the run's folder: permanent_ckpt-86.
    runs = [re.sub(r"/[^/]*ckpt-\d+[^/]*/?$", "", run) for run in metrics["modeldir"][rows].tolist()]
    first_rows, networks = np.unique(runs, return_index=True, return_inverse=True)[1:]
    rank = np.argsort(np.argsort(first_rows))  # networks by first appearance
    splits = even_split(rank, *fractions)[networks]

    steps = metrics["step"][rows]
    kept = np.ones(len(rows), dtype=bool) if max_epochs is None else steps <= max_epochs
    rows, steps, networks, splits = rows[kept], steps[kept], networks[kept], splits[kept]
    order = np.lexsort((rows, steps, networks))  # a network's checkpoints side by side, the last one last
    last = order[np.append(np.diff(networks[order]) != 0, True)] if len(order) else order
    last = np.sort(last)
    return rows[last], splits[last]


def _convert(
    weights: np.ndarray,
    rows: np.ndarray,
    layout: list[Variable],
    activation: str,
    input_shape: tuple[int, ...],
    path: Path,
) -> tuple[Family, Params]:
    """The family that a layout describes, Keras' convolutions without padding, and its params [n, ...].

    Of the weights, the chosen rows alone are read.
    """
    variables = {
        "weight": [variable for variable in layout if variable.is_kernel],
        "bias": [variable for variable in layout if not variable.is_kernel],
    }
    kernels = [variable.shape for variable in variables["weight"]]
    convolutions = [shape for shape in kernels if len(shape) == 4]
    if len(kernels) < 2 or kernels[:-1] != convolutions or len({shape[:2] for shape in convolutions}) != 1:
        raise ValueError(
            f"{path}: got kernels of shapes {kernels}, expected convolutions [K, K, I, O] of one size, then "
            "one dense layer [I, O]"
        )
    family = make_family(
        "cnn",
        activation=activation,
        channels=tuple(shape[3] for shape in convolutions),
        input_shape=input_shape,
        num_classes=kernels[-1][1],
        kernel_size=convolutions[0][0],
        stride=2,
        padding=0,
    )
    with torch.random.fork_rng(devices=[]):
        shapes = {name: tuple(value.shape) for name, value in params_of(family.build()).items()}
    of: dict[str, Variable] = {}
    for name, shape in shapes.items():
        queue = variables[name.rpartition(".")[2]]
        got = queue[0].shape if queue else None
        if got is None or tuple(got[axis] for axis in queue[0].order) != shape:
            raise ValueError(
                f"{path} does not fit {family}: got shape {got} for {name}, whose shape in PyTorch's axis "
                f"order is {shape}"
            )
        of[name] = queue.pop(0)
    if variables["weight"] or variables["bias"]:
        raise ValueError(f"{path} has more variables than {family}: {variables}")
    params = {name: torch.empty(len(rows), *shape) for name, shape in shapes.items()}
    for start in range(0, len(rows), _CHUNK):
        flat = np.asarray(weights[rows[start : start + _CHUNK]], dtype=np.float32)
        for name, variable in of.items():
            block = flat[:, variable.columns].reshape(-1, *variable.shape)
            block = block.transpose(0, *(axis + 1 for axis in variable.order))
            params[name][start : start + _CHUNK] = torch.from_numpy(block)
    return family, params
