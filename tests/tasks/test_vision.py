"""Vision problems read the data sets' own formats and refuse damaged ones."""

from __future__ import annotations

import pickle
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from amortopt.tasks import Problem, VisionProblem, make_problem
from amortopt.tasks.formats import luma, shrink
from tests.tasks import archives

Content = dict[bool, tuple[np.ndarray, np.ndarray]]
WRITERS: dict[str, Callable[[Path], Content]] = {
    "mnist": lambda root: archives.write_idx(root, "MNIST", packed=False),
    "fashion_mnist": lambda root: archives.write_idx(root, "FashionMNIST", packed=True),
    "cifar10": archives.write_cifar10,
    "cifar10_gray": archives.write_cifar10,
    "svhn_gray": archives.write_svhn,
}
every_problem = pytest.mark.parametrize("name", WRITERS)


def gray(pixels: np.ndarray) -> np.ndarray:
    """Pillow's own conversion, image by image."""
    if pixels.ndim == 3:
        return pixels
    return np.stack([np.asarray(Image.fromarray(p.transpose(1, 2, 0)).convert("L")) for p in pixels])


def as_read(name: str, pixels: np.ndarray) -> np.ndarray:
    """The pixels [N, C, H, W] that a problem makes of a file's."""
    return pixels if name == "cifar10" else gray(pixels)[:, None]


def made(name: str, root: Path) -> tuple[Problem, Content]:
    content = WRITERS[name](root)
    return make_problem(name, root=root), content


@every_problem
def test_vision_test_part_is_the_standardised_file(name: str, tmp_path: Path) -> None:
    problem, content = made(name, tmp_path)
    test = problem.split("test")
    pixels, labels = content[False]
    assert test.x.shape == (archives.TEST, *problem.input_shape) and test.x.dtype == torch.float32
    assert test.y.tolist() == labels.tolist() and test.y.dtype == torch.int64
    # Standardising is affine and increasing: undo it with two grey levels and compare all pixels.
    expected = torch.from_numpy(as_read(name, pixels).astype(np.float64))
    x = test.x.double()
    scale = (expected.max() - expected.min()) / (x.max() - x.min())
    torch.testing.assert_close((x - x.min()) * scale + expected.min(), expected, atol=1e-3, rtol=0)


@every_problem
def test_vision_train_part_is_standardised(name: str, tmp_path: Path) -> None:
    problem, _ = made(name, tmp_path)
    x = problem.split("train").x.double()
    assert abs(x.mean()) < 1e-5 and abs(x.std(unbiased=False) - 1) < 1e-5


@every_problem
def test_vision_inputs_of_the_small_cnn_zoo_are_mean_colours_from_minus_one_to_one(
    name: str, tmp_path: Path
) -> None:
    content = WRITERS[name](tmp_path)
    test = make_problem(name, root=tmp_path, preprocessing="small_cnn_zoo").split("test")
    pixels = content[False][0].astype(np.float64)
    if name != "cifar10":
        pixels = (pixels if pixels.ndim == 3 else pixels.mean(1))[:, None]
    np.testing.assert_allclose(test.x.numpy(), 2 * pixels / 255 - 1, atol=1e-6)


def test_vision_preprocessing_is_checked() -> None:
    with pytest.raises(ValueError, match="preprocessing: got 'raw', expected one of standardised, small_cnn"):
        make_problem("mnist", preprocessing="raw")


@every_problem
def test_vision_images_are_shrunk_to_a_size(name: str, tmp_path: Path) -> None:
    content = WRITERS[name](tmp_path)
    problem = make_problem(name, root=tmp_path, size=4)
    assert make_problem(**problem.to_config()) == problem
    x = problem.split("test").x.double()
    assert (
        x.shape == (archives.TEST, 3 if name == "cifar10" else 1, 4, 4) and problem.input_shape == x.shape[1:]
    )
    # The mean of an area, to the nearest grey level: undo the standardisation by the line through all pixels.
    pixels = torch.from_numpy(as_read(name, content[False][0]).astype(np.float64))
    expected = torch.nn.functional.adaptive_avg_pool2d(pixels, 4)
    slope = ((x - x.mean()) * (expected - expected.mean())).mean() / x.var(unbiased=False)
    assert ((x - x.mean()) * slope + expected.mean() - expected).abs().max() < 1.0


@every_problem
def test_vision_config_without_a_size_is_as_it_was(name: str) -> None:
    """Zoos are stored under their problem's config."""
    assert set(make_problem(name).to_config()) == {
        "name", "root", "download", "val_fraction", "seed", "preprocessing",
    }  # fmt: skip


