"""What training and ingest ask of a cluster, on clusters that are only described."""

import dataclasses

import pytest
import ray

from recipe_ray.distributed.cluster import connect
from recipe_ray.distributed.encoders import TASK_CPUS, fit_encoders
from recipe_ray.distributed.ingest_args import IngestConfig
from recipe_ray.distributed.train import _scaling
from recipe_ray.errors import ConfigError, ServiceError
from recipe_ray.presets import smoke


def config(**changes):
    return dataclasses.replace(smoke(), batch_size=64, **changes)


@pytest.fixture
def nodes(monkeypatch):
    def describe(*resources):
        found = [{"Alive": True, "Resources": one} for one in resources]
        found.append({"Alive": False, "Resources": {"CPU": 999, "GPU": 99}})
        monkeypatch.setattr(ray, "nodes", lambda: found)

    return describe


@pytest.mark.parametrize(
    ("described", "num_workers", "cpus"),
    [
        ([{"CPU": 16.0}, {"CPU": 16.0}], 1, 16),
        ([{"CPU": 16.0}, {"CPU": 16.0}], 2, 16),
        ([{"CPU": 16.0}, {"CPU": 16.0}], 3, 8),
        ([{"CPU": 16.0}, {"CPU": 4.0}], 3, 5),
        ([{"CPU": 16.0}, {"CPU": 4.0}], 5, 4),
        ([{"CPU": 2.0}, {}], 2, 1),
        ([{"CPU": 32.0, "GPU": 8.0}] * 2, 16, 4),
        ([{"CPU": 32.0, "GPU": 2.0}, {"CPU": 64.0}], 2, 16),
    ],
)
def test_a_worker_takes_what_fits_one_node(nodes, described, num_workers, cpus):
    nodes(*described)
    scaling = _scaling(config(num_workers=num_workers))
    assert (scaling.num_workers, scaling.resources_per_worker) == (num_workers, {"CPU": cpus})
    assert scaling.use_gpu == any("GPU" in node for node in described)


@pytest.mark.parametrize(
    ("described", "cpus"),
    [
        ([{"CPU": 32.0, "GPU": 2.0}], 16),
        ([{"CPU": 2.0}], 1),
        ([{"CPU": 32.0, "GPU": 8.0}], 4),
    ],
)
def test_an_elastic_training_shares_out_what_there_is_and_may_grow(nodes, described, cpus):
    nodes(*described)
    scaling = _scaling(config(num_workers=8, min_workers=1))
    assert (scaling.num_workers, scaling.resources_per_worker["CPU"]) == ((1, 8), cpus)


@pytest.mark.parametrize(
    ("described", "changes", "complaint"),
    [
        ([{"CPU": 2.0}], {"num_workers": 3}, "3 workers of 1 CPUs each do not fit: .* hold 2;"),
        ([{"CPU": 16.0}] * 2, {"cpus_per_worker": 32.0}, "1 workers of 32 CPUs each do not fit: .* hold 0;"),
        ([{"CPU": 16.0, "GPU": 1.0}], {"cpus_per_worker": 64.0}, "of 64 CPUs and a GPU each do not fit"),
        ([{"CPU": 4.0, "GPU": 8.0}], {"num_workers": 8}, "8 workers of 1 CPUs and a GPU each do not fit: .* hold 4"),
        ([{"CPU": 4.0}], {"device": "cuda"}, "the Ray cluster has no GPU; give auto or cpu"),
        ([{"CPU": 4.0}], {"device": "cuda:1"}, "the Ray cluster has no GPU; give auto or cpu"),
    ],
)
def test_what_fits_no_node_is_refused(nodes, described, changes, complaint):
    nodes(*described)
    with pytest.raises(ConfigError, match=complaint):
        _scaling(config(**changes))


def test_the_cpu_is_used_where_it_is_asked_for(nodes):
    nodes({"CPU": 8.0, "GPU": 1.0})
    assert not _scaling(config(device="cpu")).use_gpu


@pytest.mark.parametrize(
    ("described", "num_encoders"),
    [
        ([{"CPU": 2.0}], 2),
        ([{"CPU": 1.0}], 1),
        ([{"CPU": 8.0}], 8),
        ([{"CPU": 2.0}, {"CPU": 2.0}, {}], 4),
        ([{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}, {}], 3),
    ],
)
def test_encoders_fill_every_core_beside_a_task_and_more_than_fit_are_refused(
    nodes, monkeypatch, described, num_encoders
):
    nodes(*described)
    total = {name: sum(one.get(name, 0) for one in described) for name in ("CPU", "GPU")}
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    wanted = IngestConfig(source="dump.jsonl", table="table", editor="editor")
    found = fit_encoders(wanted)
    assert found.num_encoders == num_encoders
    for node in described:  # what Ray would place on each of them leaves room for a task
        assert not node or int(node["CPU"]) * found.cpus + TASK_CPUS <= node["CPU"]
    with pytest.raises(
        ConfigError, match=rf"num_encoders is 99, but the cluster has room for {num_encoders} of 0\.\d+ "
    ):
        fit_encoders(dataclasses.replace(wanted, num_encoders=99))


@pytest.mark.parametrize("error", [ConnectionError("nobody\nthere"), ValueError("no address")])
def test_a_wrong_address_of_a_cluster_is_a_fault_of_its_own(monkeypatch, error):
    def init(**_):
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:1")
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ServiceError, match=r"no Ray cluster answers at RAY_ADDRESS '10\.0\.0\.9:1' \(no"):
        connect()
