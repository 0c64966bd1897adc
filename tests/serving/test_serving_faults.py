"""Processes killed and versions swapped under load, by benchmarks/serve_load.py; docs/faults.md tells of more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve_load.py"


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_no_request_is_lost_unclearly_and_no_answer_is_of_two_versions(editor_dir):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--editor", str(editor_dir), "--seconds", "45", "--swap-s", "5"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["kills"] == 2
    assert said["swaps"] >= 5
    assert said["mixed"] == 0
    assert said["unclear"] == 0, said["errors"]
    assert said["errors_in_peace"] == 0
    assert said["edited"] > said["requests"]["unrest"] / 2, "hardly an answer was edited: mixtures would not show"
    assert said["snapshots_seen"] > 5