@pytest.mark.parametrize(("side", "size"), [(28, 8), (32, 16), (5, 3), (3, 3), (7, 1)])
def test_shrink_is_the_mean_of_the_area(side: int, size: int) -> None:
    """Against the obvious way: every pixel repeated, so that areas are whole."""
    pixels = np.random.RandomState(side).randint(0, 256, (2, side, side)).astype(np.uint8)
    fine = pixels.repeat(size, -1).repeat(size, -2).astype(np.int64)
    sums = fine.reshape(2, size, side, size, side).sum((2, 4))
    np.testing.assert_array_equal(shrink(pixels, size), (2 * sums + side**2) // (2 * side**2))
    floats = shrink(pixels.astype(np.float32), size)
    np.testing.assert_allclose(floats, sums / side**2, rtol=1e-5)


@pytest.mark.parametrize("size", [0, 33, 8.0, -1])
def test_vision_size_is_checked(size: Any) -> None:
    with pytest.raises(ValueError, match=r"size: got .* expected 1 to 32 pixels"):
        make_problem("cifar10", size=size)


@every_problem
def test_vision_val_is_a_fixed_tenth_of_train(name: str, tmp_path: Path) -> None:
    problem, content = made(name, tmp_path)
    train, val = problem.split("train"), problem.split("val")
    assert len(val) == archives.TRAIN // 10 and len(train) == archives.TRAIN - len(val)
    assert sorted([*train.y.tolist(), *val.y.tolist()]) == sorted(content[True][1].tolist())
    assert problem.split("val").x is val.x
    other = make_problem(name, root=tmp_path, seed=1).split("val")
    assert not torch.equal(other.x, val.x)


@every_problem
def test_vision_config_makes_the_same_problem(name: str, tmp_path: Path) -> None:
    problem = make_problem(name, root=tmp_path, val_fraction=0.2)
    assert make_problem(**problem.to_config()) == problem


@every_problem
def test_vision_missing_folder_says_what_to_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="download=True"):
        make_problem(name, root=tmp_path / "nowhere").split("train")


@every_problem
def test_vision_truncated_file_is_refused(name: str, tmp_path: Path) -> None:
    problem, _ = made(name, tmp_path)
    largest = max((p for p in tmp_path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
    with pytest.raises(ValueError, match=largest.name):
        problem.split("train")


@every_problem
def test_vision_pickle_in_place_of_a_file_is_not_run(name: str, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
            return (Path(tmp_path / "fired").touch, ())  # type: ignore[return-value]

    problem, _ = made(name, tmp_path)
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"damaged|gzip|expected"):
        problem.split("train")
    assert not (tmp_path / "fired").exists()


def test_cifar_label_out_of_range_is_refused(tmp_path: Path) -> None:
    problem, _ = made("cifar10_gray", tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(bytes([11]) + path.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"data_batch_3.bin: got label 11"):
        problem.split("train")


def test_luma_is_pillows(tmp_path: Path) -> None:
    rgb = np.random.RandomState(0).randint(0, 256, (1, 3, 256, 256)).astype(np.uint8)
    np.testing.assert_array_equal(luma(rgb), gray(rgb))


def test_mnist_reads_what_torchvision_reads(tmp_path: Path) -> None:
    import torchvision

    made("mnist", tmp_path)
    theirs = torchvision.datasets.MNIST(tmp_path, train=False)
    problem = make_problem("mnist", root=tmp_path)
    assert isinstance(problem, VisionProblem)
    ours = problem.read(train=False)
    np.testing.assert_array_equal(ours.pixels, theirs.data.numpy())
    np.testing.assert_array_equal(ours.labels, theirs.targets.numpy())


def test_torchvision_matches_torch() -> None:
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist() == [1]


def stub_downloads(monkeypatch: pytest.MonkeyPatch, source: Path) -> list[str]:
    """Let torchvision's downloader copy from a folder; returns the list of addresses that were asked for."""
    import torchvision.datasets.utils

    asked: list[str] = []

    def download_url(url: str, root: str, filename: str, md5: str) -> None:
        assert len(md5) == 32
        if not (Path(root) / filename).exists():
            asked.append(url)
            Path(root).mkdir(parents=True, exist_ok=True)
            shutil.copy(next(source.rglob(filename)), root)

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", download_url)
    return asked


@pytest.mark.parametrize(
    ("name", "files"),
    [("mnist", 4), ("fashion_mnist", 4), ("cifar10", 1), ("cifar10_gray", 1), ("svhn_gray", 2)],
)
def test_vision_download_fetches_what_is_missing_once(
    name: str, files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, root = tmp_path / "source", tmp_path / "root"
    if name == "mnist":
        archives.write_idx(source, "MNIST", packed=True)
    else:
        WRITERS[name](source)
    if name.startswith("cifar10"):
        with tarfile.open(source / "cifar-10-binary.tar.gz", "w:gz") as packed:
            packed.add(source / "cifar-10-batches-bin", "cifar-10-batches-bin")
    asked = stub_downloads(monkeypatch, source)
    for seed in (0, 1):
        assert len(make_problem(name, root=root, download=True, seed=seed).split("test")) == archives.TEST
        assert len(asked) == files


def test_vision_download_tries_every_mirror_and_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets.utils

    def offline(*args: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", offline)
    mirrors = torchvision.datasets.MNIST.mirrors
    with pytest.raises(ConnectionError, match="by hand") as caught:
        make_problem("mnist", root=tmp_path, download=True).split("train")
    assert all(mirror in str(caught.value) for mirror in mirrors)


def test_vision_download_with_a_broken_torchvision_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ImportError, match=r"constraints\.txt"):
        make_problem("svhn_gray", root=tmp_path, download=True).split("train")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_vision_val_fraction_is_checked(fraction: float) -> None:
    with pytest.raises(ValueError, match="val_fraction"):
        make_problem("mnist", val_fraction=fraction)
