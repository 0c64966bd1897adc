"""What an ingest survives: killed processes, storage that fails, other writers."""

import random
import subprocess
import threading
import time

import boto3
import psutil
import pytest
import ray
from faulty_s3 import FAULTS, FaultyS3
from ingesting import Ingest, check_table, write_dump
from s3_environment import s3_environment

from recipe_ray.store.delta import open_delta
from recipe_ray.store.files import publish
from recipe_ray.store.quarantine import read_quarantine
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable

pytestmark = [
    pytest.mark.ray,
    pytest.mark.faults,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.timeout(600),
]
NUM_FACTS = 400
VICTIMS = {"encoder": "MapBatches(Encoder)", "writer": "MapBatches(write_unit)", "stager": "ray::_stage"}
KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}


def on_session():
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


def workers(title):
    """Processes of the session's cluster that run a task or an actor of that title."""
    for process in psutil.Process().children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                yield process
        except psutil.Error:
            continue


def kill_at_random(job, victim, seed):
    """Kill the driver at any moment, or a worker once one of its kind is seen; False where it came too late."""
    rng = random.Random(seed)
    if victim == "driver":
        try:
            job.process.wait(timeout=rng.uniform(0, 25))
        except subprocess.TimeoutExpired:
            job.kill()
            return True
        return False
    patience = rng.uniform(0, 0.3)
    while job.process.poll() is None:
        for process in workers(VICTIMS[victim]):
            time.sleep(patience)
            try:
                process.kill()
            except psutil.Error:
                continue
            return True
        time.sleep(0.005)
    return False


@pytest.mark.parametrize("number", range(50))
def test_fifty_kills_lose_and_double_nothing(tmp_path, editor_dir, number):
    victim = ["driver", *VICTIMS][number % 4]
    expected = {f"land-{number}": f"town-{number % 7}" for number in range(NUM_FACTS)}
    dump = write_dump(tmp_path / "dump.jsonl", expected, "2026-01-01", "{bad")
    table, log = str(tmp_path / "table"), tmp_path / "job.log"
    job = Ingest(dump, table, editor_dir, log, on_session()).start()
    try:
        killed = kill_at_random(job, victim, seed=number)
        if open_delta(table) is not None:
            assert len(read_snapshot(table).facts) in (0, NUM_FACTS)
        code, said = job.finish()
        if victim == "driver" and killed:
            code, said = Ingest(dump, table, editor_dir, log, on_session()).start().finish()
        assert code == 2, said  # one row is quarantined
    finally:
        if job.process.poll() is None:
            job.kill()
    check_table(table, expected, num_events=NUM_FACTS)
    assert FactTable.open(table).version == 1
    assert read_quarantine(table)["line"].to_pylist() == [NUM_FACTS + 1]
    assert not (tmp_path / "table" / "_staging").exists()


def on_faulty_s3(tmp_path, editor_dir, s3, expected):
    environment = s3_environment(s3.endpoint) | {"RECIPE_RAY_CACHE": str(tmp_path / "cache")}
    client = boto3.client("s3", endpoint_url=s3.endpoint, **KEYS)
    client.create_bucket(Bucket="facts")
    place = f"s3://facts/{tmp_path.name}"  # servers of one process share what they hold
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        dump = write_dump(tmp_path / "dump.jsonl", expected)
        publish(editor_dir, f"{place}/editor")
        client.upload_file(str(dump), "facts", f"{tmp_path.name}/dump/a.jsonl")
        s3.failing.set()
        log = tmp_path / "job.log"
        # A cluster of its own: the workers of the session's were started without these variables.
        job = Ingest(f"{place}/dump", f"{place}/table", f"{place}/editor", log, environment)
        code, said = job.start().finish()
        s3.failing.clear()
        assert code == 0, said
        assert s3.num_failed > 20
        check_table(f"{place}/table", expected, num_events=len(expected))


@pytest.mark.parametrize("fault", [*FAULTS, "all", "hanging"])
def test_every_fault_of_s3_loses_nothing(tmp_path, editor_dir, fault):
    hangs = fault == "hanging"
    faults = {"all": FAULTS, "hanging": ["slow", *["503"] * 59]}.get(fault, [fault])
    with FaultyS3(faults, delay_s=65.0 if hangs else 0.5).running() as s3:
        on_faulty_s3(tmp_path, editor_dir, s3, {f"land-{number}": "town" for number in range(50)})


def test_two_ingests_and_a_compaction_at_once_end_as_if_one_after_another(tmp_path, editor_dir):
    from recipe_ray.store.upkeep.compaction import compact

    lands = [f"land-{number}" for number in range(60)]
    table, log = str(tmp_path / "table"), tmp_path / "job.log"
    first = write_dump(tmp_path / "first.jsonl", dict.fromkeys(lands, "first"), "2026-01-01")
    assert Ingest(first, table, editor_dir, log, on_session()).start().finish()[0] == 0
    second = write_dump(tmp_path / "second.jsonl", dict.fromkeys(lands[:40], "second"), "2026-01-02")
    third = write_dump(tmp_path / "third.jsonl", dict.fromkeys(lands[20:], "third"), "2026-01-03")
    jobs = [
        Ingest(dump, table, editor_dir, tmp_path / f"{dump.stem}.log", on_session()).start() for dump in (second, third)
    ]
    stop, compactions = threading.Event(), []

    def keep_compacting():
        while not stop.is_set():
            compactions.append(compact(table))
            time.sleep(0.2)

    thread = threading.Thread(target=keep_compacting)
    thread.start()
    try:
        for job in jobs:
            code, said = job.finish()
            assert code == 0, said
    finally:
        stop.set()
        thread.join()
    assert compactions
    compact(table)
    expected = dict.fromkeys(lands[:20], "second") | dict.fromkeys(lands[20:], "third")
    check_table(table, expected, num_events=len(lands))
