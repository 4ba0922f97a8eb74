"""benchmarks/sgd_vs_amortized.py measures, goes on where it was stopped, and reports what was measured."""

from __future__ import annotations

import copy
import importlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import pytest
import torch

from amortopt import load_release, save_release
from amortopt.metanets import make_metanet
from amortopt.zoo import ZooConfig
from tests.releases import untrained_release

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "sgd_vs_amortized.json"
CELL = "mnist1d_mlp_tanh"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The benchmark's modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        names = ("cells", "baselines", "one_pass", "store", "tables", "pictures")
        modules = {name: importlib.import_module(f"comparison.{name}") for name in names}
        yield SimpleNamespace(run=importlib.import_module("sgd_vs_amortized"), **modules)


@pytest.fixture(scope="module")
def tiny(bench: Any) -> Iterator[Any]:
    """A plan of seconds in place of the quick one."""
    method = bench.cells.Method
    plan = replace(
        bench.cells.QUICK,
        networks=4,
        tuning=2,
        lengths=(1, 2),
        methods=(method("sgd"), method("sgd", l1=True), method("adam", l1=True, proximal=True, lengths=(2,))),
        strengths=2,
        dense=3,
        curve=(method("sgd", l1=True),),
        curve_networks=2,
        curve_tuning=1,
        timed=1,
        repeats=1,
        widen=2,
        sgd=0.004,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.cells, "QUICK", plan)
        yield plan


def reading_release(root: Path, seed: int, **config: Any) -> Path:
    """An untrained checkpoint that reads λ."""
    release = load_release(untrained_release(root / "plain"))
    name = f"tiny-{config.get('symmetry', 'scale')}-{seed}"
    torch.manual_seed(seed)
    metanet = make_metanet(
        "scalegmn", release.module.spec, **{**release.module.config, "reads": ["l1"], **config}
    )
    with torch.no_grad():
        # Untrained, a metanet returns its input.
        for p in metanet.parameters():
            p.add_(0.02 * torch.randn_like(p))
    recipe, seeds = {"data": {"input_noise": 0.4}}, {"metanet and draws": seed}
    made = replace(release, module=metanet, name=name, recipe=recipe, seeds=seeds, card=None)
    return save_release(root / "many" / name, made)


