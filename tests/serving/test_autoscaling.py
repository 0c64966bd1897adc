"""Engines are added under load and taken away after it."""

import threading
import time

import httpx
import pytest
from ray import serve

from serving.local import APP_NAME, serving
from serving.settings import AppArgs

pytestmark = [pytest.mark.ray, pytest.mark.faults]

PATIENCE_S = 150.0  # Serve looks at the load every ten seconds, and at the last thirty


def num_engines():
    engine = serve.status().applications[APP_NAME].deployments["Engine"]
    return engine.replica_states.get("RUNNING", 0)


def wait_for(num):
    deadline = time.monotonic() + PATIENCE_S
    while num_engines() != num:
        assert time.monotonic() < deadline, f"{num_engines()} engines run, not {num}"
        time.sleep(0.2)


def test_engines_follow_the_load_up_and_down(ray_cluster, editor_dir, table_uri):
    args = AppArgs(
        editor=str(editor_dir),
        table=table_uri,
        cpus=0.2,
        retriever_cpus=0.2,
        num_engines=1,
        max_engines=2,
        max_batch_size=2,
        upscale_delay_s=1.0,
        downscale_delay_s=2.0,
    )
    failures = []
    with serving(args, port=0, quiet=True) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert num_engines() == 1
        stop = threading.Event()

        def keep_asking():
            while not stop.is_set():
                answer = client.post("/v1/completions", json={"prompt": "x", "max_tokens": 80, "ignore_eos": True})
                if answer.status_code != 200:
                    failures.append(answer.text)

        threads = [threading.Thread(target=keep_asking) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            wait_for(2)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        wait_for(1)
        assert client.post("/v1/completions", json={"prompt": "x"}).status_code == 200
    assert not failures, "a replica that went left an answer unfinished"
