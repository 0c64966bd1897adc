"""What a cluster of one's own is started with."""

import os
import subprocess
import sys

import pytest
import ray

from recipe_ray.distributed import cluster


@pytest.fixture
def started(monkeypatch):
    """The environments that clusters were started in."""
    environments = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in cluster.NO_TELEMETRY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_idle_worker_killing_time_threshold_ms", "1")
    monkeypatch.setattr(ray, "init", lambda *_, **__: environments.append(dict(os.environ)))
    return environments


def test_metrics_are_collected_where_somebody_can_read_them_whatever_was_started_before(started):
    cluster.connect(bulk=True)
    cluster.connect()
    bulk, other = started
    assert cluster.NO_TELEMETRY.items() <= bulk.items()
    assert not cluster.NO_TELEMETRY.keys() & other.keys()


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux's")
def test_bulk_work_waits_for_its_turn_and_what_comes_after_does_not(started, monkeypatch):
    policy = os.SCHED_OTHER

    def set_policy(_, wanted, __):
        nonlocal policy
        policy = wanted

    monkeypatch.setattr(os, "sched_getscheduler", lambda _: policy)
    monkeypatch.setattr(os, "sched_setscheduler", set_policy)
    for bulk, expected in ((True, os.SCHED_BATCH), (False, os.SCHED_OTHER)):
        cluster.connect(bulk=bulk)
        assert policy == expected
    policy = os.SCHED_IDLE  # as the user has it
    cluster.connect(bulk=True)
    assert policy == os.SCHED_IDLE


def test_what_is_set_stays(started, monkeypatch):
    first, *others = cluster.NO_TELEMETRY
    monkeypatch.setenv(first, "1")
    cluster.connect(bulk=True)
    assert started[0][first] == "1"
    assert {started[0][name] for name in others} == {"0"}
    assert started[0]["RAY_idle_worker_killing_time_threshold_ms"] == "1"
    assert os.environ[first] == "1"


@pytest.mark.parametrize("before", [None, ""])
def test_each_cluster_has_an_address_that_all_its_processes_are_told(started, monkeypatch, before):
    if before is not None:
        monkeypatch.setenv("RAY_ADDRESS", before)
    cluster.connect()
    cluster.connect(bulk=True)
    assert os.environ.get("RAY_ADDRESS") == before
    assert "RAY_GCS_SERVER_PORT" not in os.environ
    addresses = [environment["RAY_ADDRESS"] for environment in started]
    assert len(set(addresses)) == 2
    assert addresses == [
        f"{ray.util.get_node_ip_address()}:{environment['RAY_GCS_SERVER_PORT']}" for environment in started
    ]


# What a task takes for the machine's cluster, as helpers of Ray's do, and the cluster that it runs on.
JOB = """
import ray
from ray.util.state.state_cli import services
from recipe_ray.distributed.cluster import connect
connect(num_cpus=1, training=True)
found = ray.get(ray.remote(num_cpus=0.1)(lambda: services.canonicalize_bootstrap_address_or_die(None)).remote())
print(found, ray.get_runtime_context().gcs_address)
"""


@pytest.mark.ray
def test_of_two_clusters_on_a_machine_a_job_finds_its_own(ray_cluster):
    there = ray.get_runtime_context().gcs_address
    own, joined = (
        subprocess.Popen(
            [sys.executable, "-c", JOB], env={**os.environ, "RAY_ADDRESS": address}, stdout=subprocess.PIPE, text=True
        )
        for address in ("", there)
    )
    found, address = own.communicate(timeout=200)[0].split()[-2:]
    assert found == address != there
    assert joined.communicate(timeout=200)[0].split()[-2:] == [there, there]