@pytest.fixture(scope="module")
def folder(bench: Any, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmark")
    for seed in (0, 1):
        reading_release(root, seed)
    reading_release(root, 0, symmetry="permutation")
    bench.run.main(["--quick", "--out", str(root / "out"), "--checkpoints", str(root / "many")])
    return root / "out"


@pytest.fixture
def records(bench: Any, folder: Path) -> dict[str, Any]:
    return bench.store.read_results(folder / bench.store.FILE)["records"]


def test_benchmark_measures_every_part(records: dict[str, Any]) -> None:
    assert set(records) == {
        f"{CELL}/{part}"
        for part in (
            "start", "timing", "rows/ce-sgd-noise", "rows/l1-sgd-noise", "rows/l1-prox-adam-noise",
            "curve/l1-sgd-noise", "one_pass/scale/0", "one_pass/scale/1", "one_pass/permutation/0",
            "latency/scale/0", "latency/scale/1", "latency/permutation/0",
        )
    }  # fmt: skip
    for record in records.values():
        assert record["made"]["hardware"] and record["made"]["versions"]["torch"]
    rows = records[f"{CELL}/rows/l1-sgd-noise"]["result"]["rows"]
    assert [row["epochs"] for row in rows] == [1, 2]
    for row in rows:
        assert all(len(row[name]) == 4 for name in ("accuracy", "loss", "objective", "cut"))
        assert all(a > b for a, b in zip(row["objective"], row["loss"], strict=True))
    curve = records[f"{CELL}/one_pass/scale/0"]["result"]["curve"]
    assert [point["l1"] for point in curve] == pytest.approx([1e-4, 1e-3, 1e-2])


def test_benchmark_proximal_rows_have_exact_zeros(records: dict[str, Any]) -> None:
    zeros = {
        name: records[f"{CELL}/rows/{name}"]["result"]["rows"][-1]["zeros"]
        for name in ("l1-sgd-noise", "l1-prox-adam-noise")
    }
    assert zeros["l1-sgd-noise"] == 0 < zeros["l1-prox-adam-noise"]


@pytest.mark.parametrize("key, column, sign", [("ce-sgd-noise", 4, 1), ("l1-sgd-noise", 5, -1)])
def test_benchmark_chooses_by_validation_and_widens_the_grid(
    tiny: Any, records: dict[str, Any], key: str, column: int, sign: int
) -> None:
    result = records[f"{CELL}/rows/{key}"]["result"]
    tuning = result["tuning"]["rows"]
    for row in result["rows"]:
        mine = [t for t in tuning if t[2] == row["epochs"]]
        best = max(sign * t[column] for t in mine)
        assert best in [sign * t[column] for t in mine if t[1:4:2] == [row["schedule"], row["learning_rate"]]]
    # The grid starts far below the best rate.
    assert max(t[3] for t in tuning) == pytest.approx(tiny.sgd * tiny.factor ** (tiny.reach + tiny.widen))


def test_benchmark_goes_on_where_it_was_stopped(
    bench: Any, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / bench.store.FILE
    everything, before = json.loads(path.read_text()), path.read_bytes()
    lost = everything["records"].pop(f"{CELL}/timing")
    path.write_text(json.dumps(everything))
    monkeypatch.setattr(bench.baselines.Baselines, "rows", lambda *_: pytest.fail("measured again"))
    checkpoints = str(folder.parent / "many")
    bench.run.main(["--quick", "--out", str(folder), "--checkpoints", checkpoints])
    assert "11 of 12 parts" in capsys.readouterr().out
    again = json.loads(path.read_text())["records"]
    assert again[f"{CELL}/timing"]["identity"] == lost["identity"]
    bench.run.main(["--quick", "--out", str(folder), "--checkpoints", checkpoints])
    assert "12 of 12 parts" in capsys.readouterr().out
    path.write_bytes(before)


def test_benchmark_measures_anew_what_has_changed(bench: Any, tiny: Any, folder: Path) -> None:
    store = bench.store.Store(folder / bench.store.FILE, quick=True)
    cell = bench.cells.cell_of_recipe(CELL, quick=True)

    def kept(plan: Any, noise: float = 0.4, chunk: int = 64) -> dict[str, bool]:
        changed = replace(cell, plan=plan, setting=replace(cell.setting, noise=noise))
        parts = bench.run.baseline_parts(changed, ("baselines", "timing"), lambda *_: None)
        return {part.key.partition("/")[2]: store.have(part.key, part.identity) for part in parts}

    assert all(kept(tiny).values()) and all(kept(replace(tiny, chunk=7)).values())
    assert not any(kept(replace(tiny, networks=5)).values())
    assert [name for name, same in kept(tiny, noise=0.3).items() if same] == ["start"]
    other = [name for name, same in kept(replace(tiny, adam=0.01)).items() if not same]
    assert other == ["rows/l1-prox-adam-noise"]


def test_baselines_need_no_checkpoint(
    bench: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.run, "list_shipped", lambda: pytest.fail("checkpoints were looked for"))
    bench.run.main(["--quick", "--parts", "baselines", "--only", CELL, "--out", str(tmp_path)])
    records = bench.store.read_results(tmp_path / bench.store.FILE)["records"]
    assert {key.split("/")[1] for key in records} == {"start", "rows", "curve"}
    assert (tmp_path / "sgd_vs_amortized_l1.png").is_file()


def test_a_checkpoint_that_reads_no_l1_has_no_l1_columns(bench: Any, tiny: Any, tmp_path: Path) -> None:
    source = untrained_release(tmp_path)
    arguments = [
        "--quick",
        "--parts",
        "one_pass",
        "--out",
        str(tmp_path / "out"),
        "--checkpoints",
        str(source),
    ]
    bench.run.main(arguments)
    (record,) = bench.store.read_results(tmp_path / "out" / bench.store.FILE)["records"].values()
    assert record["result"]["l1"] is None and record["result"]["curve"] == []
    # Untrained, it changes nothing.
    assert record["result"]["ce"]["cut"] == [0.0] * 4


def test_checkpoints_that_do_not_fit_are_refused(bench: Any, tiny: Any, tmp_path: Path) -> None:
    release = load_release(reading_release(tmp_path, 0))
    save_release(tmp_path / "many" / "twice", replace(release, name="twice"))
    with pytest.raises(ValueError, match="both of mnist1d_mlp_tanh, symmetry and meta-training seed scale/0"):
        bench.one_pass.find_checkpoints([str(tmp_path / "many")], quick=True)
    noisy = replace(release, recipe={"data": {"input_noise": 0.1}})
    with pytest.raises(ValueError, match=r"input noise 0.1, expected 0.4 as the baselines"):
        bench.cells.cell_of_release(noisy, quick=True)
    family = release.family | {"widths": [40, 64, 32, 10]}
    wider = replace(release, problems=[{"problem": release.problem, "family": family}])
    with pytest.raises(ValueError, match="both would be called mnist1d_mlp_tanh"):
        bench.cells.cell_of_release(wider, quick=True)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"format": 99, "benchmark": "sgd_vs_amortized"}', "99.*expected"),
        ('{"format": 1, "rows": []}', "None.*expected"),
        ('{"format": 1, "bench', "is no JSON"),
    ],
)
def test_results_of_another_version_are_refused(bench: Any, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / bench.store.FILE
    path.write_text(text)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        bench.run.main(["--quick", "--out", str(tmp_path)])
    assert path.read_text() == text and len(list(tmp_path.iterdir())) == 1


def test_full_results_do_not_go_into_quick_ones(bench: Any, folder: Path) -> None:
    with pytest.raises(SystemExit, match="is of a quick run and this is a full run"):
        bench.run.main(["--out", str(folder), "--parts", "baselines"])


def test_tables_have_the_papers_columns_and_every_method(bench: Any, records: dict[str, Any]) -> None:
    text = bench.tables.markdown(records, quick=True)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    names = [line.split("|")[1].strip(" *") for line in lines[2:]]
    assert names == [
        "as they start", "one pass, ScaleGMN, 2 seeds", "one pass, symmetry-broken twin, 1 seed",
        "SGD + noise, 1 epochs", "SGD + noise, 2 epochs", "proximal Adam + noise, 2 epochs",
    ]  # fmt: skip
    sgd = records[f"{CELL}/rows/l1-sgd-noise"]["result"]["rows"][1]["accuracy"]
    assert f"{sum(sgd) / 4:.1f} ±" in next(line for line in lines if "SGD + noise, 2" in line).split("|")[5]
    assert "x cheaper per network than 2 epochs of SGD" in text


def test_readme_block_replaces_only_what_is_between_the_marks(
    bench: Any, records: dict[str, Any], tmp_path: Path
) -> None:
    tables, readme = bench.tables, tmp_path / "README.md"
    readme.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    block = tables.readme_block(records, quick=True)
    for _ in range(2):
        tables.rewrite_readme(readme, block)
        assert readme.read_text() == f"before\n{block}\nafter\n"
    assert "SGD + noise, 1 / 2 epochs" in block and "**mnist1d, MLP with tanh**" in block
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="lacks the marks"):
        tables.rewrite_readme(readme, block)


