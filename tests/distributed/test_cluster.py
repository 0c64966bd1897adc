"""What a cluster of one's own is started with."""

import os

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
