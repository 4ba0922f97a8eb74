"""Small classifiers for phones, and images in and out: gates over channels, encoders and decoders."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.base import family, inputs


class SqueezeExcitation(nn.Module):
    """Multiplies each channel by a gate that sees the mean of all."""

    def __init__(self, width: int, squeezed: int, gate: nn.Module) -> None:
        super().__init__()
        self.reduce, self.expand, self.gate = (
            nn.Conv2d(width, squeezed, 1),
            nn.Conv2d(squeezed, width, 1),
            gate,
        )

    def forward(self, x: Tensor) -> Tensor:
        scale = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return self.gate(scale) * x


class InvertedResidual(nn.Module):
    """Widen, filter each channel, gate, narrow, add."""

    def __init__(
        self, width: int, inner: int, activation: Callable[[], nn.Module], gate: nn.Module | None
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), activation()),
            *(nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False), nn.BatchNorm2d(inner)),
            activation(),
            SqueezeExcitation(inner, 3, gate) if gate else nn.Identity(),
            *(nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _mobile(activation: Callable[[], nn.Module], gate: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4)),
        *(InvertedResidual(4, 6, activation, gate), nn.Conv2d(4, 5, 1), activation()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(5, 3)),
    )


class DepthMultiplier(nn.Module):
    """Each channel becomes two, without mixing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv1d(2, 4, 3), nn.Conv1d(4, 8, 3, groups=4)
        self.head = nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.depthwise(F.relu(self.stem(x))))).flatten(1)


class UNet(nn.Module):
    """Two resolutions, a skip connection by concatenation; transposed convolutions or interpolation go up."""

    def __init__(self, *, bilinear: bool) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU())
        self.bottom = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.up = (
            nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Conv2d(6, 5, 1)
            )
            if bilinear
            else nn.ConvTranspose2d(6, 5, 2, stride=2)
        )
        self.merge = nn.Sequential(nn.Conv2d(9, 5, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        x = self.up(self.bottom(F.max_pool2d(skip, 2)))
        return self.head(self.merge(torch.cat([skip, x], dim=1)))


class ConvAutoencoder(nn.Module):
    """To a small code and back; the decoder unflattens."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3)),
        )
        self.decoder = nn.Sequential(
            *(nn.Linear(3, 4 * 9), nn.ReLU(), nn.Unflatten(1, (4, 3, 3))),
            *(nn.ConvTranspose2d(4, 1, 3, stride=2, padding=1, output_padding=1), nn.Sigmoid()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class SuperResolution(nn.Module):
    """Channels become pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(1, 5, 3, padding=1, padding_mode="replicate"), nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        residual = F.pixel_shuffle(self.up(torch.tanh(self.conv(x))), 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") + residual


class Normalised(nn.Module):
    """Convolution, norm, activation, convolution."""

    def __init__(self, norm: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.activation = nn.Conv2d(2, 6, 2), norm, activation
        self.head = nn.Conv2d(6, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.norm(self.first(x))))


def _normalised(
    norm: Callable[[], nn.Module], activation: Callable[[], nn.Module]
) -> Callable[[], nn.Module]:
    return lambda: Normalised(norm(), activation())


IMAGE = inputs(3, 2, 5, 5)

CASES = (
    family(
        "inverted-residual", lambda: _mobile(nn.ReLU), inputs(3, 3, 9, 9),
        permuted=(4, 6, 5), scaled=21, flipped=24,
    ),
    family(
        "squeeze-excitation-relu", lambda: _mobile(nn.ReLU, nn.Sigmoid()), inputs(3, 3, 9, 9),
        permuted=(4, 6, 3, 5), scaled=24, flipped=24,
    ),
    family(
        "mobilenet-v3", lambda: _mobile(nn.Hardswish, nn.Hardsigmoid()), inputs(3, 3, 9, 9),
        permuted=(4, 6, 3, 5), scaled=7, flipped=24,
    ),
    family(
        "efficientnet", lambda: _mobile(nn.SiLU, nn.Sigmoid()), inputs(3, 3, 9, 9),
        permuted=(4, 6, 3, 5), scaled=7, flipped=24,
    ),
    family("depth-multiplier", DepthMultiplier, inputs(2, 2, 7), permuted=(4, 2, 2, 2, 2), scaled=12),
    family(
        "unet", lambda: UNet(bilinear=False), inputs(3, 2, 4, 4),
        permuted=(4, 6, 5, 5), scaled=20, flipped=11,
    ),
    family(
        "unet-bilinear", lambda: UNet(bilinear=True), inputs(3, 2, 4, 4),
        permuted=(4, 6, 5, 5), scaled=20, flipped=11,
    ),
    family("conv-autoencoder", ConvAutoencoder, inputs(2, 1, 6, 6), permuted=(4, 3, 4), scaled=11, flipped=3),
    family("super-resolution", SuperResolution, inputs(2, 1, 3, 3), permuted=(5,), flipped=5),
    family(
        "batch-norm-plain", _normalised(lambda: nn.BatchNorm2d(6, affine=False), nn.ReLU), IMAGE,
        permuted=(6,),
    ),
    family(
        "batch-norm-tanh", _normalised(lambda: nn.BatchNorm2d(6), nn.Tanh), IMAGE, permuted=(6,), flipped=12
    ),
    family(
        "batch-norm-batch-statistics",
        _normalised(lambda: nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU), IMAGE,
        permuted=(6,), scaled=6, flipped=6,
    ),
    family(
        "instance-norm", _normalised(lambda: nn.InstanceNorm2d(6, affine=True), nn.ReLU), IMAGE,
        permuted=(6,), scaled=6, flipped=6,
    ),
    family(
        "group-norm", _normalised(lambda: nn.GroupNorm(2, 6), nn.ReLU), IMAGE,
        permuted=(2, 3, 3), scaled=6,
    ),
    family(
        "group-norm-one", _normalised(lambda: nn.GroupNorm(1, 6), nn.LeakyReLU), IMAGE,
        permuted=(6,), scaled=6,
    ),
    family(
        "layer-norm-2d", _normalised(lambda: nn.LayerNorm([6, 4, 4]), nn.ReLU), IMAGE,
        permuted=(6,), scaled=6,
    ),
    family("local-response-norm", _normalised(lambda: nn.LocalResponseNorm(3), nn.ReLU), IMAGE),
    family("prelu", _normalised(nn.Identity, lambda: nn.PReLU(6)), IMAGE, permuted=(6,), scaled=6),
    family(
        "dropout-2d", _normalised(lambda: nn.Dropout2d(0.3), nn.ReLU), IMAGE, permuted=(6,), scaled=6
    ),
)  # fmt: skip
"""Convolutional networks for phones and images."""
