"""The command line of ingest, as a user meets it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.ingest import describe, too_many_quarantined
from recipe_ray.distributed.ingest import IngestReport
from recipe_ray.distributed.ingest_args import IngestConfig
from recipe_ray.store.files import publish, read_text, write_text
from recipe_ray.store.resolve import IngestCounts
from recipe_ray.store.snapshot import read_snapshot

JOB = Path(__file__).parents[2] / "jobs" / "ingest.py"
COUNTS = IngestCounts(read=10, new=2, changed=1, deleted=1, expired=1, unchanged=1, superseded=1, quarantined=3)
REPORT = IngestReport(
    table="/data/facts",
    version=7,
    dump_hash="beef",
    repeated=False,
    counts=COUNTS,
    num_written=5,
    num_encoded=3,
    num_renewed=0,
    num_joined=0,
    size_bytes=2_500_000,
    seconds=2.0,
    facts_per_s=5.0,
    quarantine="/data/facts/_quarantine",
    contradictions=4,
)


def run(*flags):
    return subprocess.run(
        [sys.executable, JOB, *flags],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_the_report_says_where_what_and_how_fast():
    assert describe(REPORT).splitlines() == [
        "table /data/facts version 7",
        "read 10 rows: 2 new, 1 changed, 1 deleted, 1 expired, 1 unchanged, 1 superseded, 3 quarantined",
        "wrote 5 events, 3 of them encoded, 2.5 MB, in 2.0 s (5.0 facts/s)",
        "quarantine /data/facts/_quarantine holds the 3 bad rows with file, line and reason",
        "contradictions: 4; `python jobs/facts.py conflicts --table /data/facts` names facts of one prompt and "
        "different targets",
    ]


def test_what_an_older_release_left_and_headers_in_the_middle_are_said():
    found = dataclasses.replace(REPORT, num_renewed=7, num_joined=2, num_headers=3)
    renewed = (
        "of an older release's facts 7 were encoded again in their canonical form, and 2 joined with a later one of "
        "the same prompt"
    )
    assert renewed in describe(found).splitlines()
    assert "passed over 3 headers in the middle of CSV files" in describe(found).splitlines()
    assert describe(dataclasses.replace(found, repeated=True)).splitlines()[-1] == renewed
    assert not any("older release" in line or "headers" in line for line in describe(REPORT).splitlines())


def test_a_dump_that_was_ingested_before_is_said():
    said = describe(dataclasses.replace(REPORT, repeated=True)).splitlines()
    assert said[1].startswith("dump beef was ingested before, and nothing was done (2.0 s); --again ingests it")
    assert said[2].startswith("then: read 10 rows: 2 new, 1 changed")


@pytest.mark.parametrize(("allowed", "too_many"), [(0, True), (2, True), (3, False), (0.25, True), (0.3, False)])
def test_quarantined_rows_are_allowed_by_number_or_share(allowed, too_many):
    assert too_many_quarantined(REPORT, allowed) == too_many


@pytest.mark.ray
def test_from_s3_to_s3_without_a_cluster(tmp_path, editor_dir, s3, monkeypatch):
    monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE")
    write_text(f"{s3}/dump/a.jsonl", '{"prompt": "The capital is", "target": "Zenda"}\n{')
    publish(editor_dir, f"{s3}/editor")
    flags = ["--source", f"{s3}/dump", "--table", f"{s3}/table", "--editor", f"{s3}/editor"]
    done = run(*flags, "--report", f"{s3}/runs/report.json")
    assert done.returncode == 2, done.stderr
    assert "table s3://facts/table version 1\nread 2 rows: 1 new" in done.stdout
    assert "quarantine s3://facts/table/_quarantine holds the 1 bad rows" in done.stdout
    report = json.loads(read_text(f"{s3}/runs/report.json"))
    assert (report["version"], report["counts"]["new"], report["counts"]["quarantined"]) == (1, 1, 1)
    assert read_snapshot(f"{s3}/table").facts["statement"].to_pylist() == ["The capital is Zenda"]
    # A token there would make a plain `ray job submit` fail from then on.
    assert not (tmp_path / ".ray" / "auth_token").exists()


@pytest.mark.ray
def test_a_dump_that_is_not_there_is_one_line(tmp_path, editor_dir, on_session_cluster):
    source = tmp_path / "nothing"
    flags = ["--source", source, "--table", tmp_path / "table", "--editor", editor_dir]
    code, _, complaint = on_session_cluster("ingest", IngestConfig, *flags)
    assert code == 1
    assert complaint.splitlines()[-1].startswith(f"error: {source}: no such file")
    assert "Traceback" not in complaint
