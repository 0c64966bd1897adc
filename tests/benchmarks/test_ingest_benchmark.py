"""What the benchmark of an ingest stands on: processes that stand still, bare encoding on request, staging alone."""

import json
import subprocess
import sys
import time

import psutil
import pytest

from benchmarks import ingest as benchmark
from benchmarks.ingest import BareEncoding, Watch

# A process and a child, each of which counts up in a file of its own.
COUNTING = """
import os, sys, time
name = "parent" if os.fork() else "child"
for number in range(3000):
    with open(f"{sys.argv[1]}/{name}", "w") as file:
        file.write(str(number))
    time.sleep(0.01)
"""


def test_a_process_and_its_children_stand_still_and_go_on(tmp_path):
    def counts():
        return [(tmp_path / name).read_text() for name in ("parent", "child")]

    with subprocess.Popen([sys.executable, "-c", COUNTING, str(tmp_path)]) as process:
        try:
            while len(list(tmp_path.iterdir())) < 2:
                time.sleep(0.05)
            watch = Watch(process.pid)
            with watch.stopped():
                time.sleep(0.1)  # a signal takes its time
                still = counts()
                time.sleep(0.4)
                assert counts() == still
            assert 0.5 <= watch.stopped_s < 5
            time.sleep(0.4)
            assert all(now != then for now, then in zip(counts(), still, strict=True))
            watch.sample()
            assert watch.peak_bytes > psutil.Process(process.pid).memory_full_info().pss
        finally:
            for child in psutil.Process(process.pid).children():
                child.kill()
            process.kill()
    with watch.stopped():  # of what has ended nothing is there to stop
        pass


def test_bare_encoding_is_timed_as_often_as_it_is_asked(editor_dir, tmp_path):
    facts = tmp_path / "facts.jsonl"
    facts.write_text(
        "".join(json.dumps({"prompt": f"Fact {number} is", "target": "so"}) + "\n" for number in range(80))
    )
    with BareEncoding(str(editor_dir), facts, 64) as bare:
        assert bare.facts_per_s() > 0
        assert bare.facts_per_s() > 0
    with pytest.raises(RuntimeError, match=r"encode\.py.* has ended"), BareEncoding(str(tmp_path), facts, 64):
        pass


# Stands for the benchmark of a checkout: how long each call takes lies in a file there.
STAGES = """
import json, os, pathlib
checkout = pathlib.Path(os.environ["PYTHONPATH"])
times = json.loads((checkout / "times").read_text())
(checkout / "times").write_text(json.dumps(times[1:]))
print("other output")
print(json.dumps({"code": str(checkout), "seconds": times[0], "cpu_s": 1}))
"""


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_staging_alone_takes_every_row_of_a_dump_and_leaves_nothing(form, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "kept"
    flags = ["--staging-only", "--num-facts", "50", "--form", form, "--folder", str(folder)]
    monkeypatch.setattr(sys, "argv", ["ingest.py", *flags])
    benchmark.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["rows"], result["bad_rows"]) == (50, 0)
    assert result["code"] == str(benchmark.CODE)
    assert result["cpu_s"] > 0
    assert result["rows_per_s"] == pytest.approx(50 / result["seconds"])
    assert not list(folder.glob("table/**/*"))
    assert (folder / f"50.{form}").stat().st_size == result["size_bytes"]


def test_two_checkouts_are_timed_in_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "THIS", tmp_path / "stages.py")
    benchmark.THIS.write_text(STAGES)
    checkouts = [tmp_path / "ours", tmp_path / "theirs"]
    for checkout, times in zip(checkouts, ([4, 6, 30], [2, 6, 10]), strict=True):
        (checkout / "recipe_ray").mkdir(parents=True)
        (checkout / "times").write_text(json.dumps(times))
    result = benchmark.stage_in_turns("dump", checkouts, pairs=3)
    assert result["ratio"] == 2
    assert result["ratio_cpu"] == 1
    assert [[run["seconds"] for run in pair] for pair in result["pairs"]] == [[4, 2], [6, 6], [30, 10]]
    with pytest.raises(RuntimeError, match="no package recipe_ray"):
        benchmark.stage_in_turns("dump", [tmp_path, *checkouts], pairs=1)
