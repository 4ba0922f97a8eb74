"""benchmarks/one_shot measures, goes on where it was stopped, and reports what was measured."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch

from amortopt import Release, save_release
from amortopt.metanets import L1Range, Rounds
from amortopt.symmetry import act, extract, sample
from amortopt.tasks import make_family, make_problem_family
from benchmarks.harness.store import Store, read_records
from benchmarks.one_shot import baselines, cells, passes, pictures, run, summary, tables
from benchmarks.one_shot.baselines import Setting, trained
from benchmarks.one_shot.natural import natural_gradient
from tests.releases import untrained_release

FILE = "one_shot.json"
CELL = "curves_mlp_tanh"


@pytest.fixture(scope="module")
def tiny() -> Iterator[cells.Plan]:
    """A plan of seconds in place of the quick one."""
    plan = replace(
        cells.QUICK, problems=4, trained=3, tuned_on=2, real=2, tested=30, sizes=(20, 40), few=20,
        lengths=(1, 2), long=(3,), anchors=(1, 2), prototype_optimizers=("sgd", "adam"),
        prototype_lengths=(1,), natural=(1,), noises=(0.0, 0.3),
        widen=1, l1_size=20, l1_length=1, strengths=(1e-4, 1e-2), qualities=(0, 8), repeats=1,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "QUICK", plan)
        yield plan


def reader(root: Path, name: str, **config: Any) -> Path:
    """An untrained checkpoint that reads its problem."""
    family = make_family("mlp", widths=[40, 6, 10])
    network = family.build()
    torch.manual_seed(len(name))
    metanet = Rounds(
        extract(network, family.example_input()),
        shapes={key: list(p.shape) for key, p in network.named_parameters()},
        **{"rounds": 2, "channels": 2, "hidden": 4, "conditions": ["batch", "l1"], **config},
    )
    trained_on = {"problem": make_problem_family("curves").to_config(), "family": family.to_config()}
    l1_range = L1Range(1e-4, 1e-2) if "l1" in metanet.conditions else None
    return save_release(root / name, Release(metanet, name, [trained_on], l1_range=l1_range))


@pytest.fixture(scope="module")
def folder(tiny: cells.Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmark")
    for seed in range(2):
        reader(root / "many", f"tiny-{seed}")
    reader(root / "many", "twin", respects="permutation", conditions=["batch"])
    both = {"conditions": ["batch", "function"], "input_shape": [40], "probes": 8}
    reader(root / "many", "functions", **both, rounds=1)
    known = untrained_release(root)
    arguments = ["--checkpoints", str(root / "many"), str(known)]
    run.main(["--quick", "--out", str(root / "out"), *arguments])
    return root / "out"


@pytest.fixture
def records(folder: Path) -> dict[str, Any]:
    return read_records(folder / FILE, run.BENCHMARK)


@pytest.fixture(scope="module")
def cell(tiny: cells.Plan) -> cells.Cell:
    return cells.cell_of({"name": "curves"}, {"name": "mlp", "widths": [40, 6, 10]}, quick=True)


def test_one_shot_measures_every_part(records: dict[str, Any]) -> None:
    sizes, names = (20, 40), ("tiny-0", "tiny-1", "twin", "functions")
    expected = {
        f"{part}/{n}"
        for part in ("start", "average", "training/sgd", "training/adam", "natural")
        for n in sizes
    }
    expected |= {f"outside/{variant}" for variant in cells.VARIANTS["curves"]} | {
        "l1/sgd",
        "l1/proximal adam",
    }
    for name in names:
        expected |= {f"pass/{name}/{n}" for n in sizes} | {f"quality/{name}", f"timing/{name}"}
        expected |= {f"prototype/{name}/{optimizer}/{n}" for optimizer in ("sgd", "adam") for n in sizes}
        expected |= {f"continued/{name}/sgd/{n}" for n in sizes}
        for variant in cells.VARIANTS["curves"]:
            expected |= {f"outside_pass/{name}/{variant}", f"outside_prototype/{name}/{variant}"}
    expected |= {f"l1_pass/{name}" for name in ("tiny-0", "tiny-1")}
    assert set(records) == {f"{CELL}/{key}" for key in expected} | {"memorised/mnist1d-mlp-tanh"}
    for record in records.values():
        assert record["made"]["hardware"] and record["made"]["versions"]["torch"]


@pytest.mark.filterwarnings("ignore:outside of what this checkpoint was made for")
def test_passes_of_fewer_rounds_are_those_that_a_user_gets(tmp_path: Path, tiny: cells.Plan) -> None:
    """Where rounds read portions, a pass with fewer rounds is no part of one with more."""
    source = str(reader(tmp_path, "portions", portion=5, conditions=["batch"]))
    ((checkpoint,), _) = passes.find_checkpoints([source], quick=True)
    rows = passes.pass_rows(checkpoint, 40)["rows"]
    fleet = checkpoint.cell.fleet("test", 40)
    pairs = list(zip(fleet.read.x, fleet.read.y, strict=True))
    for rounds in (1, 2):
        new = checkpoint.opt.one_shot_params(fleet.start, batch=pairs, rounds=rounds)
        expected = checkpoint.cell.judge(new, fleet)["unseen"]["loss"]
        assert rows[f"batch/{rounds}"]["unseen"]["loss"] == pytest.approx(expected, rel=1e-4)


def test_one_shot_rows_have_every_network_of_every_set(records: dict[str, Any]) -> None:
    rows = records[f"{CELL}/pass/tiny-0/20"]["result"]["rows"]
    assert set(rows) == {"prototype", "batch/1", "batch/2", "swapped batch"}
    more = records[f"{CELL}/pass/functions/20"]["result"]["rows"]
    assert set(more) == {
        "prototype", "batch/1", "function/1", "both/1", "swapped batch", "swapped function",
    }  # fmt: skip
    training = records[f"{CELL}/training/sgd/20"]["result"]["rows"]
    assert [row["epochs"] for row in training] == [1, 2, 3]
    for sets, unseen in [(rows["batch/2"], 4), (training[0]["sets"], 3)]:
        assert {name: len(numbers["score"]) for name, numbers in sets.items()} == {
            "unseen": unseen,
            "mnist1d": 2,
        }


def test_one_shot_rounds_end_in_what_the_public_call_returns(folder: Path) -> None:
    (checkpoint,), _ = passes.find_checkpoints([str(folder.parent / "many" / "tiny-0")], quick=True)
    fleet = checkpoint.cell.fleet("test", 20)
    proposals = checkpoint.rounds(fleet.start, fleet.read)
    public = checkpoint.improved(fleet.start, fleet.read)
    assert len(proposals) == 3
    for name, p in public.items():
        torch.testing.assert_close(proposals[-1][name], p)


def test_one_shot_swapped_passes_read_the_problem_of_another_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint,), _ = passes.find_checkpoints([str(folder.parent / "many" / "twin")], quick=True)
    fleet = checkpoint.cell.fleet("test", 20)
    seen = []
    after = passes.Checkpoint.rounds
    monkeypatch.setattr(
        passes.Checkpoint,
        "rounds",
        lambda self, p, read, **kw: seen.append(read) or after(self, p, read, **kw),
    )
    passes.pass_rows(checkpoint, 20)
    for b, x in enumerate(seen[-1].x):
        assert any(torch.equal(x, other) for other in fleet.read.x[:4])
        assert not torch.equal(x, fleet.read.x[b])


def test_one_shot_settings_are_chosen_on_validation_problems_and_grids_are_widened(
    tiny: cells.Plan, records: dict[str, Any]
) -> None:
    result = records[f"{CELL}/training/adam/40"]["result"]
    tried = result["tuning"]["rows"]
    for row in result["rows"]:
        scores = {(rate, noise): score for epochs, rate, noise, score in tried if epochs == row["epochs"]}
        assert scores[row["rate"], row["noise"]] == max(scores.values())
        # The best rate is inside of the grid, or the grid went on beyond it once.
        rates = sorted({rate for rate, _ in scores})
        assert len(rates) == 5 or rates[0] < row["rate"] < rates[-1]


def test_one_shot_smaller_fleets_have_the_first_examples_of_larger_ones(cell: cells.Cell) -> None:
    small, large = cell.fleet("test", 20), cell.fleet("test", 40)
    assert torch.equal(small.read.x[:4], large.read.x[:4, :20]) and torch.equal(
        small.judged.x, large.judged.x
    )
    assert small.sets == {"unseen": slice(0, 4), "mnist1d": slice(4, 6)}
    assert cell.fleet("val", 20).sets == {"unseen": slice(0, 2)}
    first = large.first(3)
    assert first.sets == {"unseen": slice(0, 3), "mnist1d": slice(3, 5)}
    assert torch.equal(first.read.x[3:], large.read.x[4:])


def test_one_shot_steps_of_an_epoch_are_full(cell: cells.Cell) -> None:
    assert [cell.batch_size(n) for n in (50, 200, 1000, 4000)] == [10, 25, 125, 125]


def test_one_shot_settings_at_once_train_as_each_alone(cell: cells.Cell) -> None:
    fleet = cell.fleet("val", 20)
    settings = [Setting("sgd", 0.1, 0.0), Setting("sgd", 0.5, 0.0), Setting("adam", 0.01, 0.3)]
    together = trained(cell, fleet, fleet.start, settings, 2)
    for setting, params in zip(settings, together, strict=True):
        (alone,) = trained(cell, fleet, fleet.start, [setting], 2)
        for name, p in params.items():
            torch.testing.assert_close(p, alone[name])


def test_one_shot_natural_gradient_is_newtons_step_for_a_linear_model() -> None:
    """For squared error and one linear layer the matrix is the Hessian, so one step ends at the minimum."""
    plan = replace(cells.QUICK, problems=2, tuned_on=2, real=1)
    problems = make_problem_family("images", side=4)
    cell = cells.Cell(problems, make_family("mlp", widths=[2, 1]), plan)
    fleet = cell.fleet("val", 16)
    after = natural_gradient(cell, fleet, 1e-6, [1])[1]
    for b in range(2):
        design = torch.cat([fleet.read.x[b], torch.ones(16, 1)], 1)
        best = torch.linalg.lstsq(design, fleet.read.y[b]).solution
        got = torch.cat([after["0.weight"][b].mT, after["0.bias"][b][None]])
        torch.testing.assert_close(got, best, rtol=1e-3, atol=1e-4)


def test_one_shot_resampled_signals_are_stretched_about_their_middle() -> None:
    ramp = cells.Examples(torch.arange(40.0).expand(1, 2, 40), torch.zeros(1, 2), shared=False)
    dense = cells.resampled(ramp, 2.0).x[0, 0]
    torch.testing.assert_close(dense, 19.5 + (torch.arange(40) - 19.5) / 2)
    sparse = cells.resampled(ramp, 0.5).x[0, 0]
    torch.testing.assert_close(sparse, (19.5 + (torch.arange(40) - 19.5) * 2).clamp(0, 39))


def test_one_shot_goes_on_where_it_was_stopped(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / FILE
    everything, before = json.loads(path.read_text()), path.read_bytes()
    lost = everything["records"].pop(f"{CELL}/start/20")
    path.write_text(json.dumps(everything))
    monkeypatch.setattr(baselines, "training_rows", lambda *_: pytest.fail("measured again"))
    root = folder.parent
    run.main(["--quick", "--out", str(folder), "--checkpoints", str(root / "many")])
    count = len(everything["records"])
    assert f"{count - 1} of {count} parts" in capsys.readouterr().out
    again = json.loads(path.read_text())["records"]
    assert again[f"{CELL}/start/20"]["identity"] == lost["identity"]
    path.write_bytes(before)


def test_one_shot_a_retrained_checkpoint_needs_no_new_baselines(folder: Path, tmp_path: Path) -> None:
    store = Store(folder / FILE, run.BENCHMARK, quick=True)
    again = reader(tmp_path, "tiny-0", channels=3)
    options = run.all_options(["--quick", "--checkpoints", str(again)])
    parts = run.all_parts(options, store)
    kept = {
        part.key.split("/")[1]
        for part in parts
        if store.has(part.key, part.identity() if callable(part.identity) else part.identity)
    }
    assert kept == {"start", "average", "training", "natural", "outside", "l1"}


def test_one_shot_baselines_need_no_checkpoint(tiny: cells.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "list_shipped", lambda: pytest.fail("checkpoints were looked for"))
    options = run.all_options(["--quick", "--cells", CELL])
    parts = run.all_parts(options, Store(Path("none.json"), run.BENCHMARK, quick=True))
    kinds = {part.key.split("/")[1] for part in parts}
    assert kinds == {"start", "average", "training", "natural", "outside"}
    with pytest.raises(ValueError, match="mnist1d_mlp_tanh is for mnist1d, expected a family of problems"):
        cells.cell_of_recipe("mnist1d_mlp_tanh", quick=True)


def test_one_shot_checkpoints_of_one_name_are_refused(tiny: cells.Plan, tmp_path: Path) -> None:
    for root in ("a", "b"):
        reader(tmp_path / root, "same")
    with pytest.raises(ValueError, match="both called same; leave one out"):
        passes.find_checkpoints([str(tmp_path / "a"), str(tmp_path / "b")], quick=True)


def test_one_shot_tables_have_every_method_and_the_intervals(records: dict[str, Any]) -> None:
    (shown,) = tables.by_cell(records)
    rows = tables.rows_of(shown, records)
    groups = ("R = 1, reads functions too", "R = 2, reads λ", "symmetry-broken twin, R = 2")
    assert [row.name for row in rows] == [
        "as they start",
        "one pass, R = 1, reads functions too, reads the examples",
        "one pass, R = 1, reads functions too, reads the function only",
        "one pass, R = 1, reads functions too, reads both",
        "one pass, R = 1 of 2, reads λ, reads the examples, 2 seeds",
        "one pass, R = 2 of 2, reads λ, reads the examples, 2 seeds",
        "one pass, symmetry-broken twin, R = 1 of 2, reads the examples",
        "one pass, symmetry-broken twin, R = 2 of 2, reads the examples",
        *(f"one pass, then SGD, 1 epochs ({group})" for group in groups),
        *(f"{title}, {k} epochs" for title in ("SGD", "Adam") for k in (1, 2, 3)),
        "natural gradient, 1 step",
    ] + [
        f"{text} ({group})"
        for group in groups
        for text in (
            "learned prototype, SGD, 1 epochs", "learned prototype, Adam, 1 epochs",
            "learned prototype alone, a constant output", "one pass, reads another problem's examples",
            *["one pass, reads another network's function"] * ("functions" in group),
        )
    ] + ["average of the aligned networks of a set, a constant output"]  # fmt: skip
    text = tables.markdown(records, quick=True)
    start = records[f"{CELL}/start/20"]["result"]["sets"]["unseen"]["score"]
    assert f"| as they start | {sum(start) / 4:.1f} ± " in text
    assert "A quick run" in text and "Meta-trained on the very data set" in text
    for name in ("Starts of every quality", "Outside of the family", "One checkpoint for every L1 strength"):
        assert f"**{name}**" in text


def test_one_shot_gains_are_paired_over_problems(records: dict[str, Any]) -> None:
    (shown,) = tables.by_cell(records)
    rows = tables.rows_of(shown, records)
    one = next(row for row in rows if "2 seeds" in row.name)
    sgd = next(row for row in rows if row.kind == "training")
    ours, (rival,) = one.numbers(20, "unseen"), sgd.numbers(20, "unseen")
    expected = sum(sum(seed[k] - rival[k] for k in range(3)) / 3 for seed in ours) / 2  # type: ignore[operator]
    gain = tables.paired_gain(one, sgd, 20)
    assert float(gain.split(" ± ")[0]) == pytest.approx(expected, abs=0.051)


def test_one_shot_summary_has_a_row_for_the_sizes_of_readme(
    records: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "SHORT", (20,))
    monkeypatch.setattr(summary, "LENGTH", 2)
    *_, line = summary.block(records).splitlines()
    cells_of_line = [text.strip(" *") for text in line.split("|")[1:-1]]
    assert cells_of_line[:2] == ["curves, MLP with tanh", "20"]
    assert all(text.endswith("%") for text in cells_of_line[2:6]) and "of the training" in cells_of_line[-1]


def test_one_shot_reports_what_is_there_yet(records: dict[str, Any]) -> None:
    some = {key: record for key, record in records.items() if "/training/" in key or "/start/20" in key}
    assert "| SGD, 1 epochs |" in tables.markdown(some) and "none yet" in tables.markdown(some)
    assert pictures.all_pictures(some, quick=True) == {}


def test_one_shot_pictures_show_every_cell(folder: Path, records: dict[str, Any]) -> None:
    drawn = pictures.all_pictures(records, quick=True)
    assert set(drawn) == {"_examples", "_time", "_l1"}
    for name, png in drawn.items():
        height, width, _ = matplotlib.image.imread(io.BytesIO(png)).shape
        assert width > height > 400 and (folder / f"one_shot{name}.png").is_file()


def test_one_shot_scores_that_are_not_finite_win_nothing() -> None:
    assert baselines.mean_score({"sets": {"unseen": {"score": [50.0, None]}}}) == -math.inf
    assert baselines.mean_score({"sets": {}}) == -math.inf


def test_average_of_one_network_in_many_gauges_is_that_network() -> None:
    family = make_family("mlp", activation="tanh", widths=[40, 7, 10])
    network = family.build().double()
    spec = extract(network, torch.zeros(2, 40, dtype=torch.float64))
    first = {name: p.detach() for name, p in network.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    others = [act(spec, sample(spec, generator=generator), first) for _ in range(3)]
    params = {name: torch.stack([p, *(other[name] for other in others)]) for name, p in first.items()}
    average = baselines.aligned_average(spec, params)
    assert all(torch.allclose(average[name], p, atol=1e-9) for name, p in first.items())
