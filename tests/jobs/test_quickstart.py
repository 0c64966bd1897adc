"""The first command of a newcomer, with a training that teaches nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.quickstart import MARK_FILE, QuickstartArgs, _emptied
from recipe_ray.errors import ConfigError, OutputError
from recipe_ray.eval.cases import SORTS

JOB = Path(__file__).parents[2] / "jobs" / "quickstart.py"


def test_only_a_folder_of_an_earlier_quickstart_is_emptied(tmp_path):
    folder = _emptied(tmp_path / "runs" / "quickstart")
    (folder / "report.json").write_text("{}")
    assert [path.name for path in _emptied(folder).iterdir()] == [MARK_FILE]
    (tmp_path / "home").mkdir()
    assert [path.name for path in _emptied(tmp_path / "home").iterdir()] == [MARK_FILE]
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(OutputError, match="is not empty and not of a quickstart"):
        _emptied(tmp_path)
    with pytest.raises(OutputError, match=r"thesis\.txt: cannot be written"):
        _emptied(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").exists()


def test_no_edits_at_all_are_refused():
    with pytest.raises(ConfigError, match="--num-edits is 0; give 1 or more"):
        QuickstartArgs(num_edits=0)


@pytest.mark.ray
@pytest.mark.timeout(300)  # a training, an ingest, a server and a measurement, each as a user gets it
def test_the_whole_loop_ends_with_a_report_and_leaves_nothing_behind(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    # A proxy that leads out of a machine is not asked for what lies on it.
    environment |= {"HOME": str(tmp_path), "http_proxy": "http://127.0.0.1:9", "RECIPE_RAY_TEST": str(tmp_path)}
    output = tmp_path / "runs"
    done = subprocess.run(
        [sys.executable, JOB, "--preset", "smoke", "--num-edits", "20", "--output", output],
        env=environment,
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((output / "report.json").read_text())
    assert list(report["edits"]) == list(report["retrieval"]) == ["1", "10", "20"]
    for editors in report["edits"].values():
        assert list(editors) == ["recipe", "unedited", "in_context"]
        for metrics in editors.values():
            assert {mode: list(kinds) for mode, kinds in metrics.items()} == {
                "free": list(SORTS),
                "teacher_forced": list(SORTS),
            }
        assert editors["unedited"]["free"]["locality"] == 1
    assert (report["ingest"]["new"], report["ingest"]["quarantined"]) == (20, 3)
    assert report["serving"]["ttft_ratio"] > 0 < report["serving"]["tokens_per_s_ratio"]
    assert report["training"]["num_steps"] == 4
    assert {"seconds", "versions"} <= set(report)
    assert f"report {output / 'report.json'}" in done.stdout
    assert json.loads((output / "editor" / "editor.json").read_text())["data"] == {"sources": ["testbed"]}
    assert not (tmp_path / ".ray").exists()
    # The dashboard's helpers end by themselves once they miss it, on a busy machine some seconds later.
    deadline = time.monotonic() + 30
    while (left := still_running(f"RECIPE_RAY_TEST={tmp_path}")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def still_running(mark):
    """Processes that carry a mark in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found