def test_pictures_have_a_panel_per_cell(bench: Any, records: dict[str, Any], folder: Path) -> None:
    names = {f"sgd_vs_amortized_{name}.png" for name in ("time", "networks", "l1")}
    assert names == {path.name for path in folder.glob("*.png")}
    more = dict(records)
    for activation in ("relu", "gelu", "sin"):
        for key, record in records.items():
            more[key.replace("tanh", activation)] = copy.deepcopy(record)
    one, four = (bench.pictures.all_pictures(some, quick=True) for some in (records, more))
    for name, png in one.items():
        shapes = [matplotlib.image.imread(io.BytesIO(picture)).shape for picture in (png, four[name])]
        assert shapes[1][0] > 1.4 * shapes[0][0] and shapes[1][1] > 1.2 * shapes[0][1]


def test_summary_covers_networks_and_seeds(bench: Any) -> None:
    one = bench.store.summary([[1.0, 2.0, 4.0, 5.0]])
    deviation = math.sqrt(sum((v - 3) ** 2 for v in (1, 2, 4, 5)) / 3)
    assert one["mean"] == 3 and one["max"] == 5 and one["seeds"] == [3.0]
    assert one["half"] == pytest.approx(3.182446 * deviation / 2, abs=1e-5)
    # Networks alike, seeds not: the interval is that of the seeds' means, with 2 degrees of freedom.
    seeds = bench.store.summary([[1.0] * 5, [2.0] * 5, [3.0] * 5])
    assert seeds["half"] == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)
    both = bench.store.summary([[1.0, 2.0, 4.0, 5.0], [3.0, 4.0, 6.0, 7.0], [2.0, 3.0, 5.0, 6.0]])
    v_seeds, v_networks = 1 / 3, deviation**2 / 4
    assert both["half"] > 1.96 * math.sqrt(v_seeds + v_networks)
    assert bench.store.summary([[None, 1.0]])["mean"] is None


def test_cells_are_the_zoos_recipes_with_seeds_of_their_own(bench: Any) -> None:
    for label in bench.cells.CELLS:
        cell = bench.cells.cell_of_recipe(label, quick=False)
        if cell is None:
            continue
        assert bench.cells.label_of(cell.problem.to_config(), cell.family.to_config()) == label
        assert cell.zoo.seed not in (cell.plan.seed, cell.plan.seed + 1) and cell.plan.networks >= 64
        assert ZooConfig().seed not in (cell.plan.seed, cell.plan.seed + 1)


@pytest.mark.skipif(not RESULTS.is_file(), reason="not measured yet")
def test_readme_numbers_are_those_of_the_results_file(bench: Any) -> None:
    everything = bench.store.read_results(RESULTS)
    records, readme = everything["records"], (ROOT / "README.md").read_text(encoding="utf-8")
    assert not everything["quick"]
    assert bench.tables.markdown(records, quick=False) == RESULTS.with_suffix(".md").read_text(
        encoding="utf-8"
    )
    if any("/one_pass/" in key for key in records):
        block = bench.tables.readme_block(records, quick=False)
        assert block in readme, "run python benchmarks/sgd_vs_amortized.py --readme"
