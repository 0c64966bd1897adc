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
    cluster.connect()
    cluster.connect(telemetry=True)
    cluster.connect(show_workers=True)
    assert cluster.NO_TELEMETRY.items() <= started[0].items()
    for environment in started[1:]:
        assert not cluster.NO_TELEMETRY.keys() & environment.keys()


def test_what_is_set_stays(started, monkeypatch):
    first, *others = cluster.NO_TELEMETRY
    monkeypatch.setenv(first, "1")
    cluster.connect()
    assert started[0][first] == "1"
    assert {started[0][name] for name in others} == {"0"}
    assert started[0]["RAY_idle_worker_killing_time_threshold_ms"] == "1"
    assert os.environ[first] == "1"
