"""Optional packages: without them the core works from the wheel, and the rest names the extra to install."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from amortopt.system.extras import MissingExtraError, needed_for

ROOT = Path(__file__).parents[2]
CORE = """
import torch
import amortopt
from amortopt import symmetry
from amortopt.system.recipes import find_recipe

assert find_recipe("mnist1d_mlp_tanh", "fit").is_file() and find_recipe("mnist1d_mlp_tanh", "zoo").is_file()
net = torch.nn.Sequential(torch.nn.Linear(40, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.Tanh(),
                          torch.nn.Linear(32, 10))
x = torch.randn(8, 40)
spec = symmetry.extract(net, x)
assert symmetry.verify(spec, net, x).holds
better = amortopt.ScaleGMNOptimizer.from_pretrained("mnist1d-mlp-tanh").one_shot(net, l1=1e-3)
assert not torch.equal(better[0].weight, net[0].weight)
optimizer = amortopt.UNFOptimizer.from_pretrained("unf-small", net, example_input=x)
net(x).square().mean().backward()
optimizer.step()
"""


def closure(*names: str) -> set[str]:
    """Distributions that these need, themselves included, extras left out."""
    seen, todo = set(), list(names)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        needs = map(Requirement, importlib.metadata.requires(name) or ())
        todo += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return seen


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that has the wheel and its requirements, linked from this one."""
    folder = tmp_path_factory.mktemp("bare")
    run = {"check": True, "capture_output": True, "timeout": 120}
    hatchling = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(hatchling, cwd=ROOT, **run)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], **run)
    (wheel,) = folder.glob("*.whl")
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
    shutil.unpack_archive(wheel, site, "zip")
    core = [need.name for need in requirements(site) if need.marker is None]
    for name in closure(*core):
        files = importlib.metadata.files(name) or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(importlib.metadata.distribution(name).locate_file(top))))
    return folder / "env" / "bin" / "python"


def requirements(site: Path) -> list[Requirement]:
    (info,) = site.glob("amortopt-*.dist-info")
    return [Requirement(text) for text in importlib.metadata.PathDistribution(info).requires or ()]


def run(python: Path, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), "-I", *args], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_wheel_with_its_requirements_alone_optimizes_networks(bare: Path, tmp_path: Path) -> None:
    done = run(bare, "-c", CORE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "extra"), [("demo", "demo"), ("zoo", "train"), ("fit", "train"), ("info", "cli")]
)
def test_command_without_its_extra_names_it(bare: Path, tmp_path: Path, command: str, extra: str) -> None:
    done = run(bare, "-m", "amortopt.cli.main", command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: amortopt {command} needs jsonargparse: pip install 'amortopt[{extra}]'\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import amortopt.meta.fit", "meta-training needs lightning: pip install 'amortopt[train]'"),
        (
            "from amortopt.tasks import make_problem; make_problem('digits').split('val')",
            "the problem digits needs sklearn: pip install 'amortopt[data]'",
        ),
        (
            "import amortopt; amortopt.load_release('owner/name')",
            "reading it from the hub needs huggingface_hub: pip install 'amortopt[hub]'",
        ),
    ],
)
def test_import_without_its_extra_names_it(bare: Path, tmp_path: Path, code: str, message: str) -> None:
    done = run(bare, "-c", code, cwd=tmp_path)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("amortopt.system.extras.MissingExtraError") and last.endswith(message)


def test_needed_for_passes_other_errors() -> None:
    with pytest.raises(ModuleNotFoundError, match="nothing_of_the_sort"), needed_for("x", extra="demo"):
        import amortopt.nothing_of_the_sort  # noqa: F401  # pyright: ignore[reportMissingImports]
    message = r"x needs no_such_package: pip install 'amortopt\[demo\]'"
    with pytest.raises(MissingExtraError, match=message), needed_for("x", extra="demo"):
        import no_such_package  # noqa: F401  # pyright: ignore[reportMissingImports]
