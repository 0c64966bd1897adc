"""What the benchmark of an ingest stands on: processes that stand still, and bare encoding when it is asked for."""

import json
import subprocess
import sys
import time

import psutil
import pytest

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
