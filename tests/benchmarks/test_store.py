"""The results store of all benchmarks: keeps, merges, refuses."""

from __future__ import annotations

import json
import math
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from amortopt.meta.one_pass.results import commit
from benchmarks.harness.numbers import summary
from benchmarks.harness.store import FORMAT, RESULTS, Store, committed, read_records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.json"


def never() -> Any:
    raise AssertionError("measured again")


def test_store_keeps_a_record_of_the_same_identity(path: Path) -> None:
    Store(path, "some").measure("a", {"rates": (1, 2.5)}, lambda: {"x": math.inf, "y": (1, 2)})
    again = Store(path, "some")
    assert again.measure("a", {"rates": [1, 2.5]}, never) == {"x": None, "y": [1, 2]}
    assert not again.has("a", {"rates": [1, 3]})
    assert again.measure("a", {"rates": [1, 3]}, lambda: 5) == 5
    assert again.measure("a", {"rates": [1, 3]}, lambda: 6, again=True) == 6


def test_store_records_what_a_result_was_made_by(path: Path) -> None:
    Store(path, "some").measure("a", {}, lambda: 1)
    made = read_records(path, "some")["a"]["made"]
    assert {"commit", "date", "hardware", "load", "seconds"} <= made.keys()
    assert {"amortopt", "torch", "numpy", "python"} == made["versions"].keys()


def test_store_measures_again_what_failed(path: Path) -> None:
    store = Store(path, "some")
    store.measure("a", {}, lambda: {"error": "no memory"})
    assert not store.has("a", {}) and store.measure("a", {}, lambda: {"fine": 1}) == {"fine": 1}


def test_store_keeps_what_another_process_measured(path: Path) -> None:
    first, second = (Store(path, "some") for _ in range(2))
    first.measure("a", {"x": 1}, lambda: 1)
    second.measure("b", {"x": 2}, lambda: 2)
    first.measure("c", {"x": 3}, lambda: 3)
    assert set(read_records(path, "some")) == {"a", "b", "c"}


def test_store_loses_nothing_when_many_write_at_once(path: Path) -> None:
    stores = [Store(path, "some") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: stores[i].measure(str(i), {}, lambda: i), range(8)))
    assert set(read_records(path, "some")) == set(map(str, range(8)))


def test_store_takes_records_of_the_same_identity_from_another_file(path: Path) -> None:
    Store(path, "some").measure("a", 1, lambda: "tuned")
    other = Store(path.with_name("o.json"), "some", also=path)
    assert other.measure("a", 1, never) == "tuned" and not other.has("a", 2)
    assert read_records(other.path, "some") == read_records(path, "some")


def test_store_deletes_by_the_beginning_of_the_key(path: Path) -> None:
    store = Store(path, "some")
    for key in ("rule/x/1", "rule/x/2", "rule/xy/1"):
        store.measure(key, 1, lambda: 1)
    assert store.drop("rule/x/") == 2
    assert set(Store(path, "some").records) == {"rule/xy/1"}


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"format": 99, "benchmark": "some"}', "99.*expected"),
        ('{"format": 1, "rows": []}', "None.*expected"),
        ('{"format": 1, "bench', "is no JSON"),
        (f'{{"format": {FORMAT}, "benchmark": "other"}}', "other.*expected.*some"),
        (
            f'{{"format": {FORMAT}, "benchmark": "some", "quick": true}}',
            "a quick run and this is a full run",
        ),
    ],
)
def test_store_refuses_other_files(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Store(path, "some")
    assert path.read_text() == text and len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_say_what_made_them(path: Path) -> None:
    records = committed(path.stem)
    assert records and len(path.read_text(encoding="utf-8").splitlines()) == len(records) + 2
    for record in records.values():
        assert record.keys() == {"identity", "result", "made"}
        made = record["made"]
        assert made["commit"] and made["hardware"] and made["date"] and made["versions"]["torch"]
    json.dumps(records, allow_nan=False)


def test_summary_covers_networks_and_seeds() -> None:
    one = summary([[1.0, 2.0, 4.0, 5.0]])
    deviation = math.sqrt(sum((v - 3) ** 2 for v in (1, 2, 4, 5)) / 3)
    assert one["mean"] == 3 and one["max"] == 5 and one["seeds"] == [3.0]
    assert one["half"] == pytest.approx(3.182446 * deviation / 2, abs=1e-5)
    # Networks alike, seeds not: the interval is that of the seeds' means, with 2 degrees of freedom.
    seeds = summary([[1.0] * 5, [2.0] * 5, [3.0] * 5])
    assert seeds["half"] == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)
    both = summary([[1.0, 2.0, 4.0, 5.0], [3.0, 4.0, 6.0, 7.0], [2.0, 3.0, 5.0, 6.0]])
    v_seeds, v_networks = 1 / 3, deviation**2 / 4
    assert both["half"] > 1.96 * math.sqrt(v_seeds + v_networks)
    assert summary([[None, 1.0]])["mean"] is None


def test_commit_is_dirty_with_changed_code_not_with_changed_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, record = tmp_path / "amortopt" / "__init__.py", tmp_path / "benchmarks" / "results" / "a.json"
    for file in (code, record):
        file.parent.mkdir(parents=True)
        file.write_text("1\n")
    settings = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    for arguments in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "first")):
        subprocess.run(["git", "-C", str(tmp_path), *settings, *arguments], check=True)
    monkeypatch.setattr("amortopt.__file__", str(code))
    clean = commit()
    assert clean is not None
    assert len(clean) == 40
    record.write_text("2\n")
    assert commit() == clean
    code.write_text("2\n")
    assert commit() == f"{clean}-dirty"
