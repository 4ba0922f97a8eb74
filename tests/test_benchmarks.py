"""benchmarks/one_pass.py measures, and its report says what was measured."""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from tests.releases import untrained_release

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def one_pass() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import one_pass

        yield one_pass


@pytest.fixture(scope="module")
def folder(one_pass: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmark")
    tiny = one_pass.Plan(
        networks=4,
        tuning_networks=2,
        epochs=(1, 3),
        sgd=(0.05, 1e-6),
        adam=(0.005,),
        latency=(1, 4),
        repeats=2,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_pass, "QUICK", tiny)
        checkpoint = untrained_release(root / "checkpoints")
        one_pass.main(["--quick", "--checkpoint", str(checkpoint), "--out", str(root / "results")])
    return root / "results"


@pytest.fixture
def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "one_pass_mnist1d_mlp_tanh.json").read_text())


def test_one_pass_has_a_row_for_every_baseline(results: dict[str, Any]) -> None:
    kinds = [(r["method"], r.get("noise"), r.get("epochs")) for r in results["rows"]]
    assert kinds[:2] == [("start", None, None), ("one_pass", None, None)]
    baselines = {(name, noise, e) for name in ("sgd", "adam") for noise in (0.0, 0.4) for e in (1, 3)}
    assert len(kinds) == 10 and set(kinds[2:]) == baselines
    for row in results["rows"]:
        values = row["accuracy"]["per_network"]
        assert len(values) == 4 and row["accuracy"]["mean"] == pytest.approx(sum(values) / 4, abs=1e-4)


def test_one_pass_of_an_untrained_metanet_changes_nothing(results: dict[str, Any]) -> None:
    start, better = results["rows"][:2]
    assert better["accuracy"] == start["accuracy"]


def test_one_pass_chooses_by_validation_accuracy(results: dict[str, Any]) -> None:
    assert len(results["tuning"]) == 2 * 2 * 2 * 3  # noise, schedule, lengths, learning rates
    for row in results["rows"][2:]:
        same = [
            t
            for t in results["tuning"]
            if (t["optimizer"], t["noise"], t["epochs"]) == (row["method"], row["noise"], row["epochs"])
        ]
        best = max(same, key=lambda t: t["val_accuracy"])
        assert (row["learning_rate"], row["schedule"]) == (best["learning_rate"], best["schedule"])
        assert row["learning_rate"] != 1e-6


def test_one_pass_records_what_made_it(results: dict[str, Any]) -> None:
    assert results["quick"] and results["plan"]["seed"] and results["versions"]["torch"]
    assert (
        results["checkpoint"]["name"] == "mnist1d-mlp-tanh-ce" and len(results["checkpoint"]["sha256"]) == 64
    )
    assert [row["batch"] for row in results["latency"]] == [1, 4]
    assert results["rows"][1]["seconds_per_network"] == results["latency"][-1]["seconds_per_network"]


def test_one_pass_uses_other_networks_for_tuning(one_pass: Any) -> None:
    from amortopt.zoo import ZooConfig

    plans = (one_pass.Plan(), one_pass.QUICK)
    assert all(ZooConfig().seed not in (plan.seed, plan.seed + 1) for plan in plans)


def test_report_files_are_made_from_the_results(one_pass: Any, folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} == {
        "one_pass_mnist1d_mlp_tanh.json",
        "one_pass.md",
        "one_pass.png",
    }
    everything = one_pass.report.read_results(folder)
    assert (folder / "one_pass.md").read_text() == one_pass.report.markdown(everything)


def test_report_draws_a_panel_per_family(one_pass: Any, results: dict[str, Any]) -> None:
    other = copy.deepcopy(results)
    other["family"]["activation"] = "relu"
    pictures = [one_pass.report.picture(some) for some in ([results], [results, other])]
    one, two = (matplotlib.image.imread(io.BytesIO(png)).shape for png in pictures)
    assert one[0] == two[0] and two[1] > 1.3 * one[1]


def test_report_block_replaces_only_what_is_between_the_marks(
    one_pass: Any, results: dict[str, Any], tmp_path: Path
) -> None:
    report, readme = one_pass.report, tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        report.rewrite_readme(readme, [results])
        block = report.readme_block([results])
        assert readme.read_text() == f"before\n{block}\nafter\n"
    mean = results["rows"][2]["accuracy"]["mean"]
    assert f"{mean:.1f}" in block and "SGD + noise, 3 epochs" in block
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="lacks the marks"):
        report.rewrite_readme(readme, [results])


def test_report_refuses_other_files(one_pass: Any, results: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no one_pass_"):
        one_pass.report.read_results(tmp_path)
    path = tmp_path / "one_pass_x.json"
    path.write_text(json.dumps(results | {"format": 99}))
    with pytest.raises(ValueError, match="got format 99"):
        one_pass.report.read_results(tmp_path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match="no JSON"):
        one_pass.report.read_results(tmp_path)


def test_summary_has_the_interval_of_students_t(one_pass: Any) -> None:
    values = [1.0, 2.0, 4.0, 5.0]
    made = one_pass.report.summary(values)
    deviation = math.sqrt(sum((v - 3) ** 2 for v in values) / 3)
    assert made["mean"] == 3 and made["max"] == 5
    assert made["half_interval"] == pytest.approx(3.182446 * deviation / 2, abs=1e-4)
    assert one_pass.report.summary([math.nan, 1.0])["mean"] is None
