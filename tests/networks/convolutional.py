"""Convolutional classifiers: plain, residual, dense, with grouped and depthwise convolutions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.base import family, inputs


def _conv_norm(before: int, after: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(after))


class VGG(nn.Module):
    """Convolutions with batch norm, flattened into a dense classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        )
        self.classifier = nn.Sequential(nn.Linear(5 * 4, 6), nn.ReLU(True), nn.Dropout(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class PostActivationBlock(nn.Module):
    """The basic block of ResNet-18."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv_norm(before, after, stride=stride)
        self.conv2 = _conv_norm(after, after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            None if (before, stride) == (after, 1) else _conv_norm(before, after, 1, stride=stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.conv2(self.relu(self.conv1(x)))
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """The block of ResNet-50 and, with groups, of ResNeXt."""

    def __init__(self, width: int, inner: int, groups: int = 1) -> None:
        super().__init__()
        self.reduce, self.expand = _conv_norm(width, inner, 1), _conv_norm(inner, width, 1)
        self.conv = _conv_norm(inner, inner, 3, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.conv(F.relu(self.reduce(x))))
        return F.relu(self.expand(out) + x)


class PreActivationBlock(nn.Module):
    """Norm and activation before each convolution; a stream without an activation of its own."""

    def __init__(self, before: int, inner: int, after: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, inner, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, after, 3, padding=1, bias=False)
        if before != after:
            self.shortcut = nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


def _residual(*blocks: nn.Module, stem: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


def _resnet() -> nn.Module:
    stem = nn.Sequential(_conv_norm(3, 4), nn.ReLU(), nn.MaxPool2d(2, stride=1))
    return _residual(PostActivationBlock(4, 4), PostActivationBlock(4, 6, 2), stem=stem, width=6)


def _bottlenecks(groups: int) -> nn.Module:
    stem = nn.Sequential(_conv_norm(3, 4), nn.ReLU())
    return _residual(Bottleneck(4, 6, groups), stem=stem, width=4)


def _pre_activation() -> nn.Module:
    blocks = (PreActivationBlock(4, 5, 4), PreActivationBlock(4, 6, 6))
    return _residual(
        *blocks, nn.BatchNorm2d(6), nn.ReLU(), stem=nn.Conv2d(3, 4, 3, padding=1, bias=False), width=6
    )


class DenseLayer(nn.Module):
    """Reads the concatenation of all before it and writes a few channels more."""

    def __init__(self, before: int, inner: int = 6, growth: int = 3) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, inner, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseNet(nn.Module):
    """One dense block, a transition, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.layers = nn.ModuleList([DenseLayer(4), DenseLayer(7)])
        self.transition = nn.Sequential(
            nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 5, 1, bias=False), nn.AvgPool2d(2)
        )
        self.norm, self.head = nn.BatchNorm2d(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        x = F.relu(self.norm(self.transition(torch.cat(features, 1))), inplace=True)
        return self.head(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


class Inception(nn.Module):
    """Parallel branches, concatenated; the branch without a convolution passes its input on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.one, self.three = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 5, 3, padding=1)
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        x = torch.cat([F.relu(self.one(x)), F.relu(self.three(x)), pooled], dim=1)
        return self.head(x).mean(dim=(2, 3))


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Patches, one block, a head."""

    def __init__(self, width: int = 4, inner: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 2, stride=2), LayerNorm2d(width, eps=1e-6))
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.layer_scale = nn.Parameter(1e-6 * torch.ones(width))
        self.head_norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = self.layer_scale * self.down(F.gelu(self.up(out)))
        x = x + out.permute(0, 3, 1, 2)
        return self.head(self.head_norm(x.mean([-2, -1])))


class ChannelShuffle(nn.Module):
    """Grouped convolutions whose groups exchange channels, as in ShuffleNet."""

    def __init__(self, groups: int = 2) -> None:
        super().__init__()
        self.groups = groups
        self.stem, self.first = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1, groups=groups)
        self.depthwise, self.second = (
            nn.Conv2d(8, 8, 3, groups=8, bias=False),
            nn.Conv2d(8, 4, 1, groups=groups),
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(F.relu(self.stem(x))))
        n, c, h, w = x.shape
        x = x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        x = F.relu(self.second(self.depthwise(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class SplitShuffle(nn.Module):
    """Half of the channels passes by, the other half is convolved, then both are shuffled: ShuffleNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        left, right = x.chunk(2, dim=1)
        x = torch.cat((left, F.relu(self.branch(right))), dim=1)
        x = nn.functional.channel_shuffle(x, 2)
        return self.head(x).amax((2, 3))


class SqueezedAway(nn.Module):
    """Singleton axes that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(1, 4, (3, 5)), nn.Conv1d(4, 5, 2), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x.unsqueeze(1))).squeeze(3)
        return self.head(torch.relu(self.mix(x)).max(dim=2).values[:, None].squeeze())


CASES = (
    family("vgg", VGG, inputs(4, 3, 8, 8), permuted=(4, 5, 6), scaled=15, flipped=9),
    family("resnet", _resnet, inputs(3, 3, 6, 6), permuted=(4, 4, 6, 6), scaled=20, flipped=30),
    family(
        "bottleneck", lambda: _bottlenecks(1), inputs(3, 3, 5, 5), permuted=(4, 6, 6), scaled=16, flipped=20
    ),
    family(
        "resnext", lambda: _bottlenecks(2), inputs(3, 3, 5, 5),
        permuted=(4, 2, 3, 3, 3, 3), scaled=16, flipped=20,
    ),
    family(
        "pre-activation", _pre_activation, inputs(3, 3, 5, 5), permuted=(4, 5, 6, 6), scaled=25, flipped=21
    ),
    family("densenet", DenseNet, inputs(3, 3, 6, 6), permuted=(4, 3, 3, 6, 6, 5), scaled=38, flipped=27),
    family("inception", Inception, inputs(2, 3, 5, 5), permuted=(4, 3, 5), scaled=12),
    family("convnext", ConvNeXt, inputs(2, 3, 8, 8), permuted=(4, 6), scaled=12, flipped=12),
    family(
        "channel-shuffle", ChannelShuffle, inputs(2, 3, 4, 4), permuted=(2,) * 8, scaled=16, flipped=4
    ),
    family("split-shuffle", SplitShuffle, inputs(2, 3, 4, 4)),
    family("squeezed-away", SqueezedAway, inputs(2, 6, 5), permuted=(4, 5), scaled=9),
)  # fmt: skip
"""Convolutional classifiers."""
