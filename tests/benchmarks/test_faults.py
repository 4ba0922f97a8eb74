"""The benchmark of faults: no process ends without its exit status being read."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.faults.run import block
from benchmarks.faults.runs import ended, kill, succeeded


def _spawn(code: str) -> tuple[int, int]:
    reader, writer = os.pipe()
    child = os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", code], os.environ)
    os.close(writer)
    return child, reader


def test_ended_tells_success_from_errors_and_signals() -> None:
    assert succeeded(ended(_spawn("pass"))) == "0"
    assert ended(_spawn("raise SystemExit(3)")).status == "3"
    killed = ended(_spawn("import os; os.kill(os.getpid(), 9)"))
    assert killed.status == "SIGKILL"
    with pytest.raises(RuntimeError, match="exit status SIGKILL: no error was written"):
        succeeded(killed)


def test_kill_waits_for_a_saved_state(tmp_path: Path) -> None:
    saved = tmp_path / "state"
    save = f"import time\nwhile True: open({str(saved)!r}, 'w').close(); time.sleep(0.01)"
    assert kill(_spawn(save), saved, 0.0).status == "SIGKILL"
    assert saved.exists()


def test_kill_reports_a_run_that_ended_before(tmp_path: Path) -> None:
    assert kill(_spawn("raise SystemExit(4)"), tmp_path / "state", 0.0).status == "4"


def test_kill_refuses_a_run_that_saves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="saved nothing for 0 s and was killed"):
        kill(_spawn("import time; time.sleep(100)"), tmp_path / "state", 0.0, patience=0.0)


def test_table_has_the_exit_statuses() -> None:
    made = {"hardware": "a processor"}
    result = {
        "kills": 3, "while_writing": 1, "leftovers": 0, "steps": 40, "same": True,
        "exits": {"0": 2, "SIGKILL": 3},
    }  # fmt: skip
    assert "| 3 x SIGKILL, 2 x 0 | 0 files |" in block({"kills": {"result": result, "made": made}})
