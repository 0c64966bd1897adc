"""Holding nodes, with a cluster that is only said to have them."""

import pytest

from recipe_ray.distributed import cluster
from recipe_ray.distributed.cluster import Holding, NodesConfig, hold_nodes
from recipe_ray.errors import ConfigError, ServiceError


@pytest.fixture
def asked(monkeypatch):
    """What the autoscaler is asked for; each look at the cluster finds a GPU node more."""
    found, looks = [], []

    def request_resources(num_cpus=None, bundles=None):
        found.append({"CPU": num_cpus, "GPU": sum(bundle["GPU"] for bundle in bundles or ())})

    def cluster_resources():
        looks.append(None)
        return {"GPU": 1.0 * len(looks), "CPU": 8.0 * len(looks)} if looks[1:] else {"node:head": 1.0}

    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", request_resources)
    monkeypatch.setattr(cluster.ray, "cluster_resources", cluster_resources)
    return found


def test_it_waits_until_the_nodes_are_there(asked):
    assert hold_nodes(NodesConfig(gpus=3, cpus=16), poll_s=0) == Holding(gpus=3, cpus=24)
    assert asked == [{"CPU": 16, "GPU": 3}]


def test_without_wishes_all_are_let_go(asked):
    assert hold_nodes(NodesConfig(), poll_s=0) == Holding(gpus=0, cpus=0)
    assert asked == [{"CPU": 0, "GPU": 0}]


def test_nodes_that_do_not_come_are_not_asked_for_any_more(asked):
    with pytest.raises(ServiceError, match="5 GPUs and 0 CPUs were asked for, and after 0 s the cluster has 2 and 16"):
        hold_nodes(NodesConfig(gpus=5, wait_s=0), poll_s=0)
    assert asked == [{"CPU": 0, "GPU": 5}, {"CPU": 0, "GPU": 0}]


def test_a_negative_number_is_refused():
    with pytest.raises(ConfigError, match="gpus is -1"):
        NodesConfig(gpus=-1)
