"""Networks as libraries give them, small and with random weights: a network and an input, by name.

Nothing is downloaded. A name has the library in front: ``timm_resnet26d``, ``transformers_bert``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias
from unittest import mock

import torch
from torch import nn

Factory: TypeAlias = Callable[[], tuple[nn.Module, Any]]

LIBRARIES: dict[str, str] = {
    "timm": "images",
    "torchvision": "images",
    "segmentation-models-pytorch": "images",
    "monai": "images",
    "ultralytics": "images",
    "vit-pytorch": "images",
    "diffusers": "images",
    "open-clip": "images",
    "transformers": "transformers",
    "x-transformers": "sequences",
    "mambapy": "sequences",
    "torchaudio": "sequences",
    "torch-geometric": "graphs",
    "written-out": "written_out",
}
"""Library -> the file of this folder with its networks."""


def factories(library: str) -> dict[str, Factory]:
    """Name -> function that makes the network and its ``example_input``; imports nothing of the library."""
    module = import_module(f"benchmarks.symmetry.library.{LIBRARIES[library]}")
    return module.NETWORKS[library]


def load_torchaudio() -> None:
    """Import torchaudio where it is installed; transformers does so too, at many of its models.

    It refuses a torch built for another version of CUDA; networks run on the CPU here, so that is no reason.
    """
    if find_spec("torchaudio") is not None:
        with mock.patch.object(torch.version, "cuda", None):
            import_module("torchaudio")
