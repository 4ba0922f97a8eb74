"""benchmarks/harness/timing.py: turns, and processes that fail or take too long."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.harness.timing import best_of, in_process, in_turns


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that a new process can import, to be written."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return tmp_path / "some_program.py"


def test_timing_takes_turns() -> None:
    order: list[str] = []
    times = in_turns({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == list("ababab") and {name: len(many) for name, many in times.items()} == {"a": 3, "b": 3}
    assert best_of(lambda: order.append("c"), 2) >= 0 and order.count("c") == 3


def test_timing_in_a_process_returns_every_line(program: Path) -> None:
    program.write_text(
        "import json, sys\nrequest = json.loads(sys.argv[1])\n"
        "print('noise')\nprint(json.dumps({'twice': 2 * request['x']}))\nprint('{\"b\": 1}')\n"
    )
    assert in_process("some_program", {"x": 4}) == {"twice": 8, "b": 1}


def test_timing_in_a_process_keeps_what_came_before_the_time_limit(program: Path) -> None:
    program.write_text(
        "import time\nprint('{\"parameters\": 3}', flush=True)\nprint('noise')\ntime.sleep(60)\n"
    )
    result = in_process("some_program", {}, limit=2.0)
    assert result == {"parameters": 3, "error": "not done after 2 s"}


def test_timing_in_a_process_reports_a_failure(program: Path) -> None:
    program.write_text("print('{\"parameters\": 3}')\nraise SystemExit('out of luck')\n")
    assert in_process("some_program", {}) == {"parameters": 3, "error": "ended with code 1: out of luck"}
