from __future__ import annotations

import subprocess
import sys


def test_rooms_for_users_are_attributes_after_import_amortopt() -> None:
    code = "import amortopt; amortopt.metanets.ScaleGMN, amortopt.symmetry.extract, amortopt.testing"
    subprocess.run([sys.executable, "-c", code], check=True)
