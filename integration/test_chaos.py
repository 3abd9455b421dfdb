"""A short chaos run: killed from all sides, the stage ends as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

HARNESS = Path(__file__).parent / "chaos" / "harness.py"


def test_killed_from_all_sides_a_run_ends_with_the_same_bytes(tmp_path):
    done = subprocess.run(
        [sys.executable, str(HARNESS), "--work", str(tmp_path), "--short", "--paths", "plain",
         "--workers", "2"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "results" / "plain-1.json").read_text())
    assert result["kills"] >= 6
    assert set(result["kills_by_victim"]) == {"worker", "scheduler", "driver"}
    assert (result["lost"], result["doubled"], result["differing"]) == (0, 0, 0)
    assert result["problems"] == []
    assert result["leaves"] == result["pixels"] > 20
