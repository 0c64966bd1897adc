"""The first command of a newcomer, with a training that teaches nothing."""

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.quickstart import LOG_FILE, MARK_FILE, PLANS, QuickstartArgs, _emptied, _sample, main
from recipe_ray.config import INVENTED
from recipe_ray.errors import ConfigError, EditorError, OutputError
from recipe_ray.eval import testbed
from recipe_ray.eval.cases import SORTS
from recipe_ray.presets import SMOLLM2, preset

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
    for name in ("num-edits", "num-asked"):
        with pytest.raises(ConfigError, match=f"--{name} is 0; give 1 or more"):
            QuickstartArgs(**{name.replace("-", "_"): 0})


def test_what_fails_names_the_log_in_one_line(tmp_path, capfd):
    output = tmp_path / "runs"
    with pytest.raises(EditorError) as failed:
        main(QuickstartArgs(output=output, start=str(tmp_path / "none")))
    log = output / LOG_FILE
    assert str(failed.value).endswith(f"(all that was said: {log})")
    assert "\n" not in str(failed.value)
    assert "EditorError" in log.read_text()
    assert capfd.readouterr().err == ""


def test_a_real_llm_goes_on_from_its_published_editor_and_the_testbed_from_nothing(monkeypatch, tmp_path):
    assert QuickstartArgs(llm="testbed").training() == preset("testbed")
    # In the place of the published editor: what would be trained is read from its card.
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(preset(SMOLLM2).editor, key_width=64)
    card = {"config": config.to_dict(), "fingerprint": "0", "llm_width": 576, "frozen_encoder": "0"}
    (tmp_path / SMOLLM2).mkdir()
    (tmp_path / SMOLLM2 / "editor.json").write_text(json.dumps(card))
    training = QuickstartArgs(num_steps=3).training()
    assert (training.start, training.editor.key_width, training.num_steps) == (SMOLLM2, 64, 3)
    assert training.data.sources == (INVENTED,)
    assert training.prompt_lr < preset(SMOLLM2).prompt_lr


@pytest.mark.parametrize(
    ("num_edits", "num_asked", "asked", "in_force"),
    [(1, 60, 60, 1), (10, 64, 60, 10), (100, 60, 60, 100), (1000, 60, 60, 1000), (10, 1000, 200, 10), (1000,) * 4],
)
def test_as_many_edits_are_in_force_as_it_says_however_few_are_asked_about(num_edits, num_asked, asked, in_force):
    cases = testbed.testbed_cases(1000)
    sample, bystanders = _sample(cases, num_edits, num_asked)
    assert sample == cases[:asked]
    group = num_edits - len(bystanders)
    assert len(sample) % group == 0
    assert group + len(bystanders) == in_force
    assert not set(sample) & set(bystanders)


def test_fewer_edits_than_are_there_may_be_asked_about():
    assert QuickstartArgs().asked == PLANS[SMOLLM2].num_asked
    assert QuickstartArgs(num_edits=20).asked == 20
    assert QuickstartArgs(num_asked=3).asked == 3
    assert QuickstartArgs(llm="testbed").asked == 1000


@pytest.mark.ray
@pytest.mark.timeout(300)  # a training, an ingest, a server and a measurement, each as a user gets it
def test_the_whole_loop_ends_with_a_report_and_leaves_nothing_behind(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    # A proxy that leads out of a machine is not asked for what lies on it.
    environment |= {"HOME": str(tmp_path), "http_proxy": "http://127.0.0.1:9", "RECIPE_RAY_TEST": str(tmp_path)}
    output = tmp_path / "runs"
    numbers = ("--num-edits", "20", "--num-asked", "10")
    done = subprocess.run(
        [sys.executable, JOB, "--llm", "testbed", "--preset", "smoke", *numbers, "--output", output],
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
    assert report["llm"] == "testbed"
    assert set(report["weights"]) == {"package", "version", "sha256"}
    assert_reads_well(done)
    assert f"report {output / 'report.json'}" in done.stdout
    assert json.loads((output / "editor" / "editor.json").read_text())["data"] == {"sources": ["testbed"]}
    assert not (tmp_path / ".ray").exists()
    # The dashboard's helpers end by themselves once they miss it, on a busy machine some seconds later.
    deadline = time.monotonic() + 30
    while (left := still_running(f"RECIPE_RAY_TEST={tmp_path}")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def assert_reads_well(done):
    """A newcomer sees five steps and what came of them, and nothing of what Ray and other libraries say."""
    assert done.stderr == ""
    assert not re.search(r"pid=|LOAD REPORT|Loading weights|WARNING|INFO|Traceback|\r|\x1b", done.stdout)
    lines = done.stdout.splitlines()
    titles = [line for line in lines if re.match(r"\d/5  ", line)]
    assert [title[:3] for title in titles] == [f"{number}/5" for number in range(1, 6)]
    assert "10 of them asked about" in titles[-1]
    for begin, end in itertools.pairwise([*map(lines.index, titles), len(lines)]):
        of_step = lines[begin:end]
        assert sum(line.startswith("     done in ") for line in of_step) == 1


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
