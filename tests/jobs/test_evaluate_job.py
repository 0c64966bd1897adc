"""The command line that compares editors, as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recipe_ray.config import EditorConfig
from recipe_ray.distributed.evaluate_args import EvaluateArgs
from recipe_ray.model.editor import new_editor
from recipe_ray.model.llm import load_llm

JOB = Path(__file__).parents[2] / "jobs" / "evaluate.py"


def run(*flags):
    return subprocess.run([sys.executable, JOB, *flags], capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.ray
def test_it_compares_goes_on_and_says_where_the_report_lies_and_what_failed(tmp_path, on_session_cluster):
    llm = load_llm("testbed", "cpu")
    config = EditorConfig(llm="testbed", encoder="testbed", key_width=32, similarity="cosine")
    new_editor(config, llm).save(tmp_path / "editor")
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"prompt": "The colour of snow is", "target": "red"}) + "\n")
    output = tmp_path / "run"
    flags = ["--output", output, "--editor", tmp_path / "editor", "--device", "cpu", "--samples", "4"]
    flags += ["--num-edits", "1", "2", "--modes", "single", "lifelong", "--editors", "unedited", "recipe", "oracle"]
    done = run(*flags, "--data", "testbed", f"edits:{own}")
    assert done.returncode == 2, done.stderr
    where, counts, chats, *failed = done.stdout.splitlines()
    assert where.startswith(f"report {output}/report.html")
    assert counts.startswith("6 cells measured, 6 of them now, 6 failed, ")
    assert chats == "nothing was asked in chats: the LLM has no chat template"
    assert len(failed) == 6
    assert failed[0].startswith("failed: unedited on edits:own.jsonl, 1 single: ")
    code, said, complaint = on_session_cluster("evaluate", EvaluateArgs, *flags)
    assert code == 0, complaint
    assert said.splitlines()[1].startswith("6 cells measured, 0 of them now, 0 failed, ")
    rows = json.loads((output / "results.json").read_text())
    by_editor = {row["editor"]: row for row in rows if row["measure"] == "free" and row["T"] == 2}
    assert list(by_editor) == ["unedited", "recipe", "oracle"]
    assert by_editor["unedited"]["locality"] == 1.0
    assert by_editor["oracle"]["reliability"] > by_editor["unedited"]["reliability"]
    assert all(row["command"].startswith("python ") and "evaluate.py" in row["command"] for row in rows)
    assert by_editor["recipe"]["retrieval_right_fact"] is not None
    page = (output / "report.html").read_text()
    assert "Margin over the sentinel on testbed: recipe" in page


def test_a_wrong_option_is_one_line(tmp_path):
    done = run("--editors", "rmoe", "--output", tmp_path)
    assert done.returncode != 0
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "rmoe" in done.stderr
