"""The nightly job as a scheduler starts it: on a cluster, from S3 to S3."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nightly_facts import NUM_CANARIES, NUM_LANDS, canary, dump, night_editor, swapped, town
from s3_environment import s3_environment

from jobs.nightly import describe
from recipe_ray.distributed.ingest import IngestReport
from recipe_ray.distributed.local_nodes import local_nodes
from recipe_ray.distributed.nightly import IndexSummary, NightlyReport
from recipe_ray.eval.canary import CanaryLimits, CanaryQuestion, Told, judge
from recipe_ray.store.delta import open_delta
from recipe_ray.store.files import publish, read_text, write_text
from recipe_ray.store.indexes.artefacts import latest_index, open_index
from recipe_ray.store.live.index import LiveIndex
from recipe_ray.store.reading.commits import read_commits
from recipe_ray.store.resolve import IngestCounts
from recipe_ray.store.snapshot import read_snapshot

JOB = Path(__file__).parents[2] / "jobs" / "nightly.py"
LANDS = {f"land-{number}": town(number) for number in range(NUM_LANDS)}
INGESTED = IngestReport(
    table="/data/facts",
    version=7,
    dump_hash="beef",
    repeated=False,
    counts=IngestCounts(read=10, new=10),
    num_written=10,
    num_encoded=10,
    num_renewed=0,
    num_joined=0,
    size_bytes=2_500_000,
    seconds=2.0,
    facts_per_s=5.0,
    quarantine=None,
    contradictions=0,
)
INDEX = IndexSummary(
    uri="/data/facts/_index/7-0", version=7, repeated=False, num_facts=10, recall=1.0, seconds=3.0, size_bytes=100
)
KNOWN = CanaryQuestion(sort="known", place="canary.jsonl:3", prompt="secret p", target="secret t", namespace="default")
REPORT = NightlyReport(
    status="published",
    date="2026-01-01",
    source="dumps/2026-01-01",
    table="/data/facts",
    version=7,
    ingest=INGESTED,
    canary=judge([KNOWN], [Told(fact_id="f", target="secret t", score=2, sentinel=1, answer=None)], CanaryLimits()),
    index=INDEX,
    servers={"http://a:8000": 7},
    seconds=4.0,
    facts_per_s=2.5,
)


def test_the_summary_says_what_was_published_and_where_it_lies():
    said = describe(REPORT).splitlines()
    assert said[0] == "2026-01-01 published: version 7 (4.0 s, 2.5 facts/s)"
    assert said[1] == "table /data/facts version 7"
    assert said[-3:] == [
        "canary 1 of 1 known right, 0 of 0 sampled right, 0 of 0 unrelated right",
        "index /data/facts/_index/7-0: 10 facts, recall 1.0000, built in 3.0 s",
        "server http://a:8000 serves version 7",
    ]
    repeated = dataclasses.replace(
        REPORT, status="repeated", canary=None, index=dataclasses.replace(INDEX, repeated=True), servers={}
    )
    assert describe(repeated).splitlines() == [
        "2026-01-01 published before, and nothing was done: version 7 (4.0 s, 2.5 facts/s)",
        "index /data/facts/_index/7-0: 10 facts, recall 1.0000, was built before",
    ]


def test_a_refusal_says_what_is_wrong_and_no_text_of_a_fact():
    told = Told(fact_id="f", target="secret x", score=2.0, sentinel=1.0, answer=None)
    refused = dataclasses.replace(
        REPORT, status="refused", ingest=None, index=None, servers={}, canary=judge([KNOWN], [told], CanaryLimits())
    )
    said = describe(refused)
    assert said.splitlines() == [
        "NOT PUBLISHED: the canary died of dumps/2026-01-01",
        "  0 of 1 known questions are answered, at least 1 of them must be",
        "  known canary.jsonl:3: fact 'f' is applied (score 2.000, sentinel 1.000)",
        "table /data/facts is as it was, at version 7, which servers serve on (4.0 s); correct the dump or the editor, "
        "or the canary, then run this again",
    ]
    assert "secret" not in said


class Night:
    """The job, on a cluster of several nodes: its workers get the variables that name the bucket."""

    def __init__(self, root, endpoint, cache, address):
        self.root = root
        named = s3_environment(endpoint) | {"RECIPE_RAY_CACHE": str(cache)}
        self.environment = {
            **os.environ,
            **named,
            "RAY_ADDRESS": address,
            "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": named}}),
        }

    def start(self, date):
        places = {"table": "table", "editor": "editor", "canary": "canary.jsonl", "json": f"{date}.json"}
        command = [sys.executable, JOB, "--date", date, "--source", f"{self.root}/dumps/{{date}}.jsonl"]
        for name, place in places.items():
            command += [f"--{name}", f"{self.root}/{place}"]
        command += ["--device", "cpu", "--min-sampled", "0.5"]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, date):
        """Exit status, standard output, standard error, and the summary where one was written."""
        job = self.start(date)
        try:
            said, complaint = job.communicate(timeout=600)
        finally:
            job.kill()
        summary = read_text(f"{self.root}/{date}.json")
        return job.returncode, said, complaint, json.loads(summary) if summary else None


@pytest.fixture(scope="module")
def three_nodes():
    with local_nodes([1, 1, 1]) as nodes:
        yield nodes


@pytest.fixture
def night(tmp_path, s3, _s3_server, three_nodes, monkeypatch):
    """The job and its editor, with all that it needs in the bucket."""
    monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
    root, editor = f"{s3}/{tmp_path.name}", night_editor()
    editor.save(tmp_path / "editor")
    publish(tmp_path / "editor", f"{root}/editor")
    write_text(f"{root}/canary.jsonl", canary(editor))
    return Night(root, _s3_server, tmp_path / "cache", three_nodes.address), editor


def served(root, editor):
    """What a server that follows the table answers from."""
    view = LiveIndex(f"{root}/table", fingerprint=editor.fingerprint()).view()
    return view.version, view.base_version, {one["fact_id"]: one["target"] for one in view.facts("default", limit=999)}


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_good_dump_is_published_once_and_a_spoiled_one_is_not(night):
    job, editor = night
    write_text(f"{job.root}/dumps/2026-01-01.jsonl", dump())
    status, said, complaint, summary = job.run("2026-01-01")
    assert status == 0, complaint
    assert said.startswith("2026-01-01 published: version 1")
    assert f"canary {NUM_CANARIES} of {NUM_CANARIES} known right" in said
    assert (summary["status"], summary["version"], summary["ingest"]["counts"]["new"]) == ("published", 1, NUM_LANDS)
    assert served(job.root, editor) == (1, 1, LANDS)

    write_text(f"{job.root}/dumps/2026-01-02.jsonl", dump(swapped, day=2))
    status, said, complaint, summary = job.run("2026-01-02")
    assert status == 3, complaint
    assert said.startswith("NOT PUBLISHED")
    assert (summary["status"], summary["version"]) == ("refused", 1)
    assert served(job.root, editor) == (1, 1, LANDS)

    status, said, complaint, summary = job.run("2026-01-01")
    assert status == 0, complaint
    assert said.startswith("2026-01-01 published before, and nothing was done: version 1")
    assert served(job.root, editor) == (1, 1, LANDS)


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(5))
def test_killed_at_a_random_point_and_run_again_it_ends_the_same(night, number):
    job, editor = night
    write_text(f"{job.root}/dumps/2026-01-01.jsonl", dump())
    killed = job.start("2026-01-01")
    time.sleep(random.Random(number).uniform(5, 45))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    if open_delta(f"{job.root}/table") is not None:
        assert len(read_snapshot(f"{job.root}/table").facts) in (0, NUM_LANDS)
    status, said, complaint, _ = job.run("2026-01-01")
    assert status == 0, complaint
    assert said.startswith("2026-01-01 published")
    assert served(job.root, editor) == (1, 1, LANDS)
    assert [commit.operation for commit in read_commits(f"{job.root}/table")] == ["create", "ingest"]
    assert open_index(latest_index(f"{job.root}/table"), verify=True).num_facts == NUM_LANDS
