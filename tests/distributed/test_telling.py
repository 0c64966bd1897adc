"""What workers tell their driver."""

import threading

import pytest
import ray

from recipe_ray.distributed import telling
from recipe_ray.distributed.telling import Told, listening

pytestmark = pytest.mark.ray


def test_what_workers_tell_is_heard_in_order_and_to_the_last(ray_cluster):
    @ray.remote(num_cpus=0.1)
    def work(tell):
        for number in range(50):
            tell(Told(line=f"step {number}", num_done=1))

    heard = []
    with listening(heard.append) as tell:
        ray.get(work.remote(tell))
    assert heard == [Told(line=f"step {number}", num_done=1) for number in range(50)]
    assert threading.current_thread().name not in [one.name for one in threading.enumerate() if one.name == "listening"]


def test_a_worker_goes_on_where_its_messages_are_lost(ray_cluster, monkeypatch):
    monkeypatch.setattr(telling, "_TAKE_TIMEOUT_S", 1.0)

    @ray.remote(num_cpus=0.1)
    def work(tell):
        tell(Told(line="lost"))
        return "done"

    heard = []
    with listening(heard.append) as tell:
        ray.kill(tell.mailbox)
        assert ray.get(work.remote(tell)) == "done"
    assert heard == []
