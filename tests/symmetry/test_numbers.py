"""Numbers that forward takes out of tensors, and values that it checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amortopt.symmetry import extract
from amortopt.testing import assert_function_preserved

X = torch.linspace(-1, 1, 60, dtype=torch.float64).view(3, 5, 4)
LENGTHS = torch.tensor([5, 2, 4])


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 6).double(), nn.Linear(6, 2).double()


class _Padded(_Net):
    """A mask as long as the longest sequence, as torchaudio's Conformer has it."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        longest = int(torch.max(lengths))
        mask = torch.arange(longest).expand(len(lengths), longest) >= lengths[:, None]
        return self.b(torch.relu(self.a(x)).masked_fill(mask[..., None], 0.0))


class _PaddedOrNot(_Padded):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return super().forward(x, lengths) if int(torch.max(lengths)) > 3 else self.b(torch.tanh(self.a(x)))


class _Looped(_Padded):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        for _ in range(int(torch.min(lengths))):
            x = x + torch.relu(self.a(x))[..., :4]
        return self.b(self.a(x))


class _LongAsItSays(_Net):
    """A length that a hidden layer decides, as in text to speech."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        frames = torch.clamp(h.sum((1, 2)), 1, 9).ceil().long()
        steps = torch.arange(frames.max(), dtype=x.dtype)
        return self.b(h).mean(1)[:, :, None] * steps


class _Checked(_Net):
    def __init__(self, then: Any) -> None:
        super().__init__()
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        if torch.max(x) > 5:
            return self.then(self, h)
        return self.b(h)


def test_a_number_that_decides_a_size_is_no_branch() -> None:
    net = _Padded()
    spec = extract(net, (X, LENGTHS), strict=True)
    assert spec.group("h1").permutable and spec.group("h1").kind == "positive"
    assert_function_preserved(net, (X, LENGTHS), spec)


@pytest.mark.parametrize("build", [_PaddedOrNot, _Looped])
def test_a_number_that_decides_what_runs_is_refused(build: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="takes a number out of a tensor"):
        extract(build(), (X, LENGTHS))


def test_what_a_number_is_taken_from_does_not_move() -> None:
    net = _LongAsItSays()
    spec = extract(net, X, strict=True)
    # The order of the units is not seen in their sum; their sizes are.
    assert spec.group("h1").permutable and spec.group("h1").kind == "none"
    assert_function_preserved(net, X, spec)


def _raises(net: _Net, h: Tensor) -> Tensor:
    raise ValueError("inputs are outside of the range")


def _raises_after_a_look(net: _Net, h: Tensor) -> Tensor:
    if torch.tanh(h).max() > 2:
        raise ValueError("inputs are outside of the range")
    return net.b(torch.tanh(h))


def test_a_check_of_values_that_raises_is_no_branch() -> None:
    net = _Checked(_raises)
    spec = extract(net, X, strict=True)
    assert spec.group("h1").kind == "positive"
    assert_function_preserved(net, X, spec)


def test_a_check_that_raises_for_some_values_only_is_refused() -> None:
    with pytest.raises(ValueError, match="takes a number out of a tensor"):
        extract(_Checked(_raises_after_a_look), X)


class _Detector(_Net):
    """Boxes and scores, of which torchvision keeps some in one of two ways, by their number."""

    def forward(self, x: Tensor) -> list[Tensor]:
        boxes = pytest.importorskip("torchvision.ops.boxes")
        h = torch.relu(self.a(x)).flatten(0, 1)
        scores, place = self.b(h).unbind(-1)
        corners = torch.stack([place, place, place + 1 + scores**2, place + 1], -1)
        likely = torch.where(scores > scores.mean())[0]
        corners, scores = corners[likely], scores[likely]
        kept = boxes.batched_nms(corners, scores, torch.zeros_like(scores).long(), 0.9)
        return [corners[kept], scores[kept]]


class _Regions(_Net):
    """As many regions as are likely, averaged over a hidden image: the second stage of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 6, 3, padding=1).double(), nn.Linear(6, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        poolers = pytest.importorskip("torchvision.ops.poolers")
        likely = torch.where(x.mean((1, 2)) > -0.5)[0]
        # Of both sizes, so that each feature has a region
        boxes = torch.cat([torch.stack([likely, likely, likely + k, likely + k], 1) for k in (2, 4)]).to(x)
        pool = poolers.MultiScaleRoIAlign(["0", "1"], 2, 2, canonical_scale=32)
        h = torch.relu(self.conv(x[:, None]))
        features = {"0": h, "1": nn.functional.avg_pool2d(h, 2)}
        regions = pool(features, [boxes], [(5, 4)])
        return self.head(regions.mean((2, 3)))


def test_regions_of_as_many_boxes_as_there_are_are_no_branch() -> None:
    net = _Regions()
    spec = extract(net, X[2:], strict=True)
    assert [(group.size, group.kind) for group in spec.groups if group.permutable] == [(6, "positive")]
    assert_function_preserved(net, X[2:], spec)


def test_boxes_that_are_kept_are_no_branch() -> None:
    net = _Detector()
    spec = extract(net, X)
    assert spec.group("h1").permutable and spec.group("h1").kind == "positive"
    assert_function_preserved(net, X, spec)


class _Decided(_Net):
    """ReLU or tanh, as ``decide`` says."""

    def __init__(self, decide: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.decide = decide

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)) if self.decide(x) else torch.tanh(self.a(x)))


@pytest.mark.parametrize(
    "decide",
    [
        lambda x: x.tolist()[0][0][0] > 0,
        lambda x: x.detach().numpy().mean() > 0,
        lambda x: np.asarray(x.detach()).max() > 2,
        lambda x: torch.where(x > 0)[0].numel() == 0,
        lambda x: len(torch.argwhere(x > 0)) > 3,
        lambda x: torch.bincount((x.flatten() > 0).long()).shape[0] == 2,
        lambda x: x.flatten(1).to_sparse()._nnz() > 3,
    ],
    ids=["list", "array", "asarray", "where", "argwhere", "bincount", "sparse"],
)
def test_a_number_that_leaves_by_any_way_and_decides_is_refused(decide: Callable[[Tensor], bool]) -> None:
    with pytest.raises(ValueError, match="runs but cannot be traced"):
        extract(_Decided(decide), X)


def test_lists_of_constants_decide_nothing() -> None:
    class Listed(_Net):
        def forward(self, x: Tensor) -> Tensor:
            second = torch.arange(4, dtype=x.dtype).tolist()[2] + float(np.asarray(torch.ones(3)).sum())
            return self.b(torch.relu(self.a(x))) * second

    assert extract(Listed(), X, strict=True).group("h1").kind == "positive"


def test_a_list_that_decides_sizes_is_no_branch() -> None:
    class Parts(_Net):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            parts = self.a(x.flatten(0, 1)).split(lengths.tolist())
            return self.b(torch.cat([torch.relu(part) for part in parts]))

    spec = extract(Parts(), (X, torch.tensor([4, 9, 2])), strict=True)
    assert spec.group("h1").kind == "positive"
