"""Training and ingest over several nodes, one of which is lost; the nodes are processes of this machine."""

import time

import pytest
from ingesting import Ingest, check_table, write_dump
from node_processes import titles
from training import NUM_STEPS, fingerprint, finish, kill, start

from recipe_ray.distributed.local_nodes import local_nodes
from recipe_ray.store.table import FactTable

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
PATIENCE_S = 600
NUM_FACTS = 3000
NUM_SHARDS = 12  # each of them a unit at least, so that there is a middle to the encoding
NUM_BEFORE = 2  # units that are written before the node goes


def where(nodes, title):
    """Names of the nodes on which processes of that title run, one for each process."""
    return sorted(node.name for node in nodes.nodes.values() for found in titles(node) if title in found)


def train_on(cpus, folder):
    """Train with two workers on nodes of so many CPUs; the weights' fingerprint and where the workers ran."""
    seen = []
    with local_nodes(cpus) as nodes:
        process = start(folder, environment={"RAY_ADDRESS": nodes.address}, num_workers=2, cpus_per_worker=1)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while process.poll() is None and len(seen) < 2 and time.monotonic() < deadline:
                seen = where(nodes, "RayTrainWorker")
                time.sleep(0.2)
            assert f": {NUM_STEPS} steps, {NUM_STEPS} of them now" in finish(process, timeout_s=PATIENCE_S)
        finally:
            if process.poll() is None:
                kill(process)
    return fingerprint(folder), seen


def test_two_workers_on_two_nodes_end_at_the_weights_of_two_on_one_node_to_the_bit(tmp_path):
    on_two, seen = train_on([1, 1], tmp_path / "two")
    assert seen == ["node-1", "node-2"]
    on_one, seen = train_on([2], tmp_path / "one")
    assert seen == ["node-1", "node-1"]
    assert on_two == on_one


def test_an_ingest_over_three_nodes_of_which_one_is_lost_has_every_fact_once(tmp_path, editor_dir):
    expected = {f"land-{number}": f"town-{number % 7}" for number in range(NUM_FACTS)}
    dump = write_dump(tmp_path / "dump.jsonl", expected)
    table, log = tmp_path / "table", tmp_path / "job.log"
    with local_nodes([1, 1, 1]) as nodes:
        environment = {"RAY_ADDRESS": nodes.address}
        job = Ingest(dump, str(table), editor_dir, log, environment, "--num-shards", str(NUM_SHARDS)).start()
        try:
            encoding = set()
            deadline = time.monotonic() + PATIENCE_S
            while len(list(table.glob("_staging/*/units/*"))) < NUM_BEFORE or not encoding:
                assert job.process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                encoding = set(where(nodes, "MapBatches(Encoder)"))
                time.sleep(0.01)
            victim = max(encoding)
            nodes.kill(victim)
            assert job.process.poll() is None, "it had ended before the node was lost"
            assert not FactTable.open(str(table)).files(), "it had committed before the node was lost"
            code, said = job.finish(timeout_s=PATIENCE_S)
        finally:
            if job.process.poll() is None:
                job.kill()
    assert code == 0, said
    assert f"read {NUM_FACTS} rows: {NUM_FACTS} new" in said
    check_table(str(table), expected, num_events=NUM_FACTS)
    assert FactTable.open(str(table)).version == 1
    assert not (table / "_staging").exists()
