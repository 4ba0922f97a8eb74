"""benchmarks/one_shot measures, goes on where it was stopped, and reports what was measured."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch

from amortopt import load_release, save_release
from amortopt.metanets import make
from amortopt.zoo import ZooConfig
from benchmarks.harness.store import Store, read_records
from benchmarks.one_shot import baselines, cells, passes, pictures, run, tables
from benchmarks.one_shot.cells import Method
from tests.releases import untrained_release

FILE = "sgd_vs_amortized.json"
CELL = "mnist1d_mlp_tanh"


@pytest.fixture(scope="module")
def tiny() -> Iterator[Any]:
    """A plan of seconds in place of the quick one."""
    plan = replace(
        cells.QUICK,
        networks=4,
        tuning=2,
        lengths=(1, 2),
        methods=(
            Method.from_key("ce-sgd-noise"),
            Method.from_key("l1-sgd-noise"),
            Method.from_key("l1-prox-adam-noise", 2),
        ),
        curve=(Method.from_key("l1-sgd-noise"),),
        **{"strengths": 2, "dense": 3, "curve_networks": 2, "curve_tuning": 1},
        **{"timed": 1, "repeats": 1, "widen": 2, "sgd": 0.004},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "QUICK", plan)
        yield plan


def reading_release(root: Path, seed: int, **config: Any) -> Path:
    """An untrained checkpoint that reads λ."""
    release = load_release(untrained_release(root / "plain"))
    name = f"tiny-{config.get('respects', 'scale')}-{seed}"
    torch.manual_seed(seed)
    metanet = make(
        "scalegmn", release.module.spec, **{**release.module.config, "conditions": ["l1"], **config}
    )
    with torch.no_grad():
        # Untrained, a metanet returns its input.
        for p in metanet.parameters():
            p.add_(0.02 * torch.randn_like(p))
    recipe, seeds = {"data": {"input_noise": 0.4}}, {"metanet and draws": seed}
    made = replace(release, module=metanet, name=name, recipe=recipe, seeds=seeds, card=None)
    return save_release(root / "many" / name, made)


@pytest.fixture(scope="module")
def folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmark")
    for seed in (0, 1):
        reading_release(root, seed)
    reading_release(root, 0, respects="permutation")
    run.main(["--quick", "--out", str(root / "out"), "--checkpoints", str(root / "many")])
    return root / "out"


@pytest.fixture
def records(folder: Path) -> dict[str, Any]:
    return read_records(folder / FILE, run.BENCHMARK)


def test_one_shot_measures_every_part(records: dict[str, Any]) -> None:
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


def test_one_shot_proximal_rows_have_exact_zeros(records: dict[str, Any]) -> None:
    zeros = {
        name: records[f"{CELL}/rows/{name}"]["result"]["rows"][-1]["zeros"]
        for name in ("l1-sgd-noise", "l1-prox-adam-noise")
    }
    assert zeros["l1-sgd-noise"] == 0 < zeros["l1-prox-adam-noise"]


@pytest.mark.parametrize("key, column, sign", [("ce-sgd-noise", 4, 1), ("l1-sgd-noise", 5, -1)])
def test_one_shot_chooses_by_validation_and_widens_the_grid(
    tiny: Any, records: dict[str, Any], key: str, column: int, sign: int
) -> None:
    result = records[f"{CELL}/rows/{key}"]["result"]
    tuning = result["tuning"]["rows"]
    for row in result["rows"]:
        tried = [t for t in tuning if t[2] == row["epochs"]]
        best = max(sign * t[column] for t in tried)
        assert best in [
            sign * t[column] for t in tried if t[1:4:2] == [row["schedule"], row["learning_rate"]]
        ]
    # The grid starts far below the best rate.
    assert max(t[3] for t in tuning) == pytest.approx(tiny.sgd * tiny.factor ** (tiny.reach + tiny.widen))


def test_one_shot_goes_on_where_it_was_stopped(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / FILE
    everything, before = json.loads(path.read_text()), path.read_bytes()
    lost = everything["records"].pop(f"{CELL}/timing")
    path.write_text(json.dumps(everything))
    monkeypatch.setattr(baselines.Baselines, "rows", lambda *_: pytest.fail("measured again"))
    checkpoints = str(folder.parent / "many")
    run.main(["--quick", "--out", str(folder), "--checkpoints", checkpoints])
    assert "11 of 12 parts" in capsys.readouterr().out
    again = json.loads(path.read_text())["records"]
    assert again[f"{CELL}/timing"]["identity"] == lost["identity"]
    run.main(["--quick", "--out", str(folder), "--checkpoints", checkpoints])
    assert "12 of 12 parts" in capsys.readouterr().out
    path.write_bytes(before)


def test_one_shot_measures_anew_what_has_changed(tiny: Any, folder: Path) -> None:
    store = Store(folder / FILE, run.BENCHMARK, quick=True)
    cell = cells.cell_of_recipe(CELL, quick=True)

    def kept(plan: Any, noise: float = 0.4, chunk: int = 64) -> dict[str, bool]:
        changed = replace(cell, plan=plan, setting=replace(cell.setting, noise=noise))
        parts = run.baseline_parts(changed, ("baselines", "timing"))
        return {part.key.partition("/")[2]: store.has(part.key, part.identity) for part in parts}

    assert all(kept(tiny).values()) and all(kept(replace(tiny, chunk=7)).values())
    assert not any(kept(replace(tiny, networks=5)).values())
    assert [name for name, same in kept(tiny, noise=0.3).items() if same] == ["start"]
    other = [name for name, same in kept(replace(tiny, adam=0.01)).items() if not same]
    assert other == ["rows/l1-prox-adam-noise"]


def test_one_shot_baselines_need_no_checkpoint(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "list_shipped", lambda: pytest.fail("checkpoints were looked for"))
    run.main(["--quick", "--parts", "baselines", "--only", CELL, "--out", str(tmp_path)])
    records = read_records(tmp_path / FILE, run.BENCHMARK)
    assert {key.split("/")[1] for key in records} == {"start", "rows", "curve"}
    assert (tmp_path / "sgd_vs_amortized_l1.png").is_file()


def test_one_shot_of_a_checkpoint_that_reads_no_l1_has_no_l1_columns(tiny: Any, tmp_path: Path) -> None:
    source = untrained_release(tmp_path)
    out = ["--out", str(tmp_path / "out")]
    run.main(["--quick", "--parts", "one_pass", "--checkpoints", str(source), *out])
    (record,) = read_records(tmp_path / "out" / FILE, run.BENCHMARK).values()
    assert record["result"]["l1"] is None and record["result"]["curve"] == []
    # Untrained, it changes nothing.
    assert record["result"]["ce"]["cut"] == [0.0] * 4


def test_one_shot_checkpoints_that_do_not_fit_are_refused(tiny: Any, tmp_path: Path) -> None:
    release = load_release(reading_release(tmp_path, 0))
    save_release(tmp_path / "many" / "twice", replace(release, name="twice"))
    with pytest.raises(ValueError, match="both of mnist1d_mlp_tanh, symmetry and meta-training seed scale/0"):
        passes.find_checkpoints([str(tmp_path / "many")], quick=True)
    noisy = replace(release, recipe={"data": {"input_noise": 0.1}})
    with pytest.raises(ValueError, match=r"input noise 0.1, expected 0.4 as the baselines"):
        cells.cell_of_release(noisy, quick=True)
    family = release.family | {"widths": [40, 64, 32, 10]}
    wider = replace(release, problems=[{"problem": release.problem, "family": family}])
    with pytest.raises(ValueError, match="both would be called mnist1d_mlp_tanh"):
        cells.cell_of_release(wider, quick=True)


def test_one_shot_tables_have_the_papers_columns_and_every_method(records: dict[str, Any]) -> None:
    text = tables.markdown(records, quick=True)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    names = [line.split("|")[1].strip(" *") for line in lines[2:]]
    assert names == [
        "as they start", "one pass, ScaleGMN, 2 seeds", "one pass, symmetry-broken twin, 1 seed",
        "SGD + noise, 1 epochs", "SGD + noise, 2 epochs", "proximal Adam + noise, 2 epochs",
    ]  # fmt: skip
    sgd = records[f"{CELL}/rows/l1-sgd-noise"]["result"]["rows"][1]["accuracy"]
    assert f"{sum(sgd) / 4:.1f} ±" in next(line for line in lines if "SGD + noise, 2" in line).split("|")[5]
    assert "x cheaper per network than 2 epochs of SGD" in text


def test_one_shot_pictures_have_a_panel_per_cell(records: dict[str, Any], folder: Path) -> None:
    names = {f"sgd_vs_amortized_{name}.png" for name in ("time", "networks", "l1")}
    assert names == {path.name for path in folder.glob("*.png")}
    more = dict(records)
    for activation in ("relu", "gelu", "sin"):
        for key, record in records.items():
            more[key.replace("tanh", activation)] = copy.deepcopy(record)
    one, four = (pictures.all_pictures(some, quick=True) for some in (records, more))
    for name, png in one.items():
        shapes = [matplotlib.image.imread(io.BytesIO(picture)).shape for picture in (png, four[name])]
        assert shapes[1][0] > 1.4 * shapes[0][0] and shapes[1][1] > 1.2 * shapes[0][1]


def test_one_shot_cells_are_the_zoos_recipes_with_seeds_of_their_own() -> None:
    for label in cells.CELLS:
        cell = cells.cell_of_recipe(label, quick=False)
        if cell is None:
            continue
        assert cells.label_of(cell.problem.to_config(), cell.family.to_config()) == label
        assert cell.zoo.seed not in (cell.plan.seed, cell.plan.seed + 1) and cell.plan.networks >= 64
        assert ZooConfig().seed not in (cell.plan.seed, cell.plan.seed + 1)
