"""Freed memory stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch
from amortopt.system.memory import keep_freed_memory

def faults():
    import resource
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(16, 2**20).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default, kept = faults(), keep_freed_memory()
faults()
print(kept, default, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc only")
def test_keep_freed_memory_faults_pages_in_once() -> None:
    # In a process of its own: the setting cannot be taken back.
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    kept, default, after = run.stdout.split()
    assert kept == "True"
    assert int(after) < int(default) / 10
