"""The networks of coverage.py: what must work without any table written by hand, and more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.symmetry import coverage_networks as networks

VOCABULARY = 2000


@dataclass(frozen=True)
class Case:
    """A network and an input for it.

    Attributes:
        name: Key of its record and name on the command line.
        title: Name in tables.
        build: Makes it, with random weights.
        shape: Of the input, batch first.
        scalings: Independent continuous directions of rescaling, counted by hand; None if nobody did.
        ids: Whether the input is integers below ``VOCABULARY``.
        quick: Whether ``--quick`` has it.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    scalings: int | None
    ids: bool = False
    quick: bool = False

    def example_input(self) -> Tensor:
        """A random input."""
        return torch.randint(VOCABULARY, self.shape) if self.ids else torch.randn(self.shape)


def _torchvision(name: str, title: str, size: int, scalings: int | None, **options: bool) -> Case:
    def build() -> nn.Module:
        from torchvision.models import get_model

        return get_model(name, weights=None, **options)

    return Case(name, f"{title} (torchvision)", build, (2, 3, size, size), scalings)


def _cnn_1d() -> nn.Module:
    return networks.cnn(nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d(1))


def _cnn_2d() -> nn.Module:
    return networks.cnn(nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d(1))


def _recurrent(name: str, module: type[nn.Module]) -> Case:
    build, title = (
        partial(networks.RecurrentClassifier, module),
        f"nn.{module.__name__}, 2 layers, both directions",
    )
    return Case(name, title, build, (2, 20), 128, ids=True, quick=True)


CASES: tuple[Case, ...] = (
    Case("mlp", "MLP 784-512-512-10", networks.mlp, (2, 1, 28, 28), 1024, quick=True),
    Case("cnn_1d", "1-D CNN with batch norm", _cnn_1d, (2, 1, 40), 224, quick=True),
    Case("cnn_2d", "2-D CNN with batch norm", _cnn_2d, (2, 1, 28, 28), 224, quick=True),
    _torchvision("vgg11_bn", "VGG-11 with batch norm", 64, 10944),
    _torchvision("resnet18", "ResNet-18", 64, 2880),
    _torchvision("resnet50", "ResNet-50", 64, 11456),
    _torchvision("resnext50_32x4d", "ResNeXt-50 32x4d", 64, 19008),
    _torchvision("densenet121", "DenseNet-121", 64, 41760),
    _torchvision("mobilenet_v3_small", "MobileNetV3 small", 64, 1152),
    _torchvision("mobilenet_v3_large", "MobileNetV3 large", 64, 2352),
    _torchvision("efficientnet_b0", "EfficientNet-B0", 64, 784),
    _torchvision("regnet_y_400mf", "RegNetY-400MF", 64, 10288),
    _torchvision("shufflenet_v2_x0_5", "ShuffleNetV2 x0.5", 64, 3976),
    _torchvision("squeezenet1_0", "SqueezeNet 1.0", 64, 2976),
    _torchvision("googlenet", "GoogLeNet", 96, 7280, aux_logits=False, init_weights=False),
    _torchvision("convnext_tiny", "ConvNeXt-T", 64, 14688),
    _torchvision("vit_b_16", "ViT-B/16", 224, 37632),
    _torchvision("swin_t", "Swin-T", 224, 21120),
    _torchvision("swin_v2_t", "Swin-V2-T", 224, 12000),
    _torchvision("maxvit_t", "MaxViT-T", 224, None),
    Case("unet", "U-Net", networks.UNet, (2, 3, 32, 32), 1632, quick=True),
    Case("siren", "SIREN 2-256x4-3", networks.Siren, (64, 2), 0, quick=True),
    Case("mixer", "MLP-Mixer-S/16", networks.Mixer, (2, 3, 224, 224), 4608),
    _recurrent("rnn", nn.RNN),
    _recurrent("gru", nn.GRU),
    _recurrent("lstm", nn.LSTM),
    Case("encoder", "nn.TransformerEncoder", networks.EncoderClassifier, (2, 32, 40), 6400, quick=True),
    Case("gpt", "GPT with tied embeddings", networks.GPT, (2, 32), 9216, ids=True),
    Case("llama", "Llama", networks.Llama, (2, 32), 8320, ids=True),
    Case("autoencoder", "Autoencoder", networks.autoencoder, (2, 3, 32, 32), 208, quick=True),
    Case("experts", "Mixture of experts", networks.MixtureOfExperts, (2, 16, 40), 4352, quick=True),
)
"""In the order of the table."""


def case_named(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)
